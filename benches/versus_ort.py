#!/usr/bin/env python3
"""Conversion beside ONNX Runtime's: CPU seconds and anonymous memory, in one run, on one machine.

usage: versus_ort.py REQUANT BARE [--work FOLDER] [--runs N] [--samples N] [--only NAME,…]
    REQUANT: target/release/requant; BARE: target/release/examples/bare   (needs onnx, onnxruntime, numpy)

Makes a model of ResNet-50's shape (He-initialised weights, batch norms, 1×3×224×224) and samples of it, then runs in turn, N times each:

    bare        the model in our engine, one inference a sample (and twice as many: the difference is free of what building the plan costs)
    fast        requant, recipe int8-fast            ort-minmax      quantize_static, MinMax
    percentile  requant, recipe int8-percentile      ort-percentile  quantize_static, Percentile
    entropy     requant, method entropy              ort-entropy     quantize_static, Entropy
    int8        requant, recipe int8

None of them validates its result. Every process is held to one core, so that threads which wait by spinning count for nothing.
CPU seconds are user and system time of the process; the lowest of the runs counts. Anonymous memory is sampled from /proc/PID/status every 2 ms.
ONNX Runtime's pre-processing (`quant_pre_process`) is done beforehand and not counted; requant folds batch norms within its time.
"""

import argparse
import os
import pathlib
import sys
import tempfile

from process import measure

SIDE = 224


