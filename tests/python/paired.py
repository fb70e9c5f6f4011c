"""paired.py FLOAT.onnx DATA.npz BASE.onnx OTHER.onnx… [--input NAME=KEY] [--from N] [--samples N] [--metric kl|noise] [--output NAME]
          [--resamples N]

How far converted models are from the float model, sample by sample, and how far each OTHER lies from BASE on the same samples.
kl: mean of KL(float ‖ model) over the last axis, in nats, of outputs that are probabilities as they are, else behind a softmax; noise: energy of the difference over that of the float output. Of the first output,
or of the one named.
Prints for each model the mean, how often the largest number of the last axis is where the float model has it (same), and the mean's ratio to BASE's with the 95 % interval of a paired bootstrap over samples (percentiles, seed 0).
"""

import argparse

import numpy as np
import onnxruntime as ort

arguments = argparse.ArgumentParser()
arguments.add_argument("float")
arguments.add_argument("data")
arguments.add_argument("models", nargs="+")
arguments.add_argument("--input", action="append", default=[], help="NAME=KEY: the array of the data that this input takes, where their names differ")
arguments.add_argument("--from", type=int, default=0, dest="first", help="the first sample that judges")
arguments.add_argument("--samples", type=int, default=256)
arguments.add_argument("--metric", choices=["kl", "noise"], default="noise")
arguments.add_argument("--output", help="the output that is compared")
arguments.add_argument("--resamples", type=int, default=10000)
asked = arguments.parse_args()

options = ort.SessionOptions()
options.log_severity_level = 3
session = lambda path: ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
keys = dict(pair.split("=", 1) for pair in asked.input)
reference = session(asked.float)
data = np.load(asked.data)
types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
feeds = {i.name: data[keys.get(i.name, i.name)][asked.first :][: asked.samples].astype(types[i.type]) for i in reference.get_inputs()}
count = min(map(len, feeds.values()))
compared = asked.output or reference.get_outputs()[0].name


def outputs(model):
    # One sample a run: models of a fixed batch too.
    return [model.run([compared], {k: v[i : i + 1] for k, v in feeds.items()})[0].astype(np.float64) for i in range(count)]


def logarithms(x):
    if are_probabilities:
        return np.log(np.maximum(x, 1e-12))
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def distance(want, got):
    if asked.metric == "kl":
        p, q = logarithms(want), logarithms(got)
        return (np.exp(p) * (p - q)).sum(-1).mean()
    return ((want - got) ** 2).sum() / max((want**2).sum(), 1e-30)


wanted = outputs(reference)
are_probabilities = all((w >= 0).all() and np.allclose(w.sum(-1), 1, atol=1e-3) for w in wanted)
found = [outputs(session(path)) for path in asked.models]
losses = [np.array([distance(a, b) for a, b in zip(wanted, got)]) for got in found]
same = [np.mean([(a.argmax(-1) == b.argmax(-1)).mean() for a, b in zip(wanted, got)]) for got in found]
drawn = np.random.default_rng(0).integers(0, count, (asked.resamples, count))
base = losses[0]
for path, loss, share in zip(asked.models, losses, same):
    ratios = loss[drawn].mean(1) / base[drawn].mean(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    print(f"{path} samples={count} {asked.metric}={loss.mean():.6f} same={share:.4f} ratio={loss.mean() / base.mean():.4f} [{low:.4f}, {high:.4f}]")
