#!/usr/bin/env python3
"""GPTQ beside ONNX Runtime's: CPU seconds on the same work, and codes beside nearest ones.

usage: gptq.py REQUANT [MODEL.onnx DATA.npz] [--input NAME=KEY] [--work FOLDER] [--runs N] [--samples N]
    (needs onnx, onnxruntime with onnx_ir, which its quantizer imports, numpy)

Without MODEL a decoder of two layers is made, as big_decoder.py makes it, with a vocabulary of 2048 and 64 sequences of 128 random words. Runs in turn, N
times each, every process held to one core:

    requant     weights to uint4 in blocks of 32, MatMulNBits, `round: gptq`, MatMul alone
    ort         matmul_nbits_quantizer with GPTQWeightOnlyQuantConfig(perchannel=True), of the same blocks, samples and damping

CPU seconds are user and system time of the process, the lowest of the runs. Then, for each, the share of codes that are not those of nearest rounding by the
same tool; of matmul_nbits_quantizer that is algorithm RTN of the same Python code. With --work the files stay, for tests/python/paired.py.
"""

import argparse
import os
import pathlib
import sys
import tempfile

from process import measure

BLOCK = 32
SHAPE = (64, 128)


def make(model, data):
    import big_decoder
    import numpy as np

    big_decoder.LAYERS, big_decoder.VOCABULARY = 2, 2048
    big_decoder.make(model)
    np.savez(data, input_ids=np.random.default_rng(1).integers(0, big_decoder.VOCABULARY, SHAPE))


def run_ort(method, model, data, out, samples, *keys):
    """Runs in a process of its own."""
    import types as kinds

    import numpy as np
    import onnx

    # Imported for inputs that are no numpy arrays; here all are, and its import would count.
    sys.modules["torch"] = kinds.ModuleType("torch")
    import onnxruntime as ort
    from onnxruntime.quantization.matmul_nbits_quantizer import GPTQWeightOnlyQuantConfig, MatMulNBitsQuantizer, RTNWeightOnlyQuantConfig

    held, keys = np.load(data), dict(k.split("=", 1) for k in keys)
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
    inputs = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()
    feeds = {i.name: held[keys.get(i.name, i.name)][: int(samples)].astype(types[i.type]) for i in inputs}
    reader = [{name: x[i : i + 1] for name, x in feeds.items()} for i in range(min(map(len, feeds.values())))]
    how = GPTQWeightOnlyQuantConfig(calibration_data_reader=reader, percdamp=0.01, perchannel=True) if method == "ort" else RTNWeightOnlyQuantConfig()
    quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=4, block_size=BLOCK, is_symmetric=False, algo_config=how)
    quantizer.process()
    quantizer.model.save_model_to_file(out, False)


def codes(path):
    """By the float result of each MatMulNBits: its packed codes."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    held = {t.name: t for t in graph.initializer}
    return {n.output[0]: numpy_helper.to_array(held[n.input[1]]).ravel() for n in graph.node if n.op_type == "MatMulNBits"}


def differ(one, other):
    import numpy as np

    changed = [np.concatenate([one[k] >> 4 != other[k] >> 4, one[k] & 15 != other[k] & 15]) for k in one.keys() & other.keys()]
    return np.concatenate(changed).mean(), len(changed)


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--ort":
        return run_ort(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("requant", type=os.path.abspath)
    parser.add_argument("model", nargs="?", type=os.path.abspath)
    parser.add_argument("data", nargs="?", type=os.path.abspath)
    parser.add_argument("--input", action="append", default=[])
    parser.add_argument("--work", help="where the files are put, and a made model found again")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=SHAPE[0])
    args = parser.parse_args()
    if args.model and not args.data:
        parser.error("MODEL needs DATA.npz beside it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.work or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, data = args.model or folder / "decoder.onnx", args.data or folder / "words.npz"
        if not pathlib.Path(data).exists():
            make(model, data)
        out = lambda name: str(folder / f"{name}.onnx")
        recipe = folder / "gptq.yaml"
        recipe.write_text(
            "target: ort\nactivations: none\nweights: { format: uint4, granularity: block, block_size: 32, symmetric: false }\n"
            "overrides: [ { ops: [Gather], keep: float } ]\n"
            "steps:\n  - fold-constants\n  - place\n  - calibrate\n"
            f"  - round: {{ method: gptq, samples: {args.samples}, damping: 0.01 }}\n  - lower: {{ form: matmul-nbits, accuracy_level: 1 }}\n"
        )
        settings = [x for key in args.input for x in ["--set", "inputs.{}.from={}".format(*key.split("=", 1))]]
        given = ["--data", str(data), "--set", f"data.samples={args.samples}", "--set", "data.validate=0", *settings]
        ours = lambda name, *more: [args.requant, "convert", str(model), "-r", str(recipe), *given, "-o", out(name), "--force", "-q", "--threads", "1", *more]
        theirs = lambda name: [sys.executable, "-W", "ignore", os.path.abspath(__file__), "--ort", name, str(model), str(data), out(name), str(args.samples), *args.input]
        commands = {"requant": ours("requant"), "ort": theirs("ort")}
        seen = {name: [] for name in commands}
        for _ in range(args.runs):
            for name, command in commands.items():
                seen[name].append(measure([command])[0])
                print(f"  {name:8} {seen[name][-1]:7.2f} s CPU", file=sys.stderr)
        for name in commands:
            print(f"{name:8} {min(seen[name]):7.2f} s CPU")
        print(f"ort / requant {min(seen['ort']) / min(seen['requant']):.2f}  (at least 5)")
        measure([ours("requant-nearest", "--set", "round.method=nearest")])
        measure([theirs("ort-nearest")])
        for name in commands:
            share, layers = differ(codes(out(name)), codes(out(f"{name}-nearest")))
            print(f"{name:8} {100 * share:6.2f} % of the codes of {layers} layers are not the nearest")


if __name__ == "__main__":
    main()
