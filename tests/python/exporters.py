"""exporters.py make|judge|check PATH: forms that exporters write and small test models seldom have, as found in models that packages ship.

make:  NAME.onnx and NAME.npz (40 samples, the first axis counts them) for each.
check: of a file, whether onnx finds it sound.
judge: {name: [SQNR in dB of NAME.int8.onnx against NAME.onnx in ONNX Runtime, nodes of the outermost graph that are Ifs]}
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(7)
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def info(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def model(nodes, inputs, outputs, constants, opset=17):
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def body(nodes, outputs):
    return helper.make_graph(nodes, "body", [], [helper.make_empty_tensor_value_info(o) for o in outputs])


def shared_weight():
    """One filter bank over three octaves of a signal (a constant-Q transform): several nodes read one weight, and one bias."""
    nodes, x = [], "x"
    for i in range(3):
        nodes += [
            node("Conv", [x, "bank", "level"], [f"c{i}"], name=f"conv_{i}", pads=[3, 3], strides=[2**(2 - i)]),
            node("AveragePool", [x], [f"x{i}"], name=f"pool_{i}", kernel_shape=[2], strides=[2]),
        ]
        x = f"x{i}"
    nodes.append(node("Concat", ["c0", "c1", "c2"], ["y"], name="concat", axis=1))
    return model(nodes, [info("x", [1, 1, 64])], [info("y", [1, 12, 16])], {"bank": weight(4, 1, 7), "level": weight(4)}), {"x": RNG.standard_normal((40, 1, 1, 64))}


def shared_constant():
    """A constant that two nodes read, each in the codes of its other operand."""
    nodes = [
        node("Max", ["x", "c"], ["a"], name="first"),
        node("MatMul", ["a", "w"], ["m"], name="product"),
        node("Max", ["m", "c"], ["b"], name="second"),
        node("Mul", ["b", "a"], ["y"], name="gate"),
    ]
    return model(nodes, [info("x", [1, 4, 8])], [info("y", [1, 4, 8])], {"c": weight(4, 8) - np.float32(0.5), "w": weight(8, 8)}), {"x": RNG.standard_normal((40, 1, 4, 8))}


def bounded_softmax():
    """A softmax spelled out by jax: the largest number, and −∞ where there is none, is taken off."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"], name="product"),
        node("ReduceMax", ["m"], ["top"], name="largest", axes=[-1], keepdims=1),
        node("Max", ["least", "top"], ["most"], name="bounded"),
        node("Sub", ["m", "most"], ["d"], name="difference"),
        node("Exp", ["d"], ["e"], name="exp"),
        node("ReduceSum", ["e", "last"], ["s"], name="sum", keepdims=1),
        node("Div", ["e", "s"], ["y"], name="share"),
    ]
    constants = {"w": weight(8, 8), "least": np.float32(-np.inf), "last": np.array([-1])}
    return model(nodes, [info("x", [1, 4, 8])], [info("y", [1, 4, 8])], constants), {"x": RNG.standard_normal((40, 1, 4, 8))}


def anchors():
    """A detector's boxes. Grid and strides are made from the shape of what is decoded: above zero, and constant once shapes are."""
    nodes = [
        node("Conv", ["x", "w"], ["f"], name="head", strides=[8, 8]),
        node("Shape", ["f"], ["dims"], name="shape"),
        node("Gather", ["dims", "three"], ["width"], name="width"),
        node("Range", ["zero", "width", "one"], ["steps"], name="range"),
        node("Cast", ["steps"], ["grid"], name="cast", to=FLOAT),
        node("Add", ["grid", "half"], ["centre"], name="centre"),
        node("Expand", ["stride", "dims"], ["strides"], name="strides"),
        node("Mul", ["f", "steep"], ["tall"], name="tall"),
        node("Exp", ["tall"], ["size"], name="size"),
        node("Mul", ["size", "strides"], ["sized"], name="sized"),
        node("Add", ["sized", "centre"], ["y"], name="placed"),
    ]
    constants = {
        "w": weight(4, 3, 8, 8) * 0.1, "three": np.array(3), "zero": np.array(0), "one": np.array(1), "half": np.float32(0.5),
        "stride": np.full((1, 1, 1, 1), 8, np.float32), "steep": np.float32(10),
    }
    return model(nodes, [info("x", [1, 3, "h", "w"])], [info("y", [1, 4, "a", "b"])], constants), {"x": RNG.standard_normal((40, 1, 3, 64, 64))}


