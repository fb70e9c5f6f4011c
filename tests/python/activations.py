"""activations.py make|judge FOLDER: one small model whose activations are written in every format and granularity.

make:  model.onnx and model.npz (16 samples).
judge: {TAG: SQNR in dB of TAG.onnx, as onnx's reference computes it, against model.onnx on the samples that TAG.report.json says judged}
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
from exporters import info, model, node, weight
from onnx.reference import ReferenceEvaluator


def make(folder):
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], name="relu"),
        node("Reshape", ["r", "shape"], ["f"], name="reshape"),
        node("MatMul", ["f", "v"], ["y"], name="product"),
    ]
    constants = {"w": weight(8, 4, 3, 3), "shape": np.array([1, 8, 36]), "v": weight(36, 8)}
    # The reference computes DequantizeLinear from opset 19 on.
    made = model(nodes, [info("x", [1, 4, 6, 6])], [info("y", [1, 8, 8])], constants, opset=19)
    made.ir_version = 9
    onnx.save(made, folder / "model.onnx")
    np.savez(folder / "model.npz", x=np.random.default_rng(3).standard_normal((16, 4, 6, 6)).astype(np.float32))


def judge(folder):
    x = np.load(folder / "model.npz")["x"]
    outputs = lambda path, which: np.concatenate([ReferenceEvaluator(str(path)).run(None, {"x": x[i : i + 1]})[0].ravel() for i in which]).astype(np.float64)
    said = {}
    for path in sorted(folder.glob("*.report.json")):
        written = path.with_name(path.name.replace(".report.json", ".onnx"))
        which = [int(re.search(r"\[(\d+)\]$", name)[1]) for name in json.loads(path.read_text())["data"]["validation"]]
        onnx.checker.check_model(str(written), full_check=True)
        wanted, got = outputs(folder / "model.onnx", which), outputs(written, which)
        said[written.stem] = float(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()))
    print(json.dumps(said))


if __name__ == "__main__":
    {"make": make, "judge": judge}[sys.argv[1]](Path(sys.argv[2]))
