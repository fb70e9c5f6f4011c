"""make_data.py DIR: sample files as NumPy and onnx write them. Prints {file: {"dtype", "samples", "values": [number, in the order of the samples]} …}."""

import json
import pathlib
import sys

import numpy as np
from onnx import numpy_helper

folder = pathlib.Path(sys.argv[1])
x = (np.arange(30).reshape(5, 3, 2) * 0.25 - 2).astype(np.float32)
said = {}


def say(file, array, samples=5):
    said[file] = {"dtype": array.dtype.name, "samples": samples, "values": array.astype(float).ravel().tolist()}


np.savez(folder / "plain.npz", x=x)
say("plain.npz", x)
np.savez_compressed(folder / "packed.npz", x=x)
say("packed.npz", x)
for dtype in (np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64):
    name = f"{np.dtype(dtype).name}.npy"
    values = x.astype(dtype) if np.dtype(dtype).kind == "f" else (np.abs(x) * 4).astype(dtype)
    np.save(folder / name, values)
    say(name, values)
np.save(folder / "fortran.npy", np.asfortranarray(x))
say("fortran.npy", x)
np.save(folder / "big.npy", x.astype(">f4"))
say("big.npy", x)
np.save(folder / "whole.npy", x[:, None])
say("whole.npy", x)
for i in range(12):
    one = folder / "sets" / f"test_data_set_{i}"
    one.mkdir(parents=True)
    (one / "input_0.pb").write_bytes(numpy_helper.from_array(x[i % 5 : i % 5 + 1], "x").SerializeToString())
say("sets", np.stack([x[i % 5] for i in range(12)]), 12)
print(json.dumps(said))
