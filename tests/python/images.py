"""images.py FOLDER: writes images of every kind, and for each kind of preprocessing FOLDER/<case>.<image>.npy, what Pillow and numpy make of it.

The cases are those of tests/it/images.rs.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(3)
# Smooth, with edges: what chroma upsampling and resampling differ by shows.
y, x = np.mgrid[0:83, 0:131]
wave = np.stack([127 + 120 * np.sin(x / 9 + k) * np.cos(y / (7 + k)) for k in range(3)], -1)
pixels = np.clip(wave + rng.normal(0, 12, wave.shape) + 90 * ((x // 17 + y // 13) % 2)[..., None], 0, 255).astype(np.uint8)
picture = Image.fromarray(pixels)
picture.save(folder / "a420.jpg", quality=83, subsampling=2)
picture.transpose(Image.Transpose.TRANSPOSE).save(folder / "b444.jpeg", quality=95, subsampling=0)
picture.save(folder / "c422progressive.jpg", quality=60, subsampling=1, progressive=True)
picture.convert("L").save(folder / "dgray.jpg")
Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(folder / "ealpha.png")
picture.convert("P").save(folder / "fpalette.png")
picture.save(folder / "g.webp", lossless=True)
picture.save(folder / "h.bmp")


def short_side(image, size, crop, filter):
    w, h = image.size
    long = int(size * max(w, h) / min(w, h))
    image = image.resize((size, long) if w < h else (long, size), filter)
    left, top = round((image.size[0] - crop) / 2), round((image.size[1] - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def letterbox(image, size, center, filter):
    w, h = image.size
    ratio = min(size / w, size / h)
    w, h = (round(w * ratio), round(h * ratio)) if center else (int(w * ratio), int(h * ratio))
    out = np.full((size, size, 3), 114, np.uint8)
    top, left = (max(round((size - h) / 2 - 0.1), 0), max(round((size - w) / 2 - 0.1), 0)) if center else (0, 0)
    out[top : top + h, left : left + w] = np.asarray(image.resize((w, h), filter))
    return out


F = Image.Resampling
CASES = {
    "short": lambda i: (short_side(i, 64, 56, F.BICUBIC).astype(np.float32) - 127) / 128,
    "larger": lambda i: short_side(i, 200, 190, F.BILINEAR).astype(np.float32),
    "stretch": lambda i: (np.asarray(i.resize((48, 76), F.BILINEAR)).astype(np.float32) / 255)[..., ::-1],
    "nearest": lambda i: np.asarray(i.resize((50, 33), F.NEAREST)).astype(np.float32),
    "letterbox": lambda i: letterbox(i, 64, True, F.BILINEAR).astype(np.float32) / 255,
    "corner": lambda i: letterbox(i, 90, False, F.BICUBIC).astype(np.float32)[..., ::-1],
    "luma": lambda i: np.asarray(i.resize((32, 32), F.BILINEAR).convert("L")).astype(np.float32)[..., None],
}
for file in sorted(p for p in folder.iterdir() if p.suffix != ".npy"):
    image = Image.open(file).convert("RGB")
    for name, case in CASES.items():
        np.save(folder / f"{name}.{file.name}.npy", np.ascontiguousarray(case(image).transpose(2, 0, 1)[None], np.float32))
