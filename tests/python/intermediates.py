"""intermediates.py MODEL.onnx INPUTS.npz OUT: every tensor that ONNX Runtime, optimizations off, computes for the first sample of INPUTS.

OUT gets the float32 tensors, one behind the other. Prints {name: {"dtype", "shape", "at": index of the first element in OUT, or null}}.
"""

import json
import sys

import numpy as np
import onnx
from corpus import every_value

path, inputs, out = sys.argv[1:]
values = every_value(onnx.load(path), {name: a[:1] for name, a in np.load(inputs).items()}, ".")
said, at = {}, 0
with open(out, "wb") as file:
    for name, value in values.items():
        value = np.asarray(value)
        is_float = value.dtype == np.float32
        said[name] = {"dtype": value.dtype.name, "shape": list(value.shape), "at": at if is_float else None}
        if is_float:
            file.write(value.tobytes())
            at += value.size
print(json.dumps(said))
