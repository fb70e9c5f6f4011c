"""bad_data.py DIR: samples for the keyword spotter that must be refused, each for one reason."""

import pathlib
import sys

import numpy as np

folder = pathlib.Path(sys.argv[1])
good = np.zeros((4, 49, 10, 1), np.float32)


def spoilt(value):
    bad = good.copy()
    bad[2, 3, 4, 0] = value
    return bad


np.savez(folder / "name.npz", picture=good, sound=good)
np.savez(folder / "rank.npz", input=good[..., 0, 0])
np.savez(folder / "shape.npz", input=good[:, :40])
np.savez(folder / "type.npz", input=good.astype(np.float64))
np.savez(folder / "nan.npz", input=spoilt(np.nan))
np.savez(folder / "infinite.npz", input=spoilt(np.inf))
np.savez(folder / "none.npz", input=good[:0])
np.savez(folder / "whole.npz", input=good)
whole = (folder / "whole.npz").read_bytes()
(folder / "whole.npz").unlink()
(folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
(folder / "text.npz").write_text("no numbers\n")
