"""Real compilers beside `requant check`: which nodes of a file run on codes, node by node, as the compiler says and as the profile foretold.

    clients.py CLIENT [--models a,b] [--out DIR] [--own | --gate] [--recipe R]     CLIENT: onnxruntime, qnn, openvino, rknn, tpumlir, acuity, imx500

A model is a name of those below, or NAME=MODEL.onnx:SAMPLES.npz: any file, whose inputs take the sizes of the samples, one at a time.
Files: the shared models and micro-models under the client's own profiles, and variants that break its rules: other types, zero points, granularities,
holes of float, spellings and opsets. A file counts as refused where the compiler does not take it, or takes it and computes something else.
--gate asks of the files under the client's own profiles whether they run as they must: exit code 1 and a line for each that does not.
Recall: of all refused files and nodes that do not run on codes, the share that was foretold. Precision: of all that was foretold so, the share that is so.
"""

import argparse
import collections
import concurrent.futures
import glob
import json
import os
import re
import signal
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
    "acuity": ("acuity", "check_acuity.py", ["vivante"], 0.25),
    "imx500": ("imx500", "check_imx500.py", ["imx500"], 0.25),
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
# What --gate asks by default. A product of these ops must be an integer kernel; ConvTranspose has none on the CPUs.
CPU_PRODUCTS = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Convolution", "GroupConvolution", "FullyConnected")
# Small networks and operators of images, on which a rounding does not grow: so many steps of the output a result may be off.
SMALL = ["micro_cnn", "micro_conv_bn_relu", "micro_conv_clip6_dw", "micro_conv_nobias_out", "micro_pools", "micro_residual", "micro_residual_skip",
         "micro_concat", "micro_gemm", "micro_resize", "micro_split"]
TALL = ["kws_dscnn", "resnet20_bn", "mobilenetv2_cifar10", "effnet_lite0_dynamo"]
# The same for who reads at most opset 19.
OLD = [*TALL[:3], "effnet_lite0"]
OTHERS = ["micro_matmul_w_add", "micro_attn", "micro_layernorm", "micro_gelu20", "micro_gelu_erf", "micro_gather_emb", "micro_reshape_tr", "micro_silu_hswish",
          "micro_deconv"]
GATED = {
    "onnxruntime": [*SMALL, *OTHERS, "micro_lstm", *TALL, "darknet_tiny"],
    "qnn": [*SMALL, *OTHERS, *TALL],
    "openvino": [*SMALL, *OTHERS, "micro_lstm", *TALL],
    "rknn": [*SMALL, *OLD],
    "tpumlir": [*SMALL, *OLD],
    "acuity": [*SMALL, *OTHERS, *TALL],
    "imx500": [*SMALL, "kws_dscnn", "ic_resnet8", "resnet20_bn"],
}
# Steps of an 8-bit output that a small network may be off, from ONNX Runtime without optimization; more where two results, each a step of its own off,
# are added or multiplied (docs/targets.md).
STEPS = {"qnn": 1.5, "rknn": 3.0, "tpumlir": 3.0}
JOINED = {"micro_residual": 2.5, "micro_split": 3.5}
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


def headed(source, model):
    """The float model as far as the file goes: of a detector whose tail was cut off, the heads."""
    import onnx

    heads = [o.name for o in onnx.load(model).graph.output]
    if heads == [o.name for o in onnx.load(source).graph.output]:
        return source
    path = os.path.join(tempfile.mkdtemp(), "heads.onnx")
    onnx.utils.extract_model(source, path, [i.name for i in onnx.load(source).graph.input], heads, check_model=False)
    return path


