"""Real compilers beside `requant check`: which nodes of a file run on codes, node by node, as the compiler says and as the profile foretold.

    clients.py CLIENT [--models a,b] [--out DIR] [--own] [--recipe R]     CLIENT: onnxruntime, qnn, openvino, rknn, tpumlir

Files: the shared models and micro-models under the client's own profiles, and variants that break its rules: other types, zero points, granularities,
holes of float, spellings and opsets. A file counts as refused where the compiler does not take it, or takes it and computes something else.
Recall: of all refused files and nodes that do not run on codes, the share that was foretold. Precision: of all that was foretold so, the share that is so.
"""

import argparse
import collections
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.environ.get("REQUANT_SHARED", "")
TOOLS = os.path.join(SHARED, "tools", "npu")
VENVS = os.environ.get("NPU_VENVS", "")
REQUANT = os.environ.get("REQUANT", "requant")
PREP = os.environ.get("REQUANT_PREP", "")

# Client: environment, check script, profiles, and how far its numbers may be from ONNX Runtime's (of the largest).
CLIENTS = {
    "onnxruntime": ("base", "check_ort.py", ["ort"], 0.25),
    "qnn": ("qnn", "check_qnn.py", ["qnn", "qnn-16"], 0.25),
    "openvino": ("openvino", "check_openvino.py", ["openvino"], 0.25),
    "rknn": ("rknn", "check_rknn.py", ["rknn"], 0.25),
    "tpumlir": ("tpumlir", "check_tpumlir.py", ["sophgo"], 0.5),
}
MODELS = {
    "resnet20_bn": "cifar_resnet/resnet20_cifar10_bn.onnx",
    "kws_dscnn": "mlperf_tiny/kws_dscnn.onnx",
    "mobilenetv2_cifar10": "mobilenetv2/mobilenetv2_160_cifar10.onnx",
    "effnet_lite0": "effnet_lite/effnet_lite0.onnx",
    "effnet_lite0_dynamo": "effnet_lite/effnet_lite0_dynamo_op20.onnx",
    "ic_resnet8": "mlperf_tiny/ic_resnet8.onnx",
    "darknet_tiny": "darknet_tiny/darknet_tiny.onnx",
    "vit_pgd_cifar10": "vnn_cifar/vit_pgd_2_3_16.onnx",
    "ppocr_cls": "ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "yolox_nano": "yolox_nano/yolox_nano_416.onnx",
    "minilm_l3": "minilm_l3/paraphrase_minilm_l3.onnx",
}
VARIED = ["kws_dscnn", "resnet20_bn", "micro_matmul_w_add", "micro_attn", "micro_gemm", "micro_residual", "micro_concat", "micro_conv_clip6_dw"]
INT8 = ["--set", "activations.format=int8", "--set"]
VARIANTS = {
    "generic": [],
    "s8": [*INT8, "activations.symmetric=true"],
    "a8": [*INT8, "activations.symmetric=false"],
    "a16": ["--set", "activations.bits=16"],
    "s16": ["--set", "activations.format=int16", "--set", "activations.symmetric=true"],
    "w_u8": ["--set", "weights.format=uint8", "--set", "weights.symmetric=false", "--set", "weights.granularity=tensor"],
    "w_tensor": ["--set", "weights.granularity=tensor"],
    "w4": ["--set", "weights.format=int4"],
    "bias_float": ["--set", "bias=none"],
    "w8": ["-r", "w8"],
    "holes": ["--set", "overrides+={where: depthwise, keep: float, optional: true}", "--set", "overrides+={ops: [Add, Relu, Clip, Softmax], keep: float, optional: true}"],
    "first_last": ["--set", "overrides+={where: first, keep: float}", "--set", "overrides+={where: last, keep: float}"],
}


# ---- what a compiler says, inside its environment: {accepted, nodes: {name: integer | float | split}}


