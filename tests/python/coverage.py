"""coverage.py MODEL.onnx --json: the share of a written file's multiply-adds whose operands are codes, and of its activations that are stored as codes.

Counted from the file alone, with onnx's own shape inference; shares nothing with requant. An operand is traced back through data movement to the
DequantizeLinear it comes from. An activation counts as codes of as many bits as the widest QuantizeLinear that reads it, once an activation function,
batch normalisation or data movement that alone reads it is passed.
"""

import json
import math
import sys

import onnx
from onnx import TensorProto as T
from onnx import shape_inference

WIDTH = {T.INT8: 8, T.UINT8: 8, T.INT16: 16, T.UINT16: 16, T.INT32: 32, T.INT4: 4, T.UINT4: 4}
WIDTH |= {T.FLOAT8E4M3FN: 8, T.FLOAT8E4M3FNUZ: 8, T.FLOAT8E5M2: 8, T.FLOAT8E5M2FNUZ: 8, T.FLOAT4E2M1: 4, 25: 2, 26: 2, 27: 6, 28: 6}
FLOAT = 32
DEPTH = 12
MOVES = set(
    "Transpose Reshape Identity Squeeze Unsqueeze Flatten Slice Split Gather Expand Relu Clip MaxPool Pad Concat DepthToSpace SpaceToDepth Tile Cast".split()
)
FOLLOWS = MOVES | {"LeakyRelu", "PRelu", "BatchNormalization", "Dropout", "HardSwish"}
NO_ACTIVATION = MOVES | set(
    "QuantizeLinear DequantizeLinear Constant Shape ConstantOfShape Range Size NonZero ArgMax OneHot Equal Less Greater Not And Or"
    " DynamicQuantizeLinear If Loop Scan".split()
)


def size(dims):
    return math.prod(dims) if dims else 1


