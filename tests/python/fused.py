"""What ONNX Runtime's optimizer makes of quantized models, and whether their results stay the same.

fused.py MODEL DATA.npz [MODEL DATA.npz …]   DATA.npz: by input, samples along the first axis
Prints one JSON object a line and model: `ops` counts the nodes of the optimized model, `float` lists its Convs, Gemms and MatMuls that still compute in
float (op and name), `on_off_db` is the SQNR of the outputs with all optimizations against those without, over the samples; null: equal.
"""

import collections
import json
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

# Operators that multiply matrices in float, as the optimizer may spell them.
FLOAT = {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", "MatMulNBits"}
MOST = 16


def session(model, level, save=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    # The sums of one run are those of the next.
    options.intra_op_num_threads = 1
    # Without this, processors that have AVX2 and no VNNI add pairs of products in 16 bits, which saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if save:
        options.optimized_model_filepath = save
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def nodes_of(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def examine(model, data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimized.onnx")
        on = session(model, ort.GraphOptimizationLevel.ORT_ENABLE_ALL, path)
        nodes = list(nodes_of(onnx.load(path).graph))
    off = session(model, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    arrays = np.load(data)
    signal = noise = 0.0
    for i in range(min(MOST, min(len(arrays[x.name]) for x in on.get_inputs()))):
        feed = {x.name: arrays[x.name][i : i + 1] for x in on.get_inputs()}
        for a, b in zip(on.run(None, feed), off.run(None, feed)):
            if a.dtype.kind == "f":
                signal += float(np.square(b, dtype=np.float64).sum())
                noise += float(np.square(a.astype(np.float64) - b).sum())
    ops = collections.Counter(n.op_type for n in nodes)
    left = [[n.op_type, n.name] for n in nodes if n.op_type in FLOAT]
    return {"ops": dict(sorted(ops.items())), "float": left, "on_off_db": round(10 * np.log10(signal / noise), 2) if noise else None}


arguments = sys.argv[1:]
for model, data in zip(arguments[::2], arguments[1::2]):
    print(json.dumps({"model": model, **examine(model, data)}))