def numbers(script, model, source, *sample):
    """A check script of the shared folder, whose RESULT then also says, of the worst output, how far in the mean square three answers lie from each other:
    the compiler's from ONNX Runtime's without optimization (`rms`), and both from the float model's (`rms_float`, `rms_file`), as shares of the latter."""
    import runpy

    import numpy as np

    sys.path.insert(0, TOOLS)
    import npulib

    report = npulib.report

    def apart(a, b):
        flat = [(np.asarray(x, float).reshape(-1), np.asarray(y, float).reshape(-1)) for x, y in zip(a, b)]
        share = lambda x, y: float(np.sqrt(np.square(x - y).mean() / max(np.square(y).mean(), 1e-30))) if x.size == y.size else float("inf")
        return max((share(x, y) for x, y in flat if y.size), default=float("inf"))

    def more(client, accepted, t0=None, quantized=None, floats=None, got=None, ort=None, raw=None, **rest):
        if got is not None and raw:
            mine, file = list(got.values()) if isinstance(got, dict) else list(got), list(raw.values())
            float_ = list(npulib.reference(source, *(sample or [None]))[2].values())
            far = {"rms": apart(mine, file), "rms_float": apart(mine, float_), "rms_file": apart(file, float_)}
            # Of a model whose tail was cut off, the float one has other outputs.
            rest = {**{k: v for k, v in far.items() if np.isfinite(v)}, **rest}
        report(client, accepted, t0, quantized, floats, got, ort, raw, **rest)

    npulib.report = more
    sys.argv = [script, model, *sample]
    runpy.run_path(script, run_name="__main__")


# ---- outside


def last(prefix, text):
    lines = [line[len(prefix) :] for line in text.splitlines() if line.startswith(prefix)]
    return json.loads(lines[-1]) if lines else None


def run(command, seconds=900):
    """What became of a program, and of all that it started; one that does not end in time is ended, and says so."""
    environment = dict(os.environ, NPU_VENVS=VENVS)
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        out, err = p.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        out, err = p.communicate()
        err += f"\nno end within {seconds} s"
    return subprocess.CompletedProcess(command, p.returncode, out, err)


def truth(client, path, source, sample, seconds):
    """What the compiler makes of a file: its table, and whether its numbers are right, on one sample or on noise."""
    venv, script, _, most = CLIENTS[client]
    python = os.path.join(VENVS, venv, "bin", "python")
    inputs, source = [sample] if sample else [], headed(source, path)
    if os.path.exists(os.path.join(HERE, script)):
        done = run(["python3", os.path.join(HERE, script), path, *inputs], seconds)
    else:
        done = run([python, "-B", os.path.abspath(__file__), "--numbers", os.path.join(TOOLS, script), path, source, *inputs], seconds)
    result = last("RESULT ", done.stdout) or {"accepted": False, "error": done.stderr[-300:]}
    answer = {"accepted": bool(result["accepted"]), "nodes": {}}
    if f"table_{client}" in globals():
        own = run([python, os.path.abspath(__file__), "--table", client, path], seconds)
        answer = last("TABLE ", own.stdout) or {"accepted": False, "nodes": {}, "error": f"it died: {own.stderr[-300:]}"}
    deviation = result.get("rel_dev_vs_ort_unoptimised")
    # What is far from the float model to begin with lands elsewhere after every rounding, and a map of edges at each of them: whoever is hardly farther from
    # it is not wrong. That is asked of others' models alone, which come with samples; on noise the difference decides.
    as_good = bool(sample) and result.get("rms_float", float("inf")) <= 1.5 * result.get("rms_file", 0) + 0.05
    wrong = answer["accepted"] and isinstance(deviation, float) and not deviation <= most and not as_good
    return {**answer, "wrong": wrong, "result": result}


def convert(model, out, target, more):
    """None, or why not. The report is written to OUT.json."""
    args = [REQUANT, "convert", model, "-o", out, "--target", target, "--force", "-q", "--report", out + ".json", *more]
    done = run(args)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"


def check(path, target):
    done = run([REQUANT, "check", path, "--target", target, "--json"])
    if done.returncode == 2:
        raise SystemExit(f"{path}: {done.stderr}")
    return json.loads(done.stdout)


def named(source, destination, sample={}):
    """The model with a name for every node, since compilers speak of nodes by name, and with the sizes of a sample, since some want numbers."""
    import onnx

    m = onnx.load(source)
    for i in m.graph.input:
        if i.name in sample:
            i.CopyFrom(onnx.helper.make_tensor_value_info(i.name, i.type.tensor_type.elem_type, sample[i.name].shape))
    if sample:
        # What was told of the rest may speak of other sizes.
        del m.graph.value_info[:]
        for o in m.graph.output:
            o.type.tensor_type.ClearField("shape")
    seen = collections.Counter()
    for n in m.graph.node:
        n.name = n.name or n.output[0]
        seen[n.name] += 1
        if seen[n.name] > 1:
            n.name += f"_{seen[n.name]}"
    onnx.save(m, destination)


