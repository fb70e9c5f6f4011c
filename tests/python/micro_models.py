"""Micro-models: one small graph for each form that converters are known to get wrong, with random weights. Eight samples calibrate, sixteen others judge.

The list is that of a survey of converters; weights and samples are N(0, 1) of fixed seeds, so every run judges the same files. What eight samples hold of
the tails of their distribution is luck worth a decibel: they are drawn several times, and figures are means over the draws.
"""

import zlib

import numpy as np
from onnx import TensorProto as T
from onnx import helper, numpy_helper, shape_inference

OPSET = 17
# Seeds and numbers of samples.
CALIBRATE, JUDGE = [(seed, 8) for seed in (1, 2, 3, 4)], (99, 16)


class Graph:
    """A graph built up node by node."""

    def __init__(self, name, inputs, opset=OPSET):
        self.name, self.inputs, self.opset = name, inputs, opset
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.nodes, self.constants = [], []

    def put(self, array, name):
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def floats(self, *shape, name, scale=1.0):
        return self.put((self.rng.standard_normal(shape) * scale).astype(np.float32), name)

    def ints(self, *values, name):
        return self.put(np.array(values, np.int64), name)

    def one(self, op, inputs, out, **attrs):
        return self.many(op, inputs, [out], **attrs)[0]

    def many(self, op, inputs, outs, **attrs):
        self.nodes.append(helper.make_node(op, inputs, outs, name=f"/{outs[0]}", **attrs))
        return outs

    def conv(self, x, out, cin, cout, k=3, groups=1, bias=True, **attrs):
        fan = cin // groups * k * k
        w = self.floats(cout, cin // groups, k, k, name=f"{out}.w", scale=fan**-0.5)
        b = [self.floats(cout, name=f"{out}.b", scale=0.1)] if bias else []
        return self.one("Conv", [x, w, *b], out, kernel_shape=[k, k], pads=[k // 2] * 4, group=groups, **attrs)

    def model(self, *outputs):
        info = helper.make_tensor_value_info
        inputs = [info(n, t, list(s)) for n, (t, s) in self.inputs.items()]
        graph = helper.make_graph(self.nodes, self.name, inputs, [info(o, T.FLOAT, None) for o in outputs], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9 if self.opset > 18 else 8)
        # Outputs have their shapes, and nothing else has.
        inferred = shape_inference.infer_shapes(model).graph.output
        for own, known in zip(model.graph.output, inferred):
            own.CopyFrom(known)
        return model


IMAGE = {"x": (T.FLOAT, (1, 8, 16, 16))}
TOKENS = {"x": (T.FLOAT, (1, 16, 32))}


def conv_bn_relu():
    g = Graph("conv_bn_relu", IMAGE)
    c = g.conv("x", "c", 8, 8, bias=False)
    positive = lambda name: g.put(g.rng.uniform(0.5, 1.5, 8).astype(np.float32), name)
    norm = [positive("gamma"), g.floats(8, name="beta", scale=0.3), g.floats(8, name="mean", scale=0.3), positive("var")]
    r = g.one("Relu", [g.one("BatchNormalization", [c, *norm], "n")], "r")
    return g.model(g.conv(r, "y", 8, 8))


def conv_clip6_dw():
    g = Graph("conv_clip6_dw", IMAGE)
    limits = [g.put(np.array(v, np.float32), n) for v, n in ((0, "low"), (6, "high"))]
    c = g.one("Clip", [g.conv("x", "c", 8, 8), *limits], "r")
    return g.model(g.conv(c, "y", 8, 8, groups=8))


def gemm():
    g = Graph("gemm", {"x": (T.FLOAT, (1, 16))})
    r = g.one("Relu", [g.one("Gemm", ["x", g.floats(16, 16, name="w", scale=0.25), g.floats(16, name="b", scale=0.1)], "h", transB=1)], "r")
    return g.model(g.one("Gemm", [r, g.floats(16, 8, name="v", scale=0.25), g.floats(8, name="c", scale=0.1)], "y"))


def matmul_w_add():
    g = Graph("matmul_w_add", TOKENS)
    p = g.one("MatMul", ["x", g.floats(32, 32, name="w", scale=32**-0.5)], "p")
    return g.model(g.one("Add", [p, g.floats(32, name="b", scale=0.1)], "y"))


def attn():
    g = Graph("attn", TOKENS)
    q, k, v = (g.one("MatMul", ["x", g.floats(32, 16, name=f"w{n}", scale=32**-0.5)], n) for n in "qkv")
    t = g.one("Transpose", [k], "kt", perm=[0, 2, 1])
    s = g.one("Mul", [g.one("MatMul", [q, t], "s"), g.put(np.array(0.25, np.float32), "scale")], "m")
    return g.model(g.one("MatMul", [g.one("Softmax", [s], "p", axis=-1), v], "y"))


def residual():
    g = Graph("residual", IMAGE)
    a = g.one("Relu", [g.conv("x", "a", 8, 8)], "ar")
    b = g.conv(a, "b", 8, 8)
    return g.model(g.one("Relu", [g.one("Add", [a, b], "s")], "y"))


def residual_skip():
    g = Graph("residual_skip", IMAGE)
    return g.model(g.conv(g.one("Add", ["x", g.conv("x", "a", 8, 8)], "s"), "y", 8, 8))


def concat():
    g = Graph("concat", IMAGE)
    joined = g.one("Concat", [g.conv("x", "a", 8, 8), g.conv("x", "b", 8, 8, k=1)], "j", axis=1)
    return g.model(g.conv(joined, "y", 16, 8))


def pools():
    g = Graph("pools", IMAGE)
    p = g.one("MaxPool", [g.conv("x", "c", 8, 8)], "p", kernel_shape=[2, 2], strides=[2, 2])
    a = g.one("AveragePool", [p], "a", kernel_shape=[2, 2], strides=[2, 2])
    return g.model(g.one("Flatten", [g.one("GlobalAveragePool", [g.conv(a, "d", 8, 8)], "gap")], "y"))


def resize():
    g = Graph("resize", IMAGE)
    scales = g.put(np.array([1, 1, 2, 2], np.float32), "scales")
    r = g.one("Resize", [g.conv("x", "c", 8, 8), "", scales], "r", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return g.model(g.conv(r, "y", 8, 8))


def layernorm():
    g = Graph("layernorm", TOKENS)
    ones, beta = g.put(np.ones(32, np.float32), "gamma"), g.floats(32, name="beta", scale=0.1)
    n = g.one("LayerNormalization", ["x", ones, beta], "n", axis=-1)
    return g.model(g.one("MatMul", [n, g.floats(32, 32, name="w", scale=32**-0.5)], "y"))


def gelu20():
    g = Graph("gelu20", TOKENS, opset=20)
    h = g.one("MatMul", ["x", g.floats(32, 64, name="w", scale=32**-0.5)], "h")
    return g.model(g.one("MatMul", [g.one("Gelu", [h], "a"), g.floats(64, 32, name="v", scale=0.125)], "y"))


def gelu_erf():
    g = Graph("gelu_erf", TOKENS)
    number = lambda v, n: g.put(np.array(v, np.float32), n)
    h = g.one("MatMul", ["x", g.floats(32, 64, name="w", scale=32**-0.5)], "h")
    e = g.one("Erf", [g.one("Div", [h, number(2**0.5, "root2")], "d")], "e")
    a = g.one("Mul", [g.one("Mul", [h, g.one("Add", [e, number(1, "one")], "o")], "m"), number(0.5, "half")], "a")
    return g.model(g.one("MatMul", [a, g.floats(64, 32, name="v", scale=0.125)], "y"))


def silu_hswish():
    g = Graph("silu_hswish", IMAGE)
    c = g.conv("x", "c", 8, 8)
    s = g.one("Mul", [c, g.one("Sigmoid", [c], "sg")], "s")
    return g.model(g.conv(g.one("HardSwish", [g.conv(s, "d", 8, 8)], "h"), "y", 8, 8))


def gather_emb():
    g = Graph("gather_emb", {"ids": (T.INT64, (1, 16))})
    e = g.one("Gather", [g.floats(64, 32, name="table", scale=0.1), "ids"], "e", axis=0)
    return g.model(g.one("MatMul", [e, g.floats(32, 32, name="w", scale=32**-0.5)], "y"))


def reshape_tr():
    g = Graph("reshape_tr", IMAGE)
    c = g.conv("x", "c", 8, 8)
    r = g.one("Reshape", [c, g.ints(1, 8, 256, 1, name="shape")], "r")
    s = g.one("Squeeze", [r, g.ints(3, name="axes")], "s")
    t = g.one("Transpose", [s], "t", perm=[0, 2, 1])
    return g.model(g.one("MatMul", [t, g.floats(8, 16, name="w", scale=8**-0.5)], "y"))


def split():
    g = Graph("split", IMAGE)
    a, b = g.many("Split", [g.conv("x", "c", 8, 16)], ["a", "b"], axis=1)
    return g.model(g.conv(g.one("Mul", [a, b], "m"), "y", 8, 8))


def lstm():
    g = Graph("lstm", {"x": (T.FLOAT, (8, 1, 8))})
    w, r = (g.put(g.rng.uniform(-0.3, 0.3, (1, 64, n)).astype(np.float32), name) for n, name in ((8, "w"), (16, "r")))
    b = g.floats(1, 128, name="b", scale=0.1)
    return g.model(g.one("LSTM", ["x", w, r, b], "y", hidden_size=16))


def deconv():
    g = Graph("deconv", IMAGE)
    w, b = g.floats(8, 8, 2, 2, name="w", scale=0.35), g.floats(8, name="b", scale=0.1)
    return g.model(g.one("ConvTranspose", ["x", w, b], "y", kernel_shape=[2, 2], strides=[2, 2]))


def conv_nobias_out():
    g = Graph("conv_nobias_out", IMAGE)
    return g.model(g.conv("x", "y", 8, 8, bias=False))


CASES = [attn, concat, conv_bn_relu, conv_clip6_dw, conv_nobias_out, deconv, gather_emb, gelu20, gelu_erf, gemm]
CASES += [layernorm, lstm, matmul_w_add, pools, reshape_tr, residual, residual_skip, resize, silu_hswish, split]


def samples(model, seed, count):
    """`count` feeds of a model: N(0, 1), and whole numbers below 64."""
    rng = np.random.default_rng(seed)
    draw = lambda shape, t: rng.integers(0, 64, shape) if t == T.INT64 else rng.standard_normal(shape).astype(np.float32)
    shape = lambda v: [d.dim_value for d in v.type.tensor_type.shape.dim]
    return [{v.name: draw(shape(v), v.type.tensor_type.elem_type) for v in model.graph.input} for _ in range(count)]