def elements(graph):
    """Tensor -> whether it holds codes, in a graph that ONNX Runtime optimized."""
    import onnx

    codes = {}
    for t in graph.initializer:
        codes[t.name] = t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    for n in graph.node:
        op = n.op_type
        if op == "QuantizeLinear" or op == "DynamicQuantizeLinear":
            kind = True
        elif op in ("DequantizeLinear", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger", "Cast"):
            kind = False
        elif op == "QGemm":
            kind = len(n.input) > 7 and bool(n.input[7])
        elif op.startswith("QLinear"):
            kind = True
        else:
            kind = bool(n.input) and codes.get(n.input[0], False)
        codes.update((o, kind) for o in n.output)
    return codes


def table_onnxruntime(path):
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    # The highest level changes layouts, and names with them.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.path.join(tempfile.mkdtemp(), "optimized.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    codes = elements(graph)
    integer = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")
    nodes = {}
    for n in graph.node:
        if n.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant", "Cast", "Shape"):
            continue
        nodes[n.name] = "integer" if n.op_type.startswith(integer) or n.input and codes.get(n.input[0], False) else "float"
    return nodes


def table_qnn(path):
    import onnx
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    folder = tempfile.mkdtemp()
    ort.set_default_logger_severity(4)
    ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
    device = [d for d in ort.get_ep_devices() if d.ep_name.startswith("QNN")][:1]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for key, value in {"ep.context_enable": "1", "ep.context_file_path": f"{folder}/ctx.onnx", "ep.context_embed_mode": "0"}.items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices(device, {"backend_type": "htp", "dump_json_qnn_graph": "1", "json_qnn_graph_dir": folder})
    ort.InferenceSession(path, options)
    context = f"{folder}/ctx.onnx" if os.path.exists(f"{folder}/ctx.onnx") else path
    nodes = {}
    for n in onnx.load(context, load_external_data=False).graph.node:
        if n.op_type not in ("EPContext", "QuantizeLinear", "DequantizeLinear", "Constant"):
            nodes[n.name] = "split"
    for f in glob.glob(f"{folder}/*.json"):
        if f.endswith("_tensor_log.json"):
            continue
        graph = json.load(open(f))["graph"]
        for name, n in graph["nodes"].items():
            dtype = graph["tensors"][n["output_names"][0]]["data_type"]
            nodes[re.sub(r"(_token_\d+|_out\d+)+$", "", name)] = "float" if dtype in (0x232, 0x216) else "integer"
    return nodes


def table_openvino(path):
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"PERF_COUNT": "YES", "INFERENCE_PRECISION_HINT": "f32"})
    of = lambda info, key: str(getattr(info[key], "value", info[key])) if key in info else ""
    nodes = {}
    for n in compiled.get_runtime_model().get_ordered_ops():
        info = n.get_rt_info()
        # Of the rest the CPU's plugin decides by speed.
        if of(info, "layerType") not in ("Convolution", "MatMul", "FullyConnected", "Deconvolution", "GroupConvolution"):
            continue
        # Its precision may be that of its weights alone; the kernel's name tells.
        kind = "integer" if of(info, "primitiveType").lower().endswith("i8") else "float"
        for name in of(info, "originalLayersNames").split(","):
            nodes[name.removesuffix("/WithoutBiases")] = kind
    return nodes


def table(client, path):
    try:
        answer = {"accepted": True, "nodes": globals()[f"table_{client}"](path)}
    except Exception as e:
        answer = {"accepted": False, "nodes": {}, "error": str(e)[:400]}
    print("TABLE " + json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)


# ---- outside


def last(prefix, text):
    lines = [line[len(prefix) :] for line in text.splitlines() if line.startswith(prefix)]
    return json.loads(lines[-1]) if lines else None


def run(command, seconds=900):
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=dict(os.environ, NPU_VENVS=VENVS))


def truth(client, path):
    """What the compiler makes of a file: its table, and whether its numbers are right."""
    venv, script, _, most = CLIENTS[client]
    npz = path.replace(".onnx", ".input.npz")
    result = last("RESULT ", run(["python3", os.path.join(TOOLS, script), path, *([npz] if os.path.exists(npz) else [])]).stdout) or {"accepted": False}
    python = os.path.join(VENVS, venv, "bin", "python")
    answer = {"accepted": bool(result["accepted"]), "nodes": {}}
    if f"table_{client}" in globals():
        own = run([python, os.path.abspath(__file__), "--table", client, path])
        answer = last("TABLE ", own.stdout) or {"accepted": False, "nodes": {}, "error": f"it died: {own.stderr[-300:]}"}
    deviation = result.get("rel_dev_vs_ort_unoptimised")
    wrong = answer["accepted"] and isinstance(deviation, float) and not deviation <= most
    return {**answer, "wrong": wrong, "result": result}