def make_model(path):
    """ResNet-50 v1.5 (He et al. 2016, table 1; the stride in the 3×3 convolution)."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, weights = [], []

    def constant(name, array):
        weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(op, inputs, **attributes):
        name = f"n{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(x, channels, filters, size, stride, relu, gain=1.0):
        w = generator.standard_normal((filters, channels, size, size)) * gain * np.sqrt(2.0 / (channels * size * size))
        at = len(nodes)
        pad = size // 2
        x = node("Conv", [x, constant(f"w{at}", w)], kernel_shape=[size, size], strides=[stride] * 2, pads=[pad] * 4)
        rows = {"scale": generator.uniform(0.8, 1.2, filters), "bias": generator.normal(0, 0.1, filters), "mean": generator.normal(0, 0.1, filters), "var": generator.uniform(0.8, 1.2, filters)}
        x = node("BatchNormalization", [x] + [constant(f"{k}{at}", v) for k, v in rows.items()])
        return node("Relu", [x]) if relu else x

    x = conv("x", 3, 64, 7, 2, True)
    x = node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        inner = 64 << stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = conv(x, channels, inner, 1, 1, True)
            y = conv(y, inner, inner, 3, stride, True)
            # A smaller gain at the end of a branch keeps the sums from growing with depth.
            y = conv(y, inner, 4 * inner, 1, 1, False, gain=0.3)
            skip = x if block > 0 else conv(x, channels, 4 * inner, 1, stride, False)
            x = node("Relu", [node("Add", [y, skip])])
            channels = 4 * inner
    x = node("Flatten", [node("GlobalAveragePool", [x])])
    head = constant("fc", generator.standard_normal((channels, 1000)) * np.sqrt(1.0 / channels))
    nodes.append(helper.make_node("Gemm", [x, head, constant("fc_bias", generator.normal(0, 0.1, 1000))], ["y"], name="fc"))
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "resnet50", [value("x", [1, 3, SIDE, SIDE])], [value("y", [1, 1000])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def make_samples(path, n):
    """Smooth noise: neighbouring pixels are alike, as in photographs."""
    import numpy as np

    generator = np.random.default_rng(1)
    coarse = generator.standard_normal((n, 3, SIDE // 8, SIDE // 8)).astype(np.float32)
    fine = generator.standard_normal((n, 3, SIDE, SIDE)).astype(np.float32)
    np.save(path, coarse.repeat(8, 2).repeat(8, 3) + 0.3 * fine)


def run_ort(method, model, data, out):
    """Runs in a process of its own."""
    import numpy as np
    import onnxruntime.quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.samples = iter(np.load(data, mmap_mode="r"))

        def get_next(self):
            sample = next(self.samples, None)
            return None if sample is None else {"x": np.ascontiguousarray(sample[None])}

    methods = {"minmax": q.CalibrationMethod.MinMax, "percentile": q.CalibrationMethod.Percentile, "entropy": q.CalibrationMethod.Entropy}
    q.quantize_static(model, out, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True, activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8, calibrate_method=methods[method])


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--ort":
        return run_ort(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("requant", type=os.path.abspath)
    parser.add_argument("bare", type=os.path.abspath)
    parser.add_argument("--work", help="where models and samples are put, and found again")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--only", default="bare,fast,ort-minmax,percentile,ort-percentile,entropy,ort-entropy,int8,memory,threads")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.work or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, ready = folder / "resnet50.onnx", folder / "resnet50-pre.onnx"
        samples = {n: folder / f"samples{n}.npy" for n in (args.samples, 4 * args.samples)}
        if not model.exists():
            make_model(model)
        for n, path in samples.items():
            if not path.exists():
                make_samples(path, n)
        if not ready.exists():
            from onnxruntime.quantization.shape_inference import quant_pre_process

            quant_pre_process(model, ready, skip_symbolic_shape=True)
        compare(args, folder, model, ready, samples)


def compare(args, folder, model, ready, samples):
    n = args.samples
    out = folder / "out.onnx"

    def ours(recipe, count=n, threads=1, out=out, *more):
        of = ["-r", recipe, "--set", f"data.samples={count}", "--set", "data.validate=0", "--threads", str(threads), *more]
        return [args.requant, "convert", str(model), "--data", str(samples[count]), "-o", str(out), "--force", "-q", *of]

    theirs = lambda method: [sys.executable, "-W", "ignore", os.path.abspath(__file__), "--ort", method, str(ready), str(samples[n]), str(folder / "ort.onnx")]
    bare = lambda count: [args.bare, str(model), str(samples[4 * n]), str(count)]
    runs = {
        "bare": lambda: bare(n),
        "bare-twice": lambda: bare(2 * n),
        "fast": lambda: ours("int8-fast"),
        "ort-minmax": lambda: theirs("minmax"),
        "percentile": lambda: ours("int8-percentile"),
        "ort-percentile": lambda: theirs("percentile"),
        "entropy": lambda: ours("int8-fast", n, 1, out, "--set", "calibrate.activations.method=entropy"),
        "ort-entropy": lambda: theirs("entropy"),
        "int8": lambda: ours("int8"),
        "memory": lambda: ours("int8-fast", 4 * n),
    }
    only = args.only.split(",")
    chosen = {name: command for name, command in runs.items() if name.removesuffix("-twice") in only}
    seen = {name: [] for name in chosen}
    for _ in range(args.runs):
        for name, command in chosen.items():
            seen[name].append(measure([command()]))
            print(f"  {name:15} {seen[name][-1][0]:8.2f} s CPU  {seen[name][-1][2] / 1e6:8.1f} MB", file=sys.stderr)
    cpu = {name: min(s[0] for s in all) for name, all in seen.items()}
    memory = {name: max(s[2] for s in all) for name, all in seen.items()}
    for name in chosen:
        print(f"{name:15} {cpu[name]:8.2f} s CPU  {memory[name] / 1e6:8.1f} MB anonymous")

    def ratio(text, a, b, limit):
        if a in cpu and b in cpu:
            print(f"{text:48} {cpu[a] / cpu[b]:6.2f}  (at most {limit})")

    ratio("int8-fast / quantize_static MinMax", "fast", "ort-minmax", "1.0")
    ratio("percentile / quantize_static Percentile", "percentile", "ort-percentile", "0.45")
    ratio("entropy / quantize_static Entropy", "entropy", "ort-entropy", "0.45")
    if {"bare", "bare-twice"} <= cpu.keys():
        inferences = cpu["bare-twice"] - cpu["bare"]
        print(f"{n} bare inferences: {inferences:.2f} s CPU, building the plan: {cpu['bare'] - inferences:.2f} s")
        if "fast" in cpu:
            # Four times the samples differ by three times the passes: writing, reading and planning fall out.
            if "memory" in cpu:
                print(f"{'one pass over the data / bare inferences':48} {(cpu['memory'] - cpu['fast']) / 3 / inferences:6.2f}  (at most 1.2)")
            print(f"{'int8-fast, all of it / bare inferences':48} {cpu['fast'] / inferences:6.2f}")
        if "int8" in cpu:
            print(f"{'int8, all of it / bare inferences':48} {cpu['int8'] / inferences:6.2f}  (at most 4)")
    if "memory" in memory and "fast" in memory:
        print(f"{'memory, 4 times the samples / the samples':48} {memory['memory'] / memory['fast']:6.2f}  (0.95 to 1.05, below 600 MB)")
    if "threads" in only:
        walls = []
        for _ in range(args.runs):
            two = measure([ours("int8-fast", 4 * n, 2)], 2)[1]
            pair = measure([ours("int8-fast", 4 * n, 1, folder / f"out{i}.onnx") for i in range(2)], 2)[1]
            walls.append((two, pair / 2))
        two, half = (min(w[i] for w in walls) for i in range(2))
        print(f"{'two threads / half of two processes, wall':48} {two / half:6.2f}  (at most 1.1; {two:.1f} s and {half:.1f} s)")


main()