class File:
    def __init__(self, path):
        model = onnx.load(path)
        for value in model.graph.input:
            for d in value.type.tensor_type.shape.dim:
                if not d.HasField("dim_value") or d.dim_value <= 0:
                    d.dim_value = 1
        for node in model.graph.node:
            # Shape inference knows com.microsoft's Q and DQ by their standard names only.
            if node.domain == "com.microsoft" and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.domain = ""
                for opset in model.opset_import:
                    if opset.domain == "":
                        opset.version = max(opset.version, 21)
        try:
            model = shape_inference.infer_shapes(model, data_prop=True)
        except Exception:
            pass
        graphs = [model.graph]
        for graph in graphs:
            for node in graph.node:
                for a in node.attribute:
                    graphs += [a.g] if a.type == onnx.AttributeProto.GRAPH else list(a.graphs)
        self.nodes = [n for g in graphs for n in g.node]
        self.outputs = {o.name for o in model.graph.output}
        self.maker = {o: n for n in self.nodes for o in n.output}
        self.readers = {}
        for n in self.nodes:
            for i in n.input:
                self.readers.setdefault(i, []).append(n)
        constants = {t.name: t for g in graphs for t in g.initializer}
        for n in self.nodes:
            if n.op_type == "Constant":
                constants.update({n.output[0]: a.t for a in n.attribute if a.name == "value"})
        self.shape = {name: list(t.dims) for name, t in constants.items()}
        self.type = {}
        for v in [v for g in graphs for v in [*g.value_info, *g.input, *g.output]]:
            self.shape.setdefault(v.name, [d.dim_value or 1 for d in v.type.tensor_type.shape.dim])
            self.type[v.name] = v.type.tensor_type.elem_type
        self.type.update({name: t.data_type for name, t in constants.items()})
        # What depends on constants and shapes alone is no activation.
        self.constant = set(constants)
        for n in self.nodes:
            fixed = n.input and all(not i or i in self.constant for i in n.input)
            if fixed or n.op_type in ("Shape", "Size", "Constant", "ConstantOfShape", "Range"):
                self.constant.update(n.output)

    def code_width(self, name):
        """Bits of a tensor of codes."""
        if self.type.get(name) in WIDTH:
            return WIDTH[self.type[name]]
        n = self.maker.get(name)
        if n is None:
            return FLOAT
        if n.op_type == "QuantizeLinear":
            if len(n.input) > 2 and n.input[2] in self.type:
                return WIDTH.get(self.type[n.input[2]], FLOAT)
            return next((WIDTH.get(a.i, FLOAT) for a in n.attribute if a.name == "output_dtype" and a.i), 8)
        if n.op_type in MOVES:
            return self.code_width(n.input[0])
        return 8 if n.op_type.startswith("QLinear") or n.op_type in ("QGemm", "DynamicQuantizeLinear") else FLOAT

    def width(self, name, depth=0):
        """Bits of a real-valued operand."""
        n = self.maker.get(name)
        if n is None or depth > DEPTH:
            return FLOAT
        if n.op_type == "DequantizeLinear":
            return self.code_width(n.input[0])
        if n.op_type in MOVES:
            return max(self.width(i, depth + 1) for i in (n.input if n.op_type == "Concat" else n.input[:1]))
        return FLOAT

    def stored(self, name, depth=0):
        """Bits in which an activation is stored."""
        readers = self.readers.get(name, [])
        if not readers or depth > DEPTH:
            return FLOAT
        if len(readers) == 1 and readers[0].op_type in FOLLOWS and name not in self.outputs:
            return self.stored(readers[0].output[0], depth + 1)
        quantizers = [n for n in readers if n.op_type == "QuantizeLinear"]
        if name in self.outputs and not quantizers:
            return FLOAT
        return max(self.code_width(n.output[0]) if n.op_type == "QuantizeLinear" else FLOAT for n in readers)

    def multiply_adds(self, n):
        """(multiply-adds, bits of the input, bits of the weight), or None for a node that has none."""
        op, i = n.op_type, n.input
        s = lambda k: self.shape.get(i[k]) if k < len(i) else None
        y = self.shape.get(n.output[0], [1])
        w = lambda k: self.width(i[k])
        inner = (s(0) or [1])[-1] if i else 1
        if op == "Conv":
            return size(s(1)) * size(y[2:]), w(0), w(1)
        if op == "ConvTranspose":
            return size(s(1)) * size(s(0)[2:]), w(0), w(1)
        if op == "Gemm":
            return size(s(1)) * (y[0] if y else 1), w(0), w(1)
        if op == "MatMul":
            return size(y) * inner, w(0), w(1)
        if op in ("LSTM", "GRU", "RNN"):
            return (size(s(1)) + size(s(2))) * (s(0) or [1])[0], w(0), max(w(1), w(2))
        if op == "DynamicQuantizeLSTM":
            return (size(s(1)) + size(s(2))) * (s(0) or [1])[0], 8, 8
        if op in ("QLinearConv", "ConvInteger"):
            return size(s(3 if op == "QLinearConv" else 1)) * size(y[2:]), 8, 8
        if op == "QGemm":
            return size(s(3)) * (y[0] if y else 1), 8, 8
        if op in ("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
            return size(y) * inner, 8, 8
        if op in ("MatMulNBits", "MatMulBnb4"):
            a = {q.name: q.i for q in n.attribute}
            return a["K"] * a["N"] * (size(y[:-1]) if len(y) > 1 else 1), FLOAT, a.get("bits", 4)
        return None


def count(path):
    f = File(path)
    shares, unknown = dict.fromkeys(("cov8", "cov16", "w_only", "float"), 0.0), 0
    for n in f.nodes:
        try:
            counted = f.multiply_adds(n)
        except Exception:
            unknown += 1
            continue
        if counted:
            macs, x, w = counted
            kind = "cov8" if max(x, w) <= 8 else "cov16" if max(x, w) <= 16 else "w_only" if w <= 16 else "float"
            shares[kind] += float(max(macs, 1))
    activations = {8: 0.0, 16: 0.0, FLOAT: 0.0}
    for n in f.nodes:
        name = n.output[0] if n.output else ""
        if n.op_type in NO_ACTIVATION or not name or name in f.constant:
            continue
        whole = n.op_type.startswith("QLinear") or n.op_type == "QGemm" and f.type.get(name, T.UINT8) != T.FLOAT
        if not whole and f.type.get(name, T.FLOAT) in (T.INT64, T.INT32, T.BOOL, T.STRING):
            continue
        bits = 8 if whole else f.stored(name)
        activations[8 if bits <= 8 else 16 if bits <= 16 else FLOAT] += float(size(f.shape.get(name, [1]) or [1]))
    macs, elements = sum(shares.values()) or 1.0, sum(activations.values()) or 1.0
    result = {kind: round(share / macs, 4) for kind, share in shares.items()}
    return result | {"act8": round(activations[8] / elements, 4), "act16": round(activations[16] / elements, 4), "macs": macs, "unknown": unknown}


if __name__ == "__main__":
    found = count(sys.argv[1])
    print(json.dumps(found) if "--json" in sys.argv else found)
