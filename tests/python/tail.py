"""tail.py make DIR: two detectors as they are exported, DIR/NAME.onnx with samples DIR/NAME.npz; prints their names.
tail.py run DIR TAG NAME…: DIR/NAME.TAG.onnx and DIR/NAME.TAG.tail.onnx one after the other in ONNX Runtime without optimisations, beside DIR/NAME.onnx.

Prints {NAME: {"largest": difference over the largest output, "sqnr_db": likewise, "heads": outputs of the first, "ops": operators of the tail}}.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort
from micro_models import Graph, T
from onnx import numpy_helper

STRIDES = (4, 8)
SIZE, CLASSES, BINS = 32, 3, 4


def features(g):
    """Over grids of 8 × 8 and 4 × 4; the coarse ones are brought up and joined with the fine ones."""
    a = g.one("Relu", [g.conv("x", "c1", 3, 8, strides=[2, 2])], "r1")
    a = g.one("Relu", [g.conv(a, "c2", 8, 8, strides=[2, 2])], "r2")
    b = g.one("Relu", [g.conv(a, "c3", 8, 8, strides=[2, 2])], "r3")
    up = g.one("Resize", [b, "", g.put(np.array([1, 1, 2, 2], np.float32), "scales")], "up", mode="nearest")
    return g.one("Relu", [g.conv(g.one("Concat", [a, up], "neck", axis=1), "c4", 16, 8)], "r4"), b


def anchored():
    """Three anchors a place; centres and sizes are made of a Sigmoid, grid by grid, and joined last."""
    g, flat = Graph("anchored", {"x": (T.FLOAT, (1, 3, SIZE, SIZE))}), []
    two, half = g.put(np.float32(2), "two"), g.put(np.float32(0.5), "half")
    for i, (v, stride) in enumerate(zip(features(g), STRIDES)):
        n = SIZE // stride
        head = g.conv(v, f"head{i}", 8, 3 * (5 + CLASSES), k=1)
        cells = g.one("Reshape", [head, g.ints(1, 3, 5 + CLASSES, n, n, name=f"shape{i}")], f"cells{i}")
        sure = g.one("Sigmoid", [g.one("Transpose", [cells], f"turned{i}", perm=[0, 1, 3, 4, 2])], f"sure{i}")
        xy, wh, rest = g.many("Split", [sure, g.ints(2, 2, 1 + CLASSES, name=f"parts{i}")], [f"xy{i}", f"wh{i}", f"rest{i}"], axis=4)
        places = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(1, 1, n, n, 2).astype(np.float32)
        xy = g.one("Add", [g.one("Mul", [xy, two], f"xy2{i}"), g.put(places - 0.5, f"places{i}")], f"xyp{i}")
        xy = g.one("Mul", [xy, g.put(np.float32(stride), f"stride{i}")], f"xys{i}")
        wh = g.one("Pow", [g.one("Mul", [wh, two], f"wh2{i}"), two], f"whp{i}")
        wh = g.one("Mul", [wh, g.put(g.rng.uniform(4, 16, (1, 3, 1, 1, 2)).astype(np.float32), f"anchors{i}")], f"wha{i}")
        all_ = g.one("Concat", [xy, wh, rest], f"all{i}", axis=4)
        flat.append(g.one("Reshape", [all_, g.ints(1, -1, 5 + CLASSES, name=f"flat_shape{i}")], f"flat{i}"))
    return g.model(g.one("Concat", flat, "y", axis=1))


def distributed():
    """No anchors; each side of a box is the mean of a distribution, taken by a convolution behind the join of the grids."""
    g, flat = Graph("distributed", {"x": (T.FLOAT, (1, 3, SIZE, SIZE))}), []
    for i, v in enumerate(features(g)):
        both = g.one("Concat", [g.conv(v, f"box{i}", 8, 4 * BINS, k=1), g.conv(v, f"class{i}", 8, CLASSES, k=1)], f"both{i}", axis=1)
        flat.append(g.one("Reshape", [both, g.ints(1, 4 * BINS + CLASSES, -1, name=f"shape{i}")], f"flat{i}"))
    n = sum((SIZE // s) ** 2 for s in STRIDES)
    box, score = g.many("Split", [g.one("Concat", flat, "joined", axis=2), g.ints(4 * BINS, CLASSES, name="parts")], ["box", "score"], axis=1)
    bins = g.one("Transpose", [g.one("Reshape", [box, g.ints(1, 4, BINS, n, name="bins_shape")], "bins")], "turned", perm=[0, 2, 1, 3])
    weight = g.put(np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1), "numbers")
    mean = g.one("Conv", [g.one("Softmax", [bins], "soft", axis=1), weight], "mean", kernel_shape=[1, 1])
    sides = g.one("Reshape", [mean, g.ints(1, 4, n, name="sides_shape")], "sides")
    low, high = g.many("Split", [sides], ["low", "high"], axis=1)
    places = g.put(g.rng.uniform(0, 8, (1, 2, n)).astype(np.float32), "places")
    boxes = g.one("Concat", [g.one("Sub", [places, low], "from"), g.one("Add", [places, high], "to")], "boxes", axis=1)
    strides = np.concatenate([np.full((1, 1, (SIZE // s) ** 2), s, np.float32) for s in STRIDES], 2)
    scaled = g.one("Mul", [boxes, g.put(strides, "strides")], "scaled")
    return g.model(g.one("Concat", [scaled, g.one("Sigmoid", [score], "sure")], "y", axis=1))


def make(folder):
    for case in (anchored, distributed):
        onnx.save(case(), folder / f"{case.__name__}.onnx")
        np.savez(folder / f"{case.__name__}.npz", x=np.random.default_rng(1).standard_normal((16, 3, SIZE, SIZE)).astype(np.float32))
    print(json.dumps(["anchored", "distributed"]))


def session(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options)


def given(s, feed):
    return dict(zip([o.name for o in s.get_outputs()], s.run(None, feed)))


def run(folder, tag, names):
    found = {}
    for name in names:
        uncut, main, tail = (session(folder / f"{name}{end}.onnx") for end in ("", f".{tag}", f".{tag}.tail"))
        samples = np.load(folder / f"{name}.npz")["x"]
        signal = noise = largest = top = 0.0
        for i in range(4):
            feed = {"x": samples[i : i + 1]}
            heads = given(main, feed)
            known = {**feed, **heads}
            got = given(tail, {v.name: known[v.name] for v in tail.get_inputs()})
            for output, a in given(uncut, feed).items():
                b = got.get(output, heads.get(output))
                signal, noise = signal + np.square(a, dtype=float).sum(), noise + np.square(a - b, dtype=float).sum()
                largest, top = max(largest, float(np.abs(a - b).max())), max(top, float(np.abs(a).max()))
        graph = onnx.load(folder / f"{name}.{tag}.tail.onnx").graph
        weights = {t.name: int(np.prod(numpy_helper.to_array(t).shape[:1])) for t in graph.initializer}
        products = [n.name for n in graph.node if n.op_type == "Conv" and weights[n.input[1]] > 1]
        assert not products, f"{name}: its tail has layers: {products}"
        found[name] = {"largest": largest / top, "sqnr_db": 10 * np.log10(signal / max(noise, 1e-30)), "heads": list(heads), "ops": sorted({n.op_type for n in graph.node})}
    print(json.dumps(found))


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[2])
    make(folder) if sys.argv[1] == "make" else run(folder, sys.argv[3], sys.argv[4:])
