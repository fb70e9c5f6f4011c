"""mct.py DIR NAME…: DIR/NAME.mct-quantizers.onnx, in onnx.reference with the four operators as mct_quantizers defines them, beside DIR/NAME.qdq.onnx in
ONNX Runtime without optimisations, on the samples DIR/NAME.npz.

Prints {NAME: {"sqnr_db": of the one against the other, "largest": difference over the largest output, "ops": operators of the domain}}.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

DOMAIN = "mct_quantizers"


def rounded(x, threshold, bits, signed):
    scale = threshold / np.float32(2.0 ** (bits - signed))
    low = -threshold if signed else np.float32(0)
    return (np.round(np.clip(x, low, threshold - scale) / scale) * scale).astype(np.float32)


class Activation(OpRun):
    op_domain = DOMAIN

    def _run(self, x, threshold=None, signed=None, num_bits=None, mctq_version=None):
        return (rounded(x, np.float32(threshold), num_bits, signed),)


class Weights(OpRun):
    op_domain = DOMAIN

    def _run(self, x, threshold, num_bits=None, per_channel=None, channel_axis=None, signed=None, mctq_version=None):
        assert signed == 1 and threshold.ndim == 1
        if per_channel:
            shape = [1] * x.ndim
            shape[channel_axis] = -1
            threshold = threshold.reshape(shape)
        y = rounded(x, threshold, num_bits, 1)
        assert np.allclose(x, y, rtol=1e-6, atol=1e-7), "the weights do not lie on their grid"
        return (y,)


NAMES = {"ActivationPOTQuantizer": Activation, "ActivationSymmetricQuantizer": Activation, "WeightsPOTQuantizer": Weights, "WeightsSymmetricQuantizer": Weights}
OPS = [type(name, (base,), {}) for name, base in NAMES.items()]

folder, found = pathlib.Path(sys.argv[1]), {}
for name in sys.argv[2:]:
    model = onnx.load(folder / f"{name}.mct-quantizers.onnx")
    assert model.producer_name == "pytorch" and all(n.name for n in model.graph.node)
    declared = {v.name for v in [*model.graph.value_info, *model.graph.output]}
    assert all(n.output[0] in declared for n in model.graph.node if n.domain == DOMAIN)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / f"{name}.qdq.onnx"), options)
    evaluator = ReferenceEvaluator(model, new_ops=OPS)
    samples = np.load(folder / f"{name}.npz")
    signal = noise = largest = top = 0.0
    for i in range(min(4, len(samples[samples.files[0]]))):
        one = lambda v: samples[v.name][i] if samples[v.name].ndim > len(v.shape) else samples[v.name][i : i + 1]
        feed = {v.name: one(v) for v in session.get_inputs()}
        for a, b in zip(session.run(None, feed), evaluator.run(None, feed)):
            signal, noise = signal + np.square(a, dtype=float).sum(), noise + np.square(a - b, dtype=float).sum()
            largest, top = max(largest, float(np.abs(a - b).max())), max(top, float(np.abs(a).max()))
    ops = sorted({n.op_type for n in model.graph.node if n.domain == DOMAIN})
    found[name] = {"sqnr_db": 10 * np.log10(signal / max(noise, 1e-30)), "largest": largest / top, "ops": ops}
print(json.dumps(found))