def foreign(text, out):
    """NAME=MODEL.onnx:SAMPLES.npz -> its name, its model with the sizes of one sample, its samples, and the first of them."""
    import numpy as np
    import onnx

    name, _, rest = text.partition("=")
    path, _, samples = rest.partition(":")
    declared = {i.name: len(i.type.tensor_type.shape.dim) for i in onnx.load(path, load_external_data=False).graph.input}
    # Samples lie along a first axis, which is the batch's where an input has as many dimensions.
    first = {k: v[:1] if v.ndim == declared[k] else v[0] for k, v in np.load(samples).items()}
    model, sample = (os.path.join(out, f"{name}.{end}") for end in ("onnx", "sample.npz"))
    named(path, model, first)
    np.savez(sample, **first)
    return name, model, samples, sample


def cnn():
    """A small image classifier: five convolutions, one of them depthwise, one skipped by a residual, and a fully connected layer."""
    import numpy as np
    from micro_models import Graph, T

    g = Graph("cnn", {"x": (T.FLOAT, (1, 3, 32, 32))})
    low, high = g.put(np.float32(0), "low"), g.put(np.float32(6), "high")
    a = g.one("Relu", [g.conv("x", "c1", 3, 16, strides=[2, 2])], "r1")
    b = g.one("Clip", [g.conv(a, "c2", 16, 16, groups=16), low, high], "r2")
    c = g.one("Relu", [g.one("Add", [g.conv(b, "c3", 16, 16, k=1), a], "sum")], "r3")
    d = g.one("Relu", [g.conv(c, "c4", 16, 32, strides=[2, 2])], "r4")
    e = g.one("Relu", [g.conv(d, "c5", 32, 32)], "r5")
    f = g.one("Flatten", [g.one("GlobalAveragePool", [e], "pool")], "flat", axis=1)
    w, bias = g.floats(10, 32, name="fc.w", scale=32**-0.5), g.floats(10, name="fc.b", scale=0.1)
    return g.model(g.one("Gemm", [f, w, bias], "logits", transB=1))


def micro(out):
    import onnx

    sys.path.insert(0, os.path.join(HERE, "..", "python"))
    import micro_models

    paths = {}
    for make in [cnn, *micro_models.CASES]:
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


def prepared(name, out):
    """Calibration data of a model, as the recipe's `--data` takes it."""
    if name.startswith("micro_"):
        return "random:16"
    kept = os.path.join(PREP or out, f"{name}.npz")
    if not os.path.exists(kept) and name in MODELS:
        script = os.path.join(SHARED, "models", "eval", "prepare.py")
        subprocess.run([sys.executable, "-B", script, PREP or out, "--only", name, "--n", "16"], stdout=subprocess.DEVNULL, check=True)
    return kept


def output_step(path):
    """The scale of the codes that become the first output; None if it is not codes."""
    import onnx
    from onnx import numpy_helper

    g = onnx.load(path).graph
    constants = {t.name: t for t in g.initializer}
    maker = next((n for n in g.node if g.output[0].name in n.output and n.op_type == "DequantizeLinear"), None)
    scale = maker and constants.get(maker.input[1])
    return scale and float(numpy_helper.to_array(scale).reshape(-1)[0])