def above_zero():
    """Activations far from zero, of either sign."""
    nodes = [
        node("Conv", ["x", "w"], ["f"], name="conv", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["f"], ["g"], name="sigmoid"),
        node("Add", ["g", "up"], ["high"], name="high"),
        node("Mul", ["high", "down"], ["low"], name="low"),
        node("GlobalAveragePool", ["low"], ["p"], name="pool"),
        node("Sub", ["low", "p"], ["y"], name="rest"),
    ]
    constants = {"w": weight(4, 3, 3, 3) * 4, "up": np.float32(2), "down": np.float32(-1.5)}
    return model(nodes, [info("x", [1, 3, 8, 8])], [info("y", [1, 4, 8, 8])], constants), {"x": RNG.standard_normal((40, 1, 3, 8, 8))}


def largest():
    """The largest number of each channel, at an opset at which it takes no codes."""
    nodes = [
        node("Conv", ["x", "w"], ["f"], name="conv", pads=[1, 1, 1, 1]),
        node("ReduceMax", ["f"], ["s"], name="largest", axes=[2, 3], keepdims=0),
        node("Gemm", ["s", "v", "b"], ["y"], name="head"),
    ]
    constants = {"w": weight(6, 3, 3, 3), "v": weight(6, 5), "b": weight(5, 1)[:, 0]}
    return model(nodes, [info("x", [1, 3, 8, 8])], [info("y", [1, 5])], constants, opset=9), {"x": RNG.standard_normal((40, 1, 3, 8, 8))}


def squeeze_all():
    """Every axis of one element goes, whichever those are."""
    nodes = [
        node("Conv", ["x", "w"], ["f"], name="conv", pads=[1, 1, 1, 1]),
        node("GlobalMaxPool", ["f"], ["p"], name="pool"),
        node("Squeeze", ["p"], ["s"], name="squeeze"),
        node("Unsqueeze", ["s", "first"], ["r"], name="row"),
        node("Gemm", ["r", "v"], ["y"], name="head"),
    ]
    constants = {"w": weight(6, 3, 3, 3), "first": np.array([0]), "v": weight(6, 5)}
    return model(nodes, [info("x", ["n", 3, 8, 8])], [info("y", ["n", 5])], constants), {"x": RNG.standard_normal((40, 1, 3, 8, 8))}


def squeeze_if():
    """torch.squeeze, exported: the axis goes where it is one long, which shapes tell."""
    squeeze = body([node("Constant", [], ["axes"], name="axes", value_ints=[2]), node("Squeeze", ["f", "axes"], ["s"], name="squeeze")], ["s"])
    keep = body([node("Identity", ["f"], ["k"], name="keep")], ["k"])
    nodes = [
        node("Conv", ["x", "w"], ["f"], name="conv"),
        node("Shape", ["f"], ["dims"], name="shape"),
        node("Gather", ["dims", "two"], ["length"], name="length"),
        node("Equal", ["length", "one"], ["single"], name="single"),
        node("If", ["single"], ["r"], name="if", then_branch=squeeze, else_branch=keep),
        node("MatMul", ["r", "v"], ["y"], name="product"),
    ]
    constants = {"w": weight(8, 4, 8), "two": np.array(2), "one": np.array(1), "v": weight(8, 6)}
    return model(nodes, [info("x", [1, 4, "n"])], [info("y", ["a", "b"])], constants), {"x": RNG.standard_normal((40, 1, 4, 8))}


def known_if():
    """The same with sizes that the file declares: the condition is a constant, and the branch, which holds a layer, can be quantized."""
    made, data = squeeze_if()
    branch = body([node("Squeeze", ["f", "two_"], ["s_"], name="squeeze"), node("MatMul", ["s_", "u"], ["s"], name="inner")], ["s"])
    made.graph.node[4].attribute[0].g.CopyFrom(branch)
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    made.graph.initializer.extend([numpy_helper.from_array(np.array([2]), "two_"), numpy_helper.from_array(weight(8, 8), "u")])
    return made, data


