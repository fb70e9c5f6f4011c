"""foreign.py make DIR: the micro-models as ONNX Runtime's own quantizers write them, NAME.FORM.onnx, with samples that calibrated, NAME.npz.
Prints {FORM: [NAME …]}.

foreign.py compare DIR: every DIR/NAME.FORM.TARGET.onnx beside NAME.FORM.onnx and NAME.onnx in ONNX Runtime with its optimisations off, on other samples.
Prints {"NAME.FORM.TARGET": {"from_file": SQNR against the quantized file, "own": of it against the float model, "file": of the quantized file} …}, in dB.
"""

import json
import logging
import pathlib
import sys

import micro_cases
import micro_models as micro
import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_dynamic, quantize_static

logging.disable(logging.WARNING)

QDQ, QOP = QuantFormat.QDQ, QuantFormat.QOperator
# Format, activations, weights, a scale a channel, options.
STATIC = {
    "u8s8": (QDQ, QuantType.QUInt8, QuantType.QInt8, True, {}),
    "u8u8": (QDQ, QuantType.QUInt8, QuantType.QUInt8, False, {}),
    "s8s8": (QDQ, QuantType.QInt8, QuantType.QInt8, True, {"ActivationSymmetric": True}),
    "qop": (QOP, QuantType.QUInt8, QuantType.QInt8, True, {}),
}


def make(folder):
    made = {form: [] for form in [*STATIC, "dynamic"]}
    for case in micro.CASES:
        name, model = case.__name__, case()
        plain, ready = folder / f"{name}.onnx", folder / f"{name}.ready.onnx"
        onnx.save(model, plain)
        feeds = micro.samples(model, 1, 16)
        np.savez(folder / f"{name}.npz", **{k: np.stack([f[k] for f in feeds]) for k in feeds[0]})
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        for form, (how, activations, weights, channel, options) in STATIC.items():
            out, reader = folder / f"{name}.{form}.onnx", micro_cases.Reader(feeds)
            types = {"activation_type": activations, "weight_type": weights, "per_channel": channel, "extra_options": options}
            quantize_static(str(ready), str(out), reader, quant_format=how, **types)
            made[form].append(name)
        quantize_dynamic(str(ready), str(folder / f"{name}.dynamic.onnx"), per_channel=True, weight_type=QuantType.QInt8)
        made["dynamic"].append(name)
    print(json.dumps(made))


def compare(folder):
    rows = {}
    for case in micro.CASES:
        name = case.__name__
        feeds = micro.samples(onnx.load(folder / f"{name}.onnx"), *micro.JUDGE)
        wanted = micro_cases.outputs(folder / f"{name}.onnx", feeds)
        for form in [*STATIC, "dynamic"]:
            own = None
            for path in sorted(folder.glob(f"{name}.{form}.*.onnx")):
                own = micro_cases.outputs(folder / f"{name}.{form}.onnx", feeds) if own is None else own
                onnx.checker.check_model(onnx.load(path), full_check=True)
                got = micro_cases.outputs(path, feeds)
                rows[path.stem] = {
                    "from_file": round(micro_cases.sqnr_db(own, got), 2),
                    "own": round(micro_cases.sqnr_db(wanted, got), 2),
                    "file": round(micro_cases.sqnr_db(wanted, own), 2),
                }
    print(json.dumps(rows))


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](pathlib.Path(sys.argv[2]))
