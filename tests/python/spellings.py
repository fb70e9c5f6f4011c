"""spellings.py make DIR: the micro-models, and small ones for operators on codes, NAME.onnx, with samples that calibrate, NAME.npz. Prints [NAME …].

spellings.py compare DIR: DIR/NAME.qdq.onnx beside DIR/NAME.qoperator.onnx in ONNX Runtime with its optimisations off, on other samples.
Prints {NAME: {"steps": largest distance of the outputs, in steps of the output's scale, "ops": {OP: count}, "left": [ops between codes that stayed in QDQ]} …}.

spellings.py io DIR: DIR/NAME.qdq.onnx beside DIR/NAME.io.onnx, whose inputs and outputs are codes as its metadata says.
Prints {NAME: {"inputs": [types], "outputs": [types], "largest": largest distance of the outputs as real numbers} …}.

spellings.py dynamic DIR TAG: DIR/NAME.TAG.onnx beside the float model, and beside what ONNX Runtime's own dynamic quantizer makes of it, weights per channel.
Prints {NAME: {"sqnr_db", "rival": its, "ops": {OP: count}, "fused": {OP: count} of the operators after optimisation} …}.

spellings.py old DIR NAME TAG: DIR/NAME.TAG.onnx in ONNX Runtime with its optimisations off, on the samples that its report says judged.
Prints {"sqnr_db", "opset": of ONNX's own domain, "own": Q and DQ of it, "microsoft": those of com.microsoft}.
"""

import collections
import json
import logging
import pathlib
import re
import sys

import micro_models as micro
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic

logging.disable(logging.WARNING)


def activations():
    g = micro.Graph("activations", micro.IMAGE)
    a = g.one("LeakyRelu", [g.conv("x", "c", 8, 8)], "a", alpha=0.125)
    b = g.one("Sigmoid", [g.conv(a, "d", 8, 8)], "b")
    return g.model(g.conv(b, "y", 8, 8))


def numbers():
    g = micro.Graph("numbers", micro.IMAGE)
    number = lambda v, n: g.put(np.array(v, np.float32), n)
    a = g.one("Add", [number([0.375], "three_eighths"), g.one("Mul", [g.conv("x", "c", 8, 8), number(-1.7, "factor")], "m")], "a")
    b = g.one("Div", [g.one("Sub", [a, number([[[[0.21]]]], "taken")], "s"), number(0.25, "quarter")], "b")
    return g.model(g.conv(b, "y", 8, 8))


def moves():
    g = micro.Graph("moves", micro.IMAGE)
    around, nothing = g.ints(0, 0, 1, 1, 0, 0, 1, 1, name="around"), g.put(np.array(0, np.float32), "nothing")
    n = g.one("Pad", [g.conv("x", "c", 8, 8), around], "n")
    p = g.one("Pad", [n, g.ints(0, 0, 0, 0, 0, 0, 2, 2, name="behind"), nothing], "p")
    s = g.one("Slice", [p, g.ints(1, name="start"), g.ints(19, name="end"), g.ints(2, name="axis")], "s")
    h = g.one("Gather", [s, g.ints(*range(7, -1, -1), name="indices")], "h", axis=1)
    u = g.one("Squeeze", [g.one("Unsqueeze", [h, g.ints(0, name="zero")], "u"), g.ints(0, name="nought")], "q")
    d = g.one("SpaceToDepth", [u], "d", blocksize=2)
    e = g.one("DepthToSpace", [g.conv(d, "k", 32, 32, k=1)], "e", blocksize=2)
    t = g.one("Tile", [e, g.ints(1, 2, 1, 1, name="repeats")], "t")
    return g.model(g.conv(t, "y", 16, 8))


