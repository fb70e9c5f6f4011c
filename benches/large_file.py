#!/usr/bin/env python3
"""Reading and copying a large model: seconds and anonymous memory, beside cp.

usage: large_file.py REQUANT [FOLDER]   (needs onnx, numpy, 5 GB of disk)
Makes a chain of 24 MatMuls with 4096 × 4096 float32 weights (1.5 GiB), once inline and once with external data, then times `inspect` and a copy
(`steps: []`) of each. Each figure is the best of three runs; cp copies the same bytes on the same disk, and both end with what was written in the page cache.
"""

import os
import pathlib
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from process import measure

SIDE, LAYERS = 4096, 24


def make(path, external):
    generator = np.random.default_rng(0)
    weights = [numpy_helper.from_array(generator.standard_normal((SIDE, SIDE), np.float32), f"w{i}") for i in range(LAYERS)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"n{i}") for i in range(LAYERS)]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE])
    graph = helper.make_graph(nodes, "g", [value("x0")], [value(f"x{LAYERS}")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=path.name + ".data" if external else None)


def best_of_three(command, undo=()):
    """Least seconds, and the highest anonymous memory seen."""
    runs = []
    for _ in range(3):
        for path in undo:
            pathlib.Path(path).unlink(missing_ok=True)
        runs.append(measure([command], cores=None))
    return min(wall for _, wall, _ in runs), max(peak for _, _, peak in runs)


def main():
    requant = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        folder = pathlib.Path(folder)
        for external in (False, True):
            path = folder / f"{'external' if external else 'inline'}.onnx"
            make(path, external)
            big = folder / (path.name + ".data") if external else path
            out, copy = folder / "out.onnx", folder / "copied"
            rows = {
                "inspect": best_of_three([requant, "inspect", str(path)]),
                "copy": best_of_three([requant, "convert", str(path), "--set", "steps=[]", "-o", str(out), "-q"], [out, f"{out}.data", folder / "out.report.json"]),
                "cp": best_of_three(["cp", str(big), str(copy)], [copy]),
            }
            for name, (seconds, peak) in rows.items():
                print(f"{path.name:16} {name:8} {seconds:7.3f} s  {peak / 1e6:7.1f} MB anonymous  ({big.stat().st_size / seconds / 1e9:.2f} GB/s)")
            for left in (out, folder / "out.onnx.data", copy, path, big):
                left.unlink(missing_ok=True)


main()
