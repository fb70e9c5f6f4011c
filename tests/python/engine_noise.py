"""engine_noise.py FLOAT.onnx WRITTEN.onnx INPUTS.npz ENGINE.f32: what ONNX Runtime, optimizations off, makes of the written file, beside what our engine made of it.

ENGINE.f32: the engine's first outputs for each sample of INPUTS (first axis), one behind the other.
Prints {"noise_db": engine against ONNX Runtime on the written file, "quantization_db": written against float, both in ONNX Runtime}.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

plain, written, inputs, engine = sys.argv[1:]
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
options.log_severity_level = 3
data = dict(np.load(inputs))
count = len(next(iter(data.values())))


def outputs(path):
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rows = [session.run(None, {name: a[i : i + 1] for name, a in data.items()})[0].ravel() for i in range(count)]
    return np.concatenate(rows).astype(np.float64)


def sqnr(reference, other):
    noise = ((reference - other) ** 2).sum()
    return 999.0 if noise == 0 else 10 * np.log10((reference**2).sum() / noise)


exact, quantized = outputs(plain), outputs(written)
ours = np.fromfile(engine, np.float32).astype(np.float64)
print(json.dumps({"noise_db": sqnr(quantized, ours), "quantization_db": sqnr(exact, quantized)}))