def faults(client, name, target, path, real):
    """Why a file does not run as it must."""
    import onnx

    if not real["accepted"]:
        return [f"refused: {real.get('error') or real['result'].get('error', '')}"[:300]]
    result, found = real["result"], []
    left = dict(result.get("float_by_op", {}))
    if client in ("onnxruntime", "openvino"):
        left = {op: n for op, n in left.items() if op.split(":")[0] in CPU_PRODUCTS}
    if left and (client != "tpumlir" or result["float_nodes"]):
        found.append(f"in float: {left}")
    if real["wrong"]:
        found.append(f"other numbers: {result['rel_dev_vs_ort_unoptimised']:.3f} of the largest")
    graph = onnx.load(path).graph
    if client == "qnn":
        cpu, edges = result["left_on_cpu"], {"QuantizeLinear": len(graph.input), "DequantizeLinear": len(graph.output)}
        if result["partitions"] != 1 or any(n > edges.get(op, 0) for op, n in cpu.items()):
            found.append(f"{result['partitions']} partitions, on the CPU {cpu}")
    step = output_step(path)
    if name in SMALL and client in STEPS and step and not target.endswith("16"):
        steps = result["max_dev_vs_ort_unoptimised"] / step
        result["steps"] = round(steps, 2)
        if not steps <= max(STEPS[client], JOINED.get(name, 0.0)):
            found.append(f"{steps:.2f} steps of the output off")
    return found


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
    if sys.argv[1:2] == ["--numbers"]:
        return numbers(*sys.argv[2:])
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("client", choices=CLIENTS)
    p.add_argument("--models", help="names, or NAME=MODEL.onnx:SAMPLES.npz, with commas between; variants are made of all of them")
    p.add_argument("--out", default=tempfile.mkdtemp(prefix="clients"))
    p.add_argument("--own", action="store_true", help="only what is written for the client's own profiles")
    p.add_argument("--gate", action="store_true", help="only what is written for the client's own profiles, and whether it runs as it must")
    p.add_argument("--recipe", help="another than the profiles' own, for the own files")
    p.add_argument("--samples", type=int, help="how many calibrate")
    p.add_argument("--seconds", type=int, default=900, help="a compiler that takes longer for one file is ended, and counts as refusing it")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time")
    a = p.parse_args()
    if not os.path.isdir(TOOLS):
        raise SystemExit("REQUANT_SHARED: name the folder that holds tools/npu; without its check scripts every file would count as refused")
    os.makedirs(a.out, exist_ok=True)
    targets = CLIENTS[a.client][2]

    sources = micro(a.out)
    wanted = a.models.split(",") if a.models else GATED[a.client] if a.gate else list({**sources, **MODELS})
    others = [foreign(text, a.out) for text in wanted if "=" in text]
    wanted = [text.partition("=")[0] for text in wanted]
    sources.update((name, model) for name, model, _, _ in others)
    samples = {name: npz for name, _, npz, _ in others}
    first = {name: sample for name, _, _, sample in others}
    for name, path in MODELS.items():
        sources[name] = os.path.join(a.out, f"{name}.onnx")
        if name in wanted:
            named(os.path.join(SHARED, "models", path), sources[name])
    base = lambda name: ["--data", samples.get(name) or prepared(name, a.out), "--set", "data.validate=8"]

    def own(target, name):
        path = os.path.join(a.out, f"{name}.{target}.onnx")
        recipe = ["-r", a.recipe, *(["--set", "activations.bits=16"] if target.endswith("16") else [])] if a.recipe else []
        # A gate judges what the compiler takes, not the accuracy: few samples do.
        few = ["--set", f"data.samples={a.samples or 16}"] if a.gate or a.samples else []
        return path, convert(sources[name], path, target, [*base(name), *recipe, *few])

    files = []  # (name, path, target, own)
    bad = []
    pool = concurrent.futures.ThreadPoolExecutor(a.jobs)
    made = [(target, name, pool.submit(own, target, name)) for target in targets for name in wanted]
    for target, name, (path, why) in ((t, n, f.result()) for t, n, f in made):
        if why is None:
            files.append((name, path, target, True))
        else:
            bad.append(f"{name} for {target}: not converted: {why}")
            print(bad[-1])
    if not a.own and not a.gate:
        varied = wanted if a.models else VARIED
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
    asked = {path: name.split(".")[0] for name, path, _, _ in files}
    answers = {path: pool.submit(truth, a.client, path, sources[name], first.get(name), a.seconds) for path, name in asked.items()}
    for name, path, target, own in files:
        said = check(path, target)
        if not said["quantized"]:
            continue
        real = answers[path].result()
        if a.gate:
            bad += [f"{name} for {target}: {why}" for why in faults(a.client, name, target, path, real)]
        rows = compare(said, real)
        total[own].add(rows)
        result = real["result"]
        missed = [r for r in rows if (r[1] in FALL) != (r[2] in FALL)]
        kinds = collections.Counter(real["nodes"].values())
        state = "refused" if not real["accepted"] else "wrong numbers" if real["wrong"] else "taken"
        deviation = result.get("rel_dev_vs_ort_unoptimised")
        rms = "".join(f" {k} {result[k]:.3f}" for k in ("rms", "rms_float", "rms_file") if k in result)
        steps = f" steps {result['steps']}" if "steps" in result else ""
        print(
            f"{name:40} {target:9} {state:13} {dict(kinds)} float_nodes {result.get('float_nodes')} deviation {deviation if deviation is None else round(deviation, 4)}{rms}{steps}"
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
    if a.gate and bad:
        raise SystemExit("\n".join([f"{a.client}: not as it must be:", *bad]))


if __name__ == "__main__":
    main()