def rate_if():
    """A model for two sampling rates: which branch is taken is an input, and the branches read constants from around them."""
    def branch(i):
        nodes = [node("Pad", ["x", "pads"], [f"p{i}"], name=f"pad{i}"), node("Conv", [f"p{i}", f"w{i}"], [f"b{i}"], name=f"conv{i}", strides=[2])]
        return body(nodes, [f"b{i}"])
    nodes = [
        node("Equal", ["rate", "fast"], ["is_fast"], name="compare"),
        node("If", ["is_fast"], ["f"], name="if", then_branch=branch(0), else_branch=branch(1)),
        node("Conv", ["f", "w"], ["y"], name="conv"),
    ]
    constants = {"fast": np.array(16000), "pads": np.array([0, 0, 0, 0, 0, 2]), "w0": weight(4, 1, 4), "w1": weight(4, 1, 4), "w": weight(6, 4, 1)}
    inputs = [info("x", [1, 1, 32]), info("rate", [], INT)]
    return model(nodes, inputs, [info("y", [1, 6, "n"])], constants), {"x": RNG.standard_normal((40, 1, 1, 32)), "rate": np.full(40, 16000)}


def positions():
    """Rotary and sinusoidal positions: an outer product by Einsum, whose shape later Reshapes ask for."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"], name="product"),
        node("Shape", ["x"], ["dims"], name="shape"),
        node("Gather", ["dims", "one"], ["length"], name="length"),
        node("Range", ["zero", "length", "one_"], ["steps"], name="range"),
        node("Cast", ["steps"], ["at"], name="cast", to=FLOAT),
        node("Einsum", ["at", "rates"], ["angles"], name="angles", equation="i, j -> i j"),
        node("Sin", ["angles"], ["sin"], name="sin"),
        node("Cos", ["angles"], ["cos"], name="cos"),
        node("Concat", ["sin", "cos"], ["places"], name="places", axis=-1),
        node("Add", ["m", "places"], ["a"], name="placed"),
        node("Shape", ["a"], ["dims_"], name="shape_"),
        node("Gather", ["dims_", "one"], ["length_"], name="length_"),
        node("Unsqueeze", ["length_", "zero_"], ["length__"], name="length__"),
        node("Concat", ["minus", "length__", "heads"], ["to"], name="to", axis=0),
        node("Reshape", ["a", "to"], ["r"], name="reshape"),
        node("Transpose", ["r"], ["y"], name="transpose", perm=[0, 2, 1, 3]),
    ]
    constants = {
        "w": weight(8, 8), "one": np.array(1), "zero": np.array(0), "one_": np.array(1), "zero_": np.array([0]), "minus": np.array([-1]),
        "heads": np.array([2, 4]), "rates": np.array([1, 0.1, 0.01, 0.001], np.float32),
    }
    return model(nodes, [info("x", [1, "n", 8])], [info("y", [1, 2, "n", 4])], constants), {"x": RNG.standard_normal((40, 1, 10, 8))}


def log_power():
    """Loudness of a signal by bands, as in models that hear: what is quiet counts as much as what is loud, once there is a Log."""
    nodes = [
        node("Conv", ["x", "bank"], ["f"], name="bank", strides=[8]),
        node("Reshape", ["f", "split"], ["f_"], name="split"),
        node("Mul", ["f_", "f_"], ["power"], name="power"),
        node("ReduceSum", ["power", "pairs"], ["energy"], name="energy", keepdims=0),
        node("Add", ["energy", "least"], ["some"], name="some"),
        node("Log", ["some"], ["loud"], name="loud"),
        node("Conv", ["loud", "w"], ["y"], name="conv"),
    ]
    constants = {"bank": weight(8, 1, 16), "split": np.array([1, 4, 2, -1]), "pairs": np.array([2]), "least": np.float32(1e-6), "w": weight(6, 4, 1)}
    loudness = np.exp(0.5 * RNG.standard_normal((40, 1, 1, 1)))
    data = RNG.standard_normal((40, 1, 1, 128)) * loudness
    return model(nodes, [info("x", [1, 1, 128])], [info("y", [1, 6, 15])], constants), {"x": data}


def log_share():
    """Logarithms of a Softmax's shares, most of which are next to nothing."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"], name="product"),
        node("Softmax", ["m"], ["p"], name="share", axis=-1),
        node("Log", ["p"], ["y"], name="log"),
    ]
    return model(nodes, [info("x", [1, 4, 8])], [info("y", [1, 4, 12])], {"w": 6 * weight(8, 12)}), {"x": RNG.standard_normal((40, 1, 4, 8))}


def nameless():
    """Paddle: every size that is not known is called ?."""
    nodes = [node("Conv", ["x", "w"], ["f"], name="conv", pads=[1, 1, 1, 1]), node("Relu", ["f"], ["y"], name="relu")]
    made = model(nodes, [info("x", ["?", 4, "?", "?"])], [info("y", ["?", 8, "?", "?"])], {"w": weight(8, 4, 3, 3)})
    return made, {"x": RNG.standard_normal((40, 1, 4, 6, 8))}


