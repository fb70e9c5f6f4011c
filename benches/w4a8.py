"""w4a8.py REQUANT [--work DIR] [--only NAME…] [--methods METHOD…]: 4-bit weights with a scale an output channel, 8-bit activations, method beside method.

Models and data of REQUANT_SHARED: 512 samples calibrate, or as many as there are; others judge, in ONNX Runtime. Told are KL between the float model's
scores and those of each method, its ratio to nearest rounding's with the 95 % interval of a paired bootstrap (tests/python/paired.py), how often the largest
number is where the float model has it, and the CPU seconds of the conversion.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from process import measure

HERE = Path(__file__).resolve().parent
METHODS = {
    "nearest": ["adaround", "round.method=nearest"],
    "gptq": ["adaround", "round.method=gptq"],
    "adaround": ["adaround"],
    "adaquant": ["adaquant"],
    "block": ["block"],
}


def images(shared, norm, nhwc=False, side=32, n=512):
    (mean, std), pixels = norm, np.load(shared / "models/cifar10/test_a.npz")["x"][:n]
    if side != 32:
        pixels = np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.BICUBIC)) for p in pixels])
    x = (pixels.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return {"input": np.ascontiguousarray(x if nhwc else x.transpose(0, 3, 1, 2))}


def photographs(shared, mean, std, n=200):
    def one(path):
        image = Image.open(path).convert("RGB")
        by = 256 / min(image.size)
        image = image.resize([round(by * s) for s in image.size], Image.BICUBIC)
        left, top = ((s - 224) // 2 for s in image.size)
        return ((np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) - mean) / std).transpose(2, 0, 1)

    return {"input": np.stack([one(f) for f in sorted((shared / "models/imagenet/nips17_a").glob("*.jpg"))[:n]]).astype(np.float32)}


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CIFAR = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
# name: (model, samples that judge)
MODELS = {
    "kws_dscnn": ("mlperf_tiny/kws_dscnn.onnx", lambda s: {"input": np.load(s / "models/mlperf_tiny/kws_test900.npz")["x"].astype(np.float32)}),
    "ic_resnet8": ("mlperf_tiny/ic_resnet8.onnx", lambda s: images(s, ([0] * 3, [1 / 255] * 3), nhwc=True)),
    "resnet20_bn": ("cifar_resnet/resnet20_cifar10_bn.onnx", lambda s: images(s, IMAGENET)),
    "vit_pgd_cifar10": ("vnn_cifar/vit_pgd_2_3_16.onnx", lambda s: images(s, CIFAR)),
    "mobilenetv2_cifar10": ("mobilenetv2/mobilenetv2_160_cifar10.onnx", lambda s: images(s, ([0.5] * 3, [0.5] * 3), side=160, n=256)),
    "darknet_tiny": ("darknet_tiny/darknet_tiny.onnx", lambda s: photographs(s, 0, 255)),
    "effnet_lite0_dynamo": ("effnet_lite/effnet_lite0_dynamo_op20.onnx", lambda s: photographs(s, 127, 128)),
}

arguments = argparse.ArgumentParser()
arguments.add_argument("requant", type=lambda p: Path(p).resolve())
arguments.add_argument("--work", default="w4a8", type=Path)
arguments.add_argument("--only", nargs="*")
arguments.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
asked = arguments.parse_args()
shared = Path(os.environ.get("REQUANT_SHARED") or sys.exit("set REQUANT_SHARED"))
asked.work.mkdir(parents=True, exist_ok=True)

for name, (path, judged) in MODELS.items():
    if asked.only and name not in asked.only:
        continue
    model, samples, test = shared / "models" / path, asked.work / f"{name}.npz", asked.work / f"{name}-test.npz"
    subprocess.run([sys.executable, shared / "models/eval/prepare.py", asked.work, "--n", "512", "--only", name], check=True, stdout=subprocess.DEVNULL)
    np.savez(test, **judged(shared))
    written, seconds = [], {}
    for method in asked.methods:
        recipe, *sets = METHODS[method]
        out = asked.work / f"{name}-{method}.onnx"
        keys = [a for s in [*sets, "data.validate=0"] for a in ("--set", s)]
        seconds[str(out)], *_ = measure([[asked.requant, "convert", model, "--data", samples, "-r", recipe, *keys, "--threads", "1", "--force", "-o", out]])
        written.append(out)
    judge = [sys.executable, HERE.parent / "tests/python/paired.py", model, test, *written, "--samples", "900", "--metric", "kl"]
    for line in subprocess.run(judge, check=True, capture_output=True, text=True).stdout.splitlines():
        out, figures = line.split(" ", 1)
        print(f"{Path(out).stem} {figures} cpu={seconds[out]:.1f}", flush=True)
