"""raw_images.py make DIR: images of their model's size, DIR/images, and two small models, channels first and last. Prints {CASE: [model, preprocess]}.

raw_images.py compare DIR: for each case DIR/CASE.raw.onnx on bytes of the images beside DIR/CASE.qdq.onnx and the float model on what numpy makes of them,
in ONNX Runtime with its optimisations off. Prints {CASE: {"largest": distance of raw and qdq, "sqnr_db": raw against float, "type", "shape", "ops": [of raw,
up to the first Conv], "said": its metadata} …}.
"""

import json
import pathlib
import sys

import micro_models as micro
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from PIL import Image

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Model, layout of the bytes, order of the channels, scale, mean, std.
CASES = {
    "unit": ("planes", "nhwc", "rgb", 255, [0], [1]),
    "unit_planes": ("planes", "nchw", "rgb", 255, [0], [1]),
    "imagenet": ("planes", "nhwc", "rgb", 255, MEAN, STD),
    "imagenet_last": ("pixels", "nhwc", "rgb", 255, MEAN, STD),
    "imagenet_turned": ("pixels", "nchw", "rgb", 255, MEAN, STD),
    "bgr": ("planes", "nchw", "bgr", 1, [103.94, 116.78, 123.68], [57.375, 57.12, 58.395]),
    "one_mean": ("planes", "nhwc", "bgr", 1, [127.5], [128]),
}


def model(name):
    last = name == "pixels"
    g = micro.Graph(name, {"x": (T.FLOAT, (1, 16, 16, 3) if last else (1, 3, 16, 16))})
    x = g.one("Transpose", ["x"], "t", perm=[0, 3, 1, 2]) if last else "x"
    c = g.one("Relu", [g.conv(x, "c", 3, 8)], "r")
    return g.model(g.conv(c, "y", 8, 4, k=1))


def make(folder):
    for name in ("planes", "pixels"):
        onnx.save(model(name), folder / f"{name}.onnx")
    rng = np.random.default_rng(7)
    (folder / "images").mkdir()
    y, x = np.mgrid[0:16, 0:16]
    for i in range(24):
        wave = np.stack([127 + 100 * np.sin(x / rng.uniform(1, 6) + k) * np.cos(y / rng.uniform(1, 6)) for k in range(3)], -1)
        # Full black and full white occur.
        pixels = np.clip((wave + rng.normal(0, 40, wave.shape)) * [1, 0.8, 1.2], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
    words = {}
    for name, (which, layout, channels, scale, mean, std) in CASES.items():
        keys = f"{{ scale: {scale}, mean: {mean}, std: {std}, channels: {channels}, layout: {'nhwc' if which == 'pixels' else 'nchw'} }}"
        words[name] = [which, layout, keys]
    print(json.dumps(words))


def session(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(folder):
    images = [np.asarray(Image.open(p)) for p in sorted((folder / "images").iterdir())]
    rows = {}
    for name, (which, layout, channels, scale, mean, std) in CASES.items():
        real, qdq, raw = (session(folder / f) for f in (f"{which}.onnx", f"{name}.qdq.onnx", f"{name}.raw.onnx"))
        largest, signal, noise = 0.0, 0.0, 0.0
        for image in images:
            image = image[..., ::-1] if channels == "bgr" else image
            of = lambda numbers: np.array(numbers, np.float32)
            ready = ((image.astype(np.float32) / of(scale) - of(mean)) / of(std))[None]
            ready = np.ascontiguousarray(ready if which == "pixels" else ready.transpose(0, 3, 1, 2))
            pixels = np.ascontiguousarray(image[None] if layout == "nhwc" else image[None].transpose(0, 3, 1, 2))
            f, q = (s.run(None, {"x": ready})[0] for s in (real, qdq))
            r = raw.run(None, {"x": pixels})[0]
            largest = max(largest, float(abs(r - q).max()))
            signal, noise = signal + float((f**2).sum()), noise + float(((f - r) ** 2).sum())
        written = onnx.load(folder / f"{name}.raw.onnx")
        ops = [n.op_type for n in written.graph.node]
        said = {p.key: p.value for p in written.metadata_props}
        (x,) = raw.get_inputs()
        rows[name] = {"largest": largest, "sqnr_db": 10 * np.log10(signal / noise), "type": x.type, "shape": x.shape}
        rows[name] |= {"ops": ops[: ops.index("Conv")], "said": json.loads(said["requant.image.x"])}
    print(json.dumps(rows))


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](pathlib.Path(sys.argv[2]))