def attention(masking, constants, length=12, opset=14):
    """One head of attention; `masking` makes `masked` of `scores`."""
    nodes = [
        node("MatMul", ["x", "wq"], ["q"], name="queries"),
        node("MatMul", ["x", "wk"], ["k"], name="keys"),
        node("Transpose", ["k"], ["kt"], name="turned", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        *masking,
        node("Softmax", ["masked"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["x", "wv"], ["v"], name="values"),
        node("MatMul", ["p", "v"], ["y"], name="mixed"),
    ]
    weights = {name: weight(16, 16) for name in ("wq", "wk", "wv")}
    made = model(nodes, [info("x", [1, length, 16])], [info("y", [1, length, 16])], weights | constants, opset)
    return made, {"x": RNG.standard_normal((40, 1, length, 16))}


def causal(fill, length=12):
    return np.where(np.triu(np.ones((1, length, length), bool), 1), np.float32(fill), np.float32(0))


def infinite_mask():
    """A causal mask of −∞, a constant."""
    return attention([node("Add", ["scores", "mask"], ["masked"], name="mask_")], {"mask": causal(-np.inf)})


def sloped_mask():
    """Distances that count less the farther they are (ALiBi), in one constant with a causal mask."""
    away = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    return attention([node("Add", ["scores", "mask"], ["masked"], name="mask_")], {"mask": causal(np.finfo(np.float32).min) - np.float32(0.5) * away.astype(np.float32)})


def filled_mask():
    """A causal mask made by Where."""
    masking = [node("Where", ["later", "least", "none"], ["mask"], name="fill"), node("Add", ["scores", "mask"], ["masked"], name="mask_")]
    return attention(masking, {"later": causal(1) > 0, "least": np.float32(-np.inf), "none": np.float32(0)})


def two_masks():
    """A causal mask, and one of what is padded, which are added one after the other and to other shapes: −3.4e38 twice is −∞."""
    masking = [
        node("Add", ["scores", "causal"], ["first"], name="causal_"),
        node("Reshape", ["first", "heads"], ["first_"], name="to_heads"),
        node("ReduceSum", ["x", "features"], ["sum"], name="sum", keepdims=0),
        node("Less", ["sum", "rare"], ["padded"], name="padded_"),
        node("Unsqueeze", ["padded", "middle"], ["padded__"], name="spread"),
        node("Where", ["padded__", "least", "none"], ["pad_mask"], name="fill"),
        node("Add", ["first_", "pad_mask"], ["second"], name="pad_mask_"),
        node("Reshape", ["second", "flat"], ["masked"], name="from_heads"),
    ]
    least = np.finfo(np.float32).min
    return attention(masking, {
        "causal": causal(least), "heads": np.array([1, 1, 12, 12]), "flat": np.array([1, 12, 12]), "features": np.array([2]), "rare": np.float32(-4),
        "middle": np.array([1, 2]), "least": least, "none": np.float32(0),
    })


def stacked_weights():
    """A matrix for each position, multiplied at once."""
    nodes = [
        node("Transpose", ["x"], ["t"], name="turn", perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], ["m"], name="product"),
        node("Transpose", ["m"], ["y"], name="back", perm=[1, 0, 2]),
    ]
    return model(nodes, [info("x", [2, 6, 8])], [info("y", [2, 6, 10])], {"w": weight(6, 8, 10)}), {"x": RNG.standard_normal((40, 2, 6, 8))}


def counted_positions():
    """Positions counted from what is not padded, as of the rows of a table."""
    nodes = [
        node("Cast", ["mask"], ["whole"], name="cast", to=INT),
        node("CumSum", ["whole", "one"], ["count"], name="count"),
        node("Mul", ["count", "whole"], ["at"], name="at"),
        node("Gather", ["table", "at"], ["places"], name="places"),
        node("Add", ["x", "places"], ["a"], name="placed"),
        node("MatMul", ["a", "w"], ["y"], name="product"),
    ]
    mask = (np.arange(9) < RNG.integers(3, 10, (40, 1, 1))).astype(np.int32)
    made = model(nodes, [info("x", [1, 9, 8]), info("mask", [1, 9], TensorProto.INT32)], [info("y", [1, 9, 8])], {"one": np.array(1), "table": weight(16, 8), "w": weight(8, 8)})
    return made, {"x": RNG.standard_normal((40, 1, 9, 8)), "mask": mask}


def standardized_weights():
    """Weights that a batch normalization in training standardizes, whose other outputs nobody reads."""
    nodes = [
        node("BatchNormalization", ["raw", "gain", "zeros", "zeros", "ones"], ["w_", "mean", "variance"], name="standardize", training_mode=1, momentum=1.0),
        node("Reshape", ["w_", "shape"], ["w"], name="shaped"),
        node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    constants = {
        "raw": weight(1, 6, 27), "gain": np.full(6, 0.2, np.float32), "zeros": np.zeros(6, np.float32), "ones": np.ones(6, np.float32), "shape": np.array([6, 3, 3, 3]),
    }
    return model(nodes, [info("x", [1, 3, 8, 8])], [info("y", [1, 6, 8, 8])], constants, opset=15), {"x": RNG.standard_normal((40, 1, 3, 8, 8))}


def every_second():
    """Tokens on a grid, of which every second of either axis is taken."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"], name="product"),
        node("Reshape", ["m", "grid"], ["g"], name="to_grid"),
        node("Slice", ["g", "first", "last", "one", "two"], ["r"], name="rows"),
        node("Slice", ["r", "first", "last", "two", "two"], ["c"], name="columns"),
        node("Reshape", ["c", "tokens"], ["t"], name="to_tokens"),
        node("MatMul", ["t", "v"], ["y"], name="head"),
    ]
    constants = {
        "w": weight(8, 8), "v": weight(8, 8), "grid": np.array([1, 6, 6, 8]), "tokens": np.array([1, 9, 8]), "first": np.array([0]),
        "last": np.array([2**63 - 1]), "one": np.array([1]), "two": np.array([2]),
    }
    return model(nodes, [info("x", [1, 36, 8])], [info("y", [1, 9, 8])], constants), {"x": RNG.standard_normal((40, 1, 36, 8))}


def padded_layers():
    """Sides that are padded unequally: with zeros before a layer, and with −∞ before a pool."""
    nodes = [
        node("Pad", ["x", "unequal"], ["p"], name="pad"),
        node("Conv", ["p", "w"], ["f"], name="conv", strides=[2, 2]),
        node("Pad", ["f", "unequal", "least"], ["q"], name="pad_"),
        node("MaxPool", ["q"], ["m"], name="pool", kernel_shape=[3, 3], strides=[2, 2]),
        node("Conv", ["m", "v"], ["y"], name="head"),
    ]
    constants = {"unequal": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "least": np.float32(-np.inf), "w": weight(6, 3, 3, 3), "v": weight(5, 6, 1, 1)}
    return model(nodes, [info("x", [1, 3, 16, 16])], [info("y", [1, 5, 4, 4])], constants), {"x": RNG.standard_normal((40, 1, 3, 16, 16))}


MASKED = [infinite_mask, sloped_mask, filled_mask, two_masks]
FORMS = [*MASKED, stacked_weights, counted_positions, standardized_weights, every_second, padded_layers]
FORMS += [log_power, log_share, shared_weight, shared_constant, bounded_softmax, anchors, above_zero, largest, squeeze_all, squeeze_if, known_if, rate_if, positions, nameless]


def make(folder):
    for form in FORMS:
        made, data = form()
        onnx.checker.check_model(made)
        onnx.save(made, folder / f"{form.__name__}.onnx")
        np.savez(folder / f"{form.__name__}.npz", **{k: v.astype(np.float32 if v.dtype == np.float64 else v.dtype) for k, v in data.items()})


def judge(folder):
    told = {}
    for form in FORMS:
        name = form.__name__
        data = np.load(folder / f"{name}.npz")
        for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            options.log_severity_level = 3
            float_, int8 = (ort.InferenceSession(str(folder / f"{name}{end}"), options, providers=["CPUExecutionProvider"]) for end in (".onnx", ".int8.onnx"))
            signal = noise = 0.0
            for i in range(40):
                feed = {k: np.asarray(v[i]) for k, v in data.items()}
                [x], [y] = float_.run(None, feed), int8.run(None, feed)
                signal, noise = signal + float((x.astype(float) ** 2).sum()), noise + float(((x - y).astype(float) ** 2).sum())
            db = 10 * np.log10(signal / max(noise, 1e-30 * signal))
            told[name] = min(db, told.get(name, (np.inf,))[0]), sum(n.op_type == "If" for n in onnx.load(folder / f"{name}.int8.onnx").graph.node)
    print(json.dumps(told))


def check(path):
    onnx.checker.check_model(str(path), full_check=True)


if __name__ == "__main__":
    {"make": make, "judge": judge, "check": check}[sys.argv[1]](Path(sys.argv[2]))
