"""intermediates.py MODEL.onnx INPUTS.npz OUT: every tensor that ONNX Runtime, optimizations off, computes for the first sample of INPUTS.

OUT gets the float32 tensors, one behind the other. Prints {name: {"dtype", "shape", "at": index of the first element in OUT, or null}}.
"""

import json
import sys

import numpy as np
import onnx
import onnxruntime as ort

path, inputs, out = sys.argv[1:]
model = onnx.load(path)
declared = {o.name for o in model.graph.output}
constants = {t.name for t in model.graph.initializer}
for node in model.graph.node:
    for name in node.output:
        if name and name not in declared and name not in constants:
            declared.add(name)
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
options.log_severity_level = 3
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
feeds = {name: a[:1] for name, a in np.load(inputs).items()}
names = [o.name for o in session.get_outputs()]
said, at = {}, 0
with open(out, "wb") as file:
    for name, value in zip(names, session.run(None, feeds)):
        value = np.asarray(value)
        is_float = value.dtype == np.float32
        said[name] = {"dtype": value.dtype.name, "shape": list(value.shape), "at": at if is_float else None}
        if is_float:
            file.write(value.tobytes())
            at += value.size
print(json.dumps(said))