def convert(model, out, target, more):
    args = [REQUANT, "convert", model, "-o", out, "--target", target, "--force", "-q", "--report", out + ".json", *more]
    done = run(args)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"


def check(path, target):
    done = run([REQUANT, "check", path, "--target", target, "--json"])
    if done.returncode == 2:
        raise SystemExit(f"{path}: {done.stderr}")
    return json.loads(done.stdout)


def named(source, destination):
    """The model with a name for every node, since compilers speak of nodes by name."""
    import onnx

    m = onnx.load(source)
    seen = collections.Counter()
    for n in m.graph.node:
        n.name = n.name or n.output[0]
        seen[n.name] += 1
        if seen[n.name] > 1:
            n.name += f"_{seen[n.name]}"
    onnx.save(m, destination)


def micro(out):
    import onnx

    sys.path.insert(0, os.path.join(HERE, "..", "python"))
    import micro_models

    paths = {}
    for make in micro_models.CASES:
        m = make()
        paths[f"micro_{make.__name__}"] = path = os.path.join(out, f"micro_{make.__name__}.onnx")
        onnx.save(m, path)
    return paths


def peers(models, out):
    """Files of ONNX Runtime's own quantizer: operators on codes, dynamic, and symmetric QDQ."""
    import numpy as np
    import onnx
    from onnxruntime import quantization as q

    class Random(q.CalibrationDataReader):
        def __init__(self, path):
            g = onnx.load(path).graph
            rng = np.random.default_rng(1)
            shape = lambda i: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim]
            inputs = [i for i in g.input if i.name not in {t.name for t in g.initializer}]
            self.left = [{i.name: rng.standard_normal(shape(i)).astype(np.float32) for i in inputs} for _ in range(4)]

        def get_next(self):
            return self.left.pop() if self.left else None

    for name in models:
        path = models[name]
        made = {kind: os.path.join(out, f"{name}.ort_{kind}.onnx") for kind in ("qop", "s8s8", "dynamic")}
        try:
            q.quantize_static(path, made["qop"], Random(path), quant_format=q.QuantFormat.QOperator, per_channel=False)
            s8 = dict(activation_type=q.QuantType.QInt8, weight_type=q.QuantType.QInt8, extra_options={"ActivationSymmetric": True})
            q.quantize_static(path, made["s8s8"], Random(path), quant_format=q.QuantFormat.QDQ, per_channel=True, **s8)
            q.quantize_dynamic(path, made["dynamic"])
        except Exception as e:
            print(f"{name}: ONNX Runtime's quantizer: {str(e)[:100]}")
        yield from ((f"{name}.ort_{kind}", path) for kind, path in made.items() if os.path.exists(path))


def compare(said, real):
    """(node, said, real) of everything that both speak of; the model itself is a node called ''."""
    refused = [r for r in said["nodes"] if r["verdict"] == "refused"]
    real_refused = not real["accepted"] or real["wrong"]
    rows = [("", "refused" if refused else "taken", "refused" if real_refused else "taken")]
    if real_refused or refused:
        return rows
    for r in said["nodes"]:
        what = real["nodes"].get(r["node"])
        if what and r["node"] and r["verdict"] != "exact":
            rows.append((r["node"], "integer" if r["verdict"] == "requantizes" else r["verdict"], what))
    return rows


FALL = ("refused", "float", "split")


class Score:
    def __init__(self):
        self.hit = self.said = self.real = self.rows = 0

    def add(self, rows):
        for _, said, real in rows:
            self.rows += 1
            self.said += said in FALL
            self.real += real in FALL
            self.hit += said in FALL and real in FALL

    def text(self):
        share = lambda a, b: f"{100 * a / b:.1f} %" if b else "—"
        return f"recall {share(self.hit, self.real)} ({self.hit} of {self.real}), precision {share(self.hit, self.said)} ({self.hit} of {self.said}), {self.rows} compared"