def lines():
    g = micro.Graph("lines", {"x": (T.FLOAT, (2, 8, 32))})
    conv = lambda x, out, groups, **attrs: g.one("Conv", [x, g.floats(8, 8 // groups, 3, name=f"{out}.w", scale=0.3)], out, group=groups, **attrs)
    c = g.one("Relu", [conv("x", "c", 8, auto_pad="SAME_UPPER", strides=[2])], "r")
    d = conv(c, "d", 2, pads=[2, 2], dilations=[2])
    a = g.one("AveragePool", [d], "a", kernel_shape=[3], pads=[1, 1], count_include_pad=1)
    return g.model(g.one("GlobalAveragePool", [a], "y"))


def towers():
    g = micro.Graph("towers", micro.IMAGE)
    a, b = g.one("Sigmoid", [g.conv("x", "a", 8, 8)], "p"), g.conv("x", "b", 8, 8)
    c = g.one("AveragePool", [g.one("Mul", [a, b], "m")], "c", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
    return g.model(g.one("Softmax", [g.one("Flatten", [g.one("GlobalAveragePool", [c], "gap")], "f")], "y", axis=1))


CASES = [*micro.CASES, activations, numbers, moves, lines, towers]


def session(path, optimized=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED if optimized else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def make(folder):
    for case in CASES:
        model = case()
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{case.__name__}.onnx")
        feeds = micro.samples(model, 1, 8)
        # One axis more than the input has: each index is one whole sample.
        np.savez(folder / f"{case.__name__}.npz", **{name: np.stack([f[name] for f in feeds]) for name in feeds[0]})
    print(json.dumps([case.__name__ for case in CASES]))


def step(model):
    """The scale of what makes the model's output."""
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    return float(constants[last.input[1]]) if last.op_type == "DequantizeLinear" else None


def left_between_codes(model):
    made = {t: n.op_type for n in model.graph.node for t in n.output}
    read = collections.defaultdict(list)
    for n in model.graph.node:
        for t in n.input:
            read[t].append(n.op_type)
    between = lambda n: made.get(n.input[0]) == "DequantizeLinear" and "QuantizeLinear" in read[n.output[0]]
    return [n.op_type for n in model.graph.node if between(n)]


def compare(folder):
    rows = {}
    for case in CASES:
        name = case.__name__
        qdq, codes = (folder / f"{name}.{form}.onnx" for form in ("qdq", "qoperator"))
        model = onnx.load(codes)
        onnx.checker.check_model(model)
        feeds = micro.samples(onnx.load(folder / f"{name}.onnx"), *micro.JUDGE)
        a, b = (np.stack([s.run(None, f)[0] for f in feeds]) for s in map(session, (qdq, codes)))
        scale = step(onnx.load(qdq))
        rows[name] = {
            "steps": float(np.abs(a - b).max() / scale) if scale else None,
            "largest": float(np.abs(a - b).max()),
            "ops": counted(model),
            "left": left_between_codes(model),
        }
    print(json.dumps(rows))


def io(folder):
    rows = {}
    for case in CASES:
        name = case.__name__
        model = onnx.load(folder / f"{name}.io.onnx")
        onnx.checker.check_model(model)
        said = {p.key.removeprefix("requant.io."): json.loads(p.value) for p in model.metadata_props if p.key.startswith("requant.io.")}

        def codes(tensor, x):
            m = said[tensor]
            limits = np.iinfo(m["dtype"])
            return np.clip(np.round(x / np.float32(m["scale"])) + m["zero_point"], limits.min, limits.max).astype(m["dtype"])

        def real(tensor, q):
            return (q.astype(np.float32) - said[tensor]["zero_point"]) * np.float32(said[tensor]["scale"])

        plain, coded = session(folder / f"{name}.qdq.onnx"), session(folder / f"{name}.io.onnx")
        largest = 0.0
        for feed in micro.samples(onnx.load(folder / f"{name}.onnx"), *micro.JUDGE):
            wanted = plain.run(None, feed)
            got = coded.run(None, {k: codes(k, x) if k in said else x for k, x in feed.items()})
            got = [real(o.name, y) if o.name in said else y for o, y in zip(coded.get_outputs(), got)]
            largest = max(largest, *(float(np.abs(a - b).max()) for a, b in zip(wanted, got)))
        types = lambda values: [v.type for v in values]
        rows[name] = {"inputs": types(coded.get_inputs()), "outputs": types(coded.get_outputs()), "largest": largest}
    print(json.dumps(rows))


def counted(model):
    return dict(sorted(collections.Counter(n.op_type for n in model.graph.node).items()))


def dynamic(folder, tag):
    rows = {}
    for case in CASES:
        name = case.__name__
        plain, ours, rival, fused = (folder / f"{name}{end}.onnx" for end in ("", f".{tag}", ".rival", ".fused"))
        onnx.checker.check_model(onnx.load(ours))
        feeds = micro.samples(onnx.load(plain), *micro.JUDGE)
        quantize_dynamic(str(plain), str(rival), per_channel=True)
        run = lambda s: np.concatenate([s.run(None, f)[0].astype(np.float64).ravel() for f in feeds])
        wanted = run(session(plain))
        sqnr_db = lambda got: float(10 * np.log10((wanted**2).sum() / max(((wanted - got) ** 2).sum(), 1e-30)))
        session(ours, fused)
        rows[name] = {
            "sqnr_db": round(sqnr_db(run(session(ours))), 2),
            "rival": round(sqnr_db(run(session(rival))), 2),
            "ops": counted(onnx.load(ours)),
            "fused": counted(onnx.load(fused)),
        }
    print(json.dumps(rows))


def old(folder, name, tag):
    path = folder / f"{name}.{tag}.onnx"
    model = onnx.load(path)
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    judged = json.loads((folder / f"{name}.{tag}.report.json").read_text())["data"]["validation"]
    which = [int(re.search(r"\[(\d+)\]$", sample)[1]) for sample in judged]
    data = np.load(folder / f"{name}.npz")
    run = lambda s: np.concatenate([s.run(None, {k: data[k][i] for k in data.files})[0].astype(np.float64).ravel() for i in which])
    wanted, got = run(session(folder / f"{name}.onnx")), run(session(path))
    said = {
        "sqnr_db": float(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum())),
        "opset": next(o.version for o in model.opset_import if o.domain == ""),
        "own": sum(n.domain == "" for n in pairs),
        "microsoft": sum(n.domain == "com.microsoft" for n in pairs),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    {"make": make, "compare": compare, "io": io, "dynamic": dynamic, "old": old}[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
