#!/usr/bin/env python3
"""4-bit weights of a decoder of 416 million parameters: CPU seconds and anonymous memory, beside ONNX Runtime's quantizer.

usage: big_decoder.py REQUANT [--work FOLDER] [--runs N] [--only NAME,…] [--check]   (needs onnx, onnxruntime with onnx_ir, which its quantizer imports, numpy, 5 GB of disk)

Makes a decoder of 24 layers (width 1024, 16 heads, SwiGLU of 2816, RMS normalization, a vocabulary of 52 480; random weights as external data), then
runs in turn, N times each, every process held to one core:

    requant     recipe w4: uint4 in blocks of 32, MatMulNBits and GatherBlockQuantized
    ort         matmul_nbits_quantizer of the same blocks, MatMul alone
    hqq         recipe hqq-w4: the same with real zero points (named by --only)
    ort-hqq     matmul_nbits_quantizer's HQQ (named by --only; needs torch)

CPU seconds are user and system time of the process, the lowest of the runs; anonymous memory is sampled from /proc/PID/status every 2 ms, the highest.
With --check both files answer one prompt in ONNX Runtime, beside the float model: SQNR of the logits.
"""

import argparse
import os
import pathlib
import sys
import tempfile

from process import measure

LAYERS, WIDTH, HEADS, INNER, VOCABULARY = 24, 1024, 16, 2816, 52480
BLOCK = 32


def make(path):
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, constants, count = [], [], 0
    data = open(f"{path}.data", "wb")

    def weight(name, *shape):
        nonlocal count
        count += int(np.prod(shape))
        t = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        array = generator.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5)
        for key, value in [("location", path.name + ".data"), ("offset", data.tell()), ("length", array.nbytes)]:
            t.external_data.add(key=key, value=str(value))
        data.write(array.tobytes())
        constants.append(t)
        return name

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(op, inputs, name=None, **attributes):
        name = name or f"/{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    two, tiny = constant("two", np.float32(2)), constant("tiny", np.float32(1e-5))
    split, merge = constant("split", np.array([0, 0, HEADS, WIDTH // HEADS])), constant("merge", np.array([0, 0, WIDTH]))
    root = constant("root", np.float32((WIDTH // HEADS) ** -0.5))

    def norm(x, name):
        mean = node("ReduceMean", [node("Pow", [x, two])], axes=[-1])
        x = node("Div", [x, node("Sqrt", [node("Add", [mean, tiny])])])
        return node("Mul", [x, constant(f"{name}.norm", np.ones(WIDTH, np.float32))])

    x = node("Gather", [weight("embed_tokens", VOCABULARY, WIDTH), "input_ids"], "/embed_tokens/Gather")
    for i in range(LAYERS):
        at = f"/layers.{i}"
        product = lambda x, name, rows, columns: node("MatMul", [x, weight(f"{at}.{name}", rows, columns)], f"{at}/{name}/MatMul")
        y = norm(x, f"{at}.attention")
        q, k, v = (node("Transpose", [node("Reshape", [product(y, name, WIDTH, WIDTH), split])], perm=[0, 2, 3 if name == "k" else 1, 1 if name == "k" else 3]) for name in "qkv")
        q = node("Mul", [q, root])
        score = node("Softmax", [node("MatMul", [q, k])], axis=-1)
        y = node("Reshape", [node("Transpose", [node("MatMul", [score, v])], perm=[0, 2, 1, 3]), merge])
        x = node("Add", [x, product(y, "o", WIDTH, WIDTH)])
        y = norm(x, f"{at}.mlp")
        gate = product(y, "gate", WIDTH, INNER)
        gate = node("Mul", [gate, node("Sigmoid", [gate])])
        x = node("Add", [x, product(node("Mul", [gate, product(y, "up", WIDTH, INNER)]), "down", INNER, WIDTH)])
    x = norm(x, "/final")
    nodes.append(helper.make_node("MatMul", [x, weight("lm_head", WIDTH, VOCABULARY)], ["logits"], name="/lm_head/MatMul"))
    data.close()
    value = helper.make_tensor_value_info
    inputs, outputs = [value("input_ids", TensorProto.INT64, ["B", "S"])], [value("logits", TensorProto.FLOAT, ["B", "S", VOCABULARY])]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    print(f"{count / 1e6:.1f} M parameters in weights")


def run_ort(method, model, out):
    """Runs in a process of its own."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, MatMulNBitsQuantizer

    how = HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4) if method == "ort-hqq" else None
    quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=4, block_size=BLOCK, is_symmetric=False, accuracy_level=4, algo_config=how)
    quantizer.process()
    quantizer.model.save_model_to_file(out, True)


def answer(path):
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (1, 16))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"input_ids": ids})[0].astype(np.float64)


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--ort":
        return run_ort(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("requant", type=os.path.abspath)
    parser.add_argument("--work", help="where the model is put, and found again")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="requant,ort")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.work or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "decoder.onnx"
        if not model.exists():
            make(model)
        outs = {name: folder / name / "out.onnx" for name in args.only.split(",")}
        ours = lambda recipe: lambda out: [args.requant, "convert", str(model), "-r", recipe, "-o", out, "--force", "-q", "--threads", "1"]
        theirs = lambda name: lambda out: [sys.executable, "-W", "ignore", os.path.abspath(__file__), "--ort", name, str(model), out]
        commands = {"requant": ours("w4"), "hqq": ours("hqq-w4"), "ort": theirs("ort"), "ort-hqq": theirs("ort-hqq")}
        if unknown := outs.keys() - commands.keys():
            parser.error(f"--only knows {', '.join(commands)}, and not {', '.join(unknown)}")
        seen = {name: [] for name in outs}
        for _ in range(args.runs):
            for name, out in outs.items():
                out.parent.mkdir(exist_ok=True)
                [f.unlink() for f in out.parent.iterdir()]
                cpu, _, peak = measure([commands[name](str(out))])
                seen[name].append((cpu, peak))
                print(f"  {name:8} {seen[name][-1][0]:7.2f} s CPU  {seen[name][-1][1] / 1e6:7.1f} MB", file=sys.stderr)
        for name, all in seen.items():
            bar = {"requant": "  (below 5 s and 1000 MB)", "hqq": "  (below 60 s)"}.get(name, "")
            print(f"{name:8} {min(s[0] for s in all):7.2f} s CPU  {max(s[1] for s in all) / 1e6:7.1f} MB anonymous{bar}")
        if args.check:
            import numpy as np

            float_answer = answer(str(model))
            for name, out in outs.items():
                y = answer(str(out))
                print(f"{name:8} {10 * np.log10(np.square(float_answer).sum() / np.square(y - float_answer).sum()):7.2f} dB of the float model's logits")


if __name__ == "__main__":
    main()