def main():
    if sys.argv[1:2] == ["--table"]:
        table(*sys.argv[2:4])
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("client", choices=CLIENTS)
    p.add_argument("--models", help="names, with commas between")
    p.add_argument("--out", default=tempfile.mkdtemp(prefix="clients"))
    p.add_argument("--own", action="store_true", help="only what is written for the client's own profiles")
    p.add_argument("--recipe", help="another than the profiles' own, for the own files")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    targets = CLIENTS[a.client][2]

    sources = micro(a.out)
    for name, path in MODELS.items():
        sources[name] = os.path.join(a.out, f"{name}.onnx")
        if not a.models or name in a.models.split(","):
            named(os.path.join(SHARED, "models", path), sources[name])
    wanted = a.models.split(",") if a.models else list(sources)
    data = lambda name: os.path.join(PREP, f"{name}.npz") if os.path.exists(os.path.join(PREP, f"{name}.npz")) else "random:16"
    base = lambda name: ["--data", data(name), "--set", "data.validate=8"]

    files = []  # (name, path, target, own)
    for target in targets:
        for name in wanted:
            path = os.path.join(a.out, f"{name}.{target}.onnx")
            recipe = ["-r", a.recipe, *(["--set", "activations.bits=16"] if target.endswith("16") else [])] if a.recipe else []
            why = convert(sources[name], path, target, [*base(name), *recipe])
            files.append((name, path, target, True)) if why is None else print(f"{name} for {target}: not converted: {why}")
    if not a.own:
        varied = [n for n in VARIED if n in wanted] if a.models else VARIED
        for name in varied:
            if not os.path.exists(sources[name]):
                named(os.path.join(SHARED, "models", MODELS[name]), sources[name])
            for variant, more in VARIANTS.items():
                path = os.path.join(a.out, f"{name}.{variant}.onnx")
                recipe = [] if "-r" in more else ["-r", "int8-fast"]
                why = convert(sources[name], path, "generic", [*base(name), "--fix-dim", "N=1", *recipe, *more])
                why = why and convert(sources[name], path, "generic", [*base(name), *recipe, *more])
                files += [(f"{name}.{variant}", path, t, False) for t in targets] if why is None else []
                if why:
                    print(f"{name}, variant {variant}: not converted: {why}")
        files += [(n, path, t, False) for n, path in peers({n: sources[n] for n in varied}, a.out) for t in targets]

    total, log = {True: Score(), False: Score()}, []
    answers = {}
    for name, path, target, own in files:
        said = check(path, target)
        if not said["quantized"]:
            continue
        real = answers.setdefault(path, None) or truth(a.client, path)
        answers[path] = real
        rows = compare(said, real)
        total[own].add(rows)
        result = real["result"]
        missed = [r for r in rows if (r[1] in FALL) != (r[2] in FALL)]
        kinds = collections.Counter(real["nodes"].values())
        state = "refused" if not real["accepted"] else "wrong numbers" if real["wrong"] else "taken"
        deviation = result.get("rel_dev_vs_ort_unoptimised")
        print(
            f"{name:40} {target:9} {state:13} {dict(kinds)} float_nodes {result.get('float_nodes')} deviation {deviation if deviation is None else round(deviation, 4)}"
            f" | check: {said['integer']} integer, {said['float']} float, {said['split']} split, {said['refused']} refused",
            flush=True,
        )
        for node, foretold, is_ in missed:
            row = next((r for r in said["nodes"] if r["node"] == node and (node or r["verdict"] == "refused")), {"op": "", "reason": ""})
            print(f"    {node or 'the model'} ({row['op']}): said {foretold} {row['reason'][:80]!r}, is {is_} {real.get('error', '')[:160]}")
        log.append({"name": name, "target": target, "own": own, "state": state, "kinds": kinds, "result": result, "missed": missed, "said": said["integer"]})
    both = Score()
    for s in total.values():
        for k in vars(both):
            setattr(both, k, getattr(both, k) + getattr(s, k))
    print(f"\n{a.client}: own files: {total[True].text()}\n{a.client}: variants:  {total[False].text()}\n{a.client}: all:       {both.text()}")
    json.dump(log, open(os.path.join(a.out, f"{a.client}.json"), "w"), indent=1)


if __name__ == "__main__":
    main()
