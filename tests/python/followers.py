"""followers.py DIR: layers with each function that may stand behind them, LAYER_FUNCTION.onnx, with samples that calibrate, LAYER_FUNCTION.npz.

Prints [LAYER_FUNCTION …].
"""

import json
import pathlib
import sys

import micro_models as micro
import numpy as np
import onnx

# The layer, and where the function stands: between two; `bare`: behind a MatMul without bias; `skip`: behind a sum; `last`: at the end; `joined`: before a
# Concat.
LAYERS = {"gemm": {"x": (micro.T.FLOAT, (1, 32))}, "matmul": micro.TOKENS, "bare": micro.TOKENS, **dict.fromkeys(["conv", "skip", "last", "joined"], micro.IMAGE)}


def layer(g, kind, x, out, channels=8):
    """A layer with its bias."""
    if kind == "skip":
        return g.one("Add", [g.conv(x, out, 8, 8), x], f"{out}.sum")
    if LAYERS[kind] is micro.IMAGE:
        return g.conv(x, out, channels, 8)
    w, b = g.floats(32, 32, name=f"{out}.w", scale=32**-0.5), g.floats(32, name=f"{out}.b", scale=0.1)
    if kind == "gemm":
        return g.one("Gemm", [x, w, b], out)
    if kind == "bare":
        return g.one("MatMul", [x, w], out)
    return g.one("Add", [g.one("MatMul", [x, w], f"{out}.p"), b], out)


def number(v):
    return lambda g, name: g.put(np.array(v, np.float32), name)


def op(name, *constants, **attrs):
    """A function that is one operator, and takes these constants too; None stands for an input that is left out."""
    return lambda g, x: g.one(name, [x, *("" if c is None else number(c)(g, f"c{i}") for i, c in enumerate(constants))], "f", **attrs)


def slopes(g, x):
    return g.one("PRelu", [x, g.put(g.rng.uniform(0.1, 0.4, (8, 1, 1) if len(g.inputs["x"][1]) == 4 else 32).astype(np.float32), "slopes")], "f")


def silu(g, x):
    return g.one("Mul", [x, g.one("Sigmoid", [x], "s")], "f")


def mish(g, x):
    return g.one("Mul", [x, g.one("Tanh", [g.one("Softplus", [x], "p")], "t")], "f")


def hardswish(g, x):
    a = g.one("Clip", [g.one("Add", [x, number(3)(g, "three")], "up"), number(0)(g, "low"), number(6)(g, "high")], "cut")
    return g.one("Div", [g.one("Mul", [x, a], "m"), number(6)(g, "six")], "f")


def gelu(g, x):
    e = g.one("Erf", [g.one("Div", [x, number(2**0.5)(g, "root2")], "d")], "e")
    return g.one("Mul", [g.one("Mul", [x, g.one("Add", [e, number(1)(g, "one")], "o")], "m"), number(0.5)(g, "half")], "f")


def batch_norm(g, x):
    n = g.inputs["x"][1][1]
    parts = [g.put(g.rng.uniform(0.5, 1.5, n).astype(np.float32), p) if p in ("gamma", "var") else g.floats(n, name=p, scale=0.3) for p in ("gamma", "beta", "mean", "var")]
    return g.one("Relu", [g.one("BatchNormalization", [x, *parts], "n")], "f")


FUNCTIONS = {
    "relu": op("Relu"),
    "relu6": op("Clip", 0, 6),
    "clip_odd": op("Clip", -1.1, 0.7),
    "clip_above": op("Clip", 0.25, 2),
    "clip_least": op("Clip", -0.5),
    "clip_most": op("Clip", None, 0.5),
    "leakyrelu": op("LeakyRelu", alpha=0.1),
    "prelu_one": op("PRelu", 0.2),
    "prelu": slopes,
    "elu": op("Elu"),
    "selu": op("Selu"),
    "celu": op("Celu", alpha=0.7),
    "thresholdedrelu": op("ThresholdedRelu", alpha=0.3),
    "shrink": op("Shrink", lambd=0.3),
    "hardswish": op("HardSwish"),
    "hardswish_spelled": hardswish,
    "hardsigmoid": op("HardSigmoid", alpha=1 / 6),
    "sigmoid": op("Sigmoid"),
    "tanh": op("Tanh"),
    "mish": (18, op("Mish")),
    "mish_spelled": mish,
    "silu": silu,
    "swish": (24, op("Swish")),
    "gelu": (20, op("Gelu")),
    "gelu_tanh": (20, op("Gelu", approximate="tanh")),
    "gelu_spelled": gelu,
    "softplus": op("Softplus"),
    "softsign": op("Softsign"),
    "softmax": op("Softmax", axis=-1),
    "logsoftmax": op("LogSoftmax", axis=-1),
    "exp": op("Exp"),
    "erf": op("Erf"),
    "abs": op("Abs"),
    "neg": op("Neg"),
    "sin": op("Sin"),
    "add": op("Add", 0.5),
    "mul": op("Mul", 0.5),
    "max": op("Max", 0.1),
    "min": op("Min", 0.6),
    "relu_max": lambda g, x: g.one("Max", [g.one("Relu", [x], "r"), "x"], "f"),
    "batch_norm": batch_norm,
    "nothing": lambda g, x: x,
}


def make(kind, name):
    function = FUNCTIONS[name]
    opset, function = function if isinstance(function, tuple) else (micro.OPSET, function)
    g = micro.Graph(f"{kind}_{name}", LAYERS[kind], opset)
    y, channels = function(g, layer(g, kind, "x", "a")), 8
    if kind == "last":
        return g.model(y)
    if kind == "joined":
        y, channels = g.one("Concat", [y, g.conv("x", "b", 8, 8)], "j", axis=1), 16
    return g.model(layer(g, kind, y, "y", channels))


if __name__ == "__main__":
    folder, names = pathlib.Path(sys.argv[1]), [f"{kind}_{name}" for kind in LAYERS for name in FUNCTIONS]
    for name in names:
        model = make(*name.split("_", 1))
        onnx.save(model, folder / f"{name}.onnx")
        feeds = micro.samples(model, *micro.CALIBRATE[0])
        np.savez(folder / f"{name}.npz", **{k: np.concatenate([f[k] for f in feeds]) for k in feeds[0]})
    print(json.dumps(names))
