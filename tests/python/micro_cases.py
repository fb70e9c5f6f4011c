"""micro_cases.py make DIR: the models of micro_models.py and the draws of their calibration samples, NAME.onnx and NAME.SEED.npz.
Prints [[NAME, SEED] …].

micro_cases.py judge DIR: DIR/NAME.SEED.int8.onnx in ONNX Runtime with its optimisations off, on samples that did not calibrate, beside what ONNX Runtime's
own static quantizer makes of the same models and samples (uint8 activations, and symmetric int8 ones; int8 weights per channel; its pre-processing first).
Prints {NAME: {"requant": FIGURES, "u8s8": FIGURES, "s8s8": FIGURES} …}, FIGURES = {"sqnr_db": mean over the draws, "cov8", "act8", "output": share}.

micro_cases.py alone DIR TAG: DIR/NAME.SEED.TAG.onnx in the same way, beside nobody. Prints {NAME: FIGURES …}.
"""

import json
import logging
import pathlib
import sys

import coverage
import micro_models as micro
import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

logging.disable(logging.WARNING)


def outputs(path, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, f)[0].astype(np.float64).ravel() for f in feeds])


def sqnr_db(wanted, got):
    return float(10 * np.log10((wanted**2).sum() / max(((wanted - got) ** 2).sum(), 1e-30)))


def judged(path, feeds, wanted):
    counted = coverage.count(str(path))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    figures = {"sqnr_db": sqnr_db(wanted, outputs(path, feeds)), "cov8": counted["cov8"], "act8": counted["act8"]}
    return figures | {"output": float(last.op_type == "DequantizeLinear")}


def mean(rows):
    return {key: round(float(np.mean([r[key] for r in rows])), 2) for key in rows[0]}


class Reader(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


RIVALS = {"u8s8": (QuantType.QUInt8, {}), "s8s8": (QuantType.QInt8, {"ActivationSymmetric": True})}


def rival(plain, out, calibration, activations, options):
    quantize_static(
        str(plain),
        str(out),
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options=options,
    )


def make(folder):
    for case in micro.CASES:
        model = case()
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{case.__name__}.onnx")
        for seed, count in micro.CALIBRATE:
            feeds = micro.samples(model, seed, count)
            # One axis more than the input has: each index is one whole sample.
            np.savez(folder / f"{case.__name__}.{seed}.npz", **{k: np.stack([f[k] for f in feeds]) for k in feeds[0]})
    print(json.dumps([[case.__name__, seed] for case in micro.CASES for seed, _ in micro.CALIBRATE]))


def draws(folder, name, tag):
    """The model, the samples that judge, what it makes of them, and the figures of its conversions."""
    model = onnx.load(folder / f"{name}.onnx")
    feeds = micro.samples(model, *micro.JUDGE)
    wanted = outputs(folder / f"{name}.onnx", feeds)
    return model, feeds, wanted, [judged(folder / f"{name}.{seed}.{tag}.onnx", feeds, wanted) for seed, _ in micro.CALIBRATE]


def alone(folder, tag):
    print(json.dumps({case.__name__: mean(draws(folder, case.__name__, tag)[3]) for case in micro.CASES}))


def judge(folder):
    result = {}
    for case in micro.CASES:
        name = case.__name__
        model, feeds, wanted, ours = draws(folder, name, "int8")
        rows = {"requant": ours}
        plain, out = folder / f"{name}.plain.onnx", folder / f"{name}.rival.onnx"
        quant_pre_process(str(folder / f"{name}.onnx"), str(plain), skip_symbolic_shape=True)
        for label, (activations, options) in RIVALS.items():
            rows[label] = []
            for draw in micro.CALIBRATE:
                rival(plain, out, micro.samples(model, *draw), activations, options)
                rows[label].append(judged(out, feeds, wanted))
        result[name] = {label: mean(r) for label, r in rows.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    {"make": make, "judge": judge, "alone": alone}[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
