"""Weights in every format and spelling, from recipe to file, against numpy.

weights.py make FOLDER: one model with MatMul, Gemm and Gather, a recipe for each case, and cases.json, the cases' names.
weights.py judge FOLDER: of each FOLDER/<case>.onnx, what is wrong with it: {case: [complaint …]}.

The products are fed identity matrices, so that their results are the weights. These must be those that numpy rounds, in ONNX Runtime without its optimizer
and with it, or, where that has no kernel, in onnx's reference evaluator.
"""

import json
import os
import sys

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from onnx.reference import ReferenceEvaluator

K, N, V, D = 80, 12, 9, 72  # the last block of 32 is short
FOLDER = sys.argv[2]
F = np.float32
ort.set_default_logger_severity(4)
NF4 = np.array([-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], F)


def weights():
    rng = np.random.default_rng(7)
    w = {name: rng.standard_normal(shape).astype(F) for name, shape in [("w", (K, N)), ("gt", (N, K)), ("gn", (K, N)), ("table", (V, D))]}
    w["w"][:, 0] *= 30
    w["w"][32:64, 3] = 0  # a block of nothing
    w["gt"] += 0.3
    return w


# ---- rounding, in numpy; blocks run along axis 0 of `w`


def blocks(w, size):
    """[blocks, size, columns], what is missing being NaN."""
    count = -(-len(w) // size)
    padded = np.full((count * size, w.shape[1]), np.nan, F)
    padded[: len(w)] = w
    return padded.reshape(count, size, w.shape[1])


def integer(w, size, bits, signed, symmetric, scale=None):
    b = blocks(w, size)
    lo, hi = np.minimum(np.nanmin(b, 1), 0), np.maximum(np.nanmax(b, 1), 0)
    first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if symmetric and signed:
        s, z = np.maximum(hi, -lo) / F(last), np.zeros_like(lo)
    elif symmetric:
        z = np.full_like(lo, 2 ** (bits - 1))
        s = np.maximum(hi / (last - z), -lo / z)
    else:
        s = (hi - lo) / F(last - first)
    s = np.where(s > 0, s, F(1))
    if scale:
        s = s.astype(scale).astype(F)
    if not symmetric:
        z = np.clip(np.round(first - lo / s), first, last)
    q = np.clip(np.round(b / s[:, None]) + z[:, None], first, last)
    return whole((q - z[:, None]) * s[:, None], w)


def whole(b, w):
    return b.reshape(-1, w.shape[1])[: len(w)].astype(F)


def absmax(w, size):
    return np.nanmax(np.abs(blocks(w, size)), 1)


def coded(w, size, s, dtype):
    """Numbers of a float type at these scales, or integers up to `dtype`."""
    v = blocks(w, size) / s[:, None]
    if isinstance(dtype, int):
        return whole(np.clip(np.round(v), -dtype - 1, dtype) * s[:, None], w)
    top = F(ml_dtypes.finfo(dtype).max)
    return whole(np.clip(v, -top, top).astype(dtype).astype(F) * s[:, None], w)


def plain_float(w, size, dtype):
    s = absmax(w, size) / F(ml_dtypes.finfo(dtype).max)
    return coded(w, size, np.where(s > 0, s, F(1)), dtype)


def mx(w, size, dtype, top):
    a = absmax(w, size).astype(np.float64)
    s = np.where(a > 0, 2.0 ** (np.floor(np.log2(np.where(a > 0, a, 1))) - np.floor(np.log2(top))), 1).astype(F)
    return coded(w, size, s, dtype)


def nvfp4(w, size):
    wanted = absmax(w, size) / F(6)
    outer = np.max(wanted) / F(448)
    s = (wanted / outer).astype(ml_dtypes.float8_e4m3fn).astype(F) * outer
    return coded(w, size, np.where(s > 0, s, F(2) ** -9 * outer), ml_dtypes.float4_e2m1fn)


def lpbq4(w, size):
    wanted = absmax(w, size) / F(7)
    outer = np.max(wanted, 0) / F(15)
    return coded(w, size, np.clip(np.round(wanted / outer), 1, 15) * outer, 7)


def nf4(w, size=64):
    s = absmax(w, size)
    s = np.where(s > 0, s, F(1))
    v = blocks(w, size) / s[:, None]
    return whole(NF4[np.argmin(np.abs(np.nan_to_num(v)[..., None] - NF4), -1)] * s[:, None], w)


def per_channel(w, bits):
    return integer(w, len(w), bits, True, True)


def real_zero(w, size, bits):
    b = blocks(w, size)
    lo, hi = np.nanmin(b, 1), np.nanmax(b, 1)
    s = np.where(lo == hi, np.abs(lo), (hi - lo) / F(2**bits - 1))
    s = np.where(s > 0, s, F(1))
    z = -lo / s
    return whole((np.clip(np.round(b / s[:, None] + z[:, None]), 0, 2**bits - 1) - z[:, None]) * s[:, None], w)


# ---- cases: name → (keys of weights, form, what numpy makes of a weight; None: only judged by its error)

E2M1, E2M3, E3M2, E4M3, E5M2 = ml_dtypes.float4_e2m1fn, ml_dtypes.float6_e2m3fn, ml_dtypes.float6_e3m2fn, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
CASES = {}


def case(name, keys, rule, forms=("qdq", "matmul-nbits")):
    for form in forms:
        CASES[f"{name}_{form}"] = (keys, form, rule)


for bits in [2, 3, 4, 5, 6, 7, 8]:
    for signed in (True, False):
        for symmetric in (True, False):
            kind = f"{'' if signed else 'u'}int{bits}"
            keys = f"format: {kind}, granularity: block, block_size: 32, symmetric: {str(symmetric).lower()}"
            case(f"{kind}_{'sym' if symmetric else 'asym'}", keys, lambda w, b=bits, s=signed, y=symmetric: integer(w, 32, b, s, y))
for size in (16, 128):
    case(f"uint4_{size}", f"format: uint4, granularity: block, block_size: {size}, symmetric: false", lambda w, n=size: integer(w, n, 4, False, False))
case("uint4_f16", "format: uint4, granularity: block, block_size: 32, scale: float16", lambda w: integer(w, 32, 4, False, False, np.float16))
case("int4_bf16", "format: int4, granularity: block, block_size: 32, scale: bfloat16", lambda w: integer(w, 32, 4, True, True, ml_dtypes.bfloat16))
case("int8_channel", "format: int8, granularity: channel", lambda w: per_channel(w, 8))
case("int4_channel", "format: int4, granularity: channel", lambda w: per_channel(w, 4))
for kind, dtype in [("e4m3fn", E4M3), ("e5m2", E5M2)]:
    case(f"float8{kind}", f"format: float8{kind}, granularity: block, block_size: 32", lambda w, d=dtype: plain_float(w, 32, d))
for name, dtype, top in [("mxfp4", E2M1, 6), ("mxfp6", E2M3, 7.5), ("mxfp6e3m2", E3M2, 28), ("mxfp8", E4M3, 448), ("mxint8", 127, 127)]:
    case(name, f"format: {name}", lambda w, d=dtype, t=top: mx(w, 32, d, t))
case("mxfp4_16", "format: mxfp4, block_size: 16", lambda w: mx(w, 16, E2M1, 6))
case("nvfp4", "format: nvfp4", lambda w: nvfp4(w, 16))
case("lpbq4", "format: lpbq4, block_size: 16", lambda w: lpbq4(w, 16))
for bits in (2, 4, 8):
    case(f"real_uint{bits}", f"format: uint{bits}, granularity: block, block_size: 32, zero_point: real", lambda w, b=bits: real_zero(w, 32, b))
case("nf4", "format: nf4", nf4)
case("nf4_16", "format: nf4, block_size: 16", lambda w: nf4(w, 16))
case("codebook4", "format: codebook4", None)


def make():
    w = weights()
    constants = [nh.from_array(v, k) for k, v in w.items()] + [nh.from_array(np.arange(N, dtype=F), "b"), nh.from_array(np.full((1, N), 2, F), "b2")]
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["y"], "product"),
        h.make_node("Gemm", ["g", "gt", "b"], ["yt"], "turned", transB=1),
        h.make_node("Gemm", ["g", "gn", "b2"], ["yn"], "plain"),
        h.make_node("Gather", ["table", "ids"], ["e"], "rows"),
    ]
    value = h.make_tensor_value_info
    inputs = [value("x", T.FLOAT, ["B", K, K]), value("g", T.FLOAT, ["M", K]), value("ids", T.INT64, ["I"])]
    outputs = [value("y", T.FLOAT, ["B", K, N]), value("yt", T.FLOAT, ["M", N]), value("yn", T.FLOAT, ["M", N]), value("e", T.FLOAT, ["I", D])]
    model = h.make_model(h.make_graph(nodes, "weights", inputs, outputs, constants), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, os.path.join(FOLDER, "model.onnx"))
    for name, (keys, form, _) in CASES.items():
        text = f"activations: none\nweights: {{ {keys} }}\nsteps: [ {{ round: nearest }}, {{ lower: {{ form: {form} }} }} ]\n"
        with open(os.path.join(FOLDER, name + ".yaml"), "w") as f:
            f.write(text)
    with open(os.path.join(FOLDER, "cases.json"), "w") as f:
        json.dump(list(CASES), f)


def answers(model, feeds):
    """By runtime. The optimizer multiplies 2-bit blocks wrongly (ONNX Runtime 1.31), and by default rounds inputs to 8 bits."""
    levels = {"plain": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "optimized": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
    found = {}
    for name, level in levels.items():
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        try:
            found[name] = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
        except Exception as e:
            if not any(word in str(e) for word in ["NOT_IMPLEMENTED", "INVALID_GRAPH", "Unsupported model IR version"]):
                raise
    return found or {"reference": ReferenceEvaluator(model).run(None, feeds)}


def judge(name, rule):
    complaints = []
    model = onnx.load(os.path.join(FOLDER, name + ".onnx"))
    onnx.checker.check_model(model)
    ops = [n.op_type for n in model.graph.node]
    stored = {t.data_type for t in model.graph.initializer}
    w = weights()
    feeds = {"x": np.eye(K, dtype=F)[None], "g": np.eye(K, dtype=F), "ids": np.arange(V)}
    own = lambda w: rule(w) if rule else None
    want = [own(w["w"]), own(w["gt"].T), own(w["gn"]), own(w["table"].T)]
    two_bits = {T.INT2, T.UINT2} & stored
    for runtime, (y, yt, yn, e) in answers(model, feeds).items():
        if runtime == "optimized" and two_bits:
            continue
        got = [y[0], yt - np.arange(N, dtype=F), yn - 2, e.T]
        for what, a, b, plain in zip(["w", "gt", "gn", "table"], got, want, [w["w"], w["gt"].T, w["gn"], w["table"].T]):
            if b is None:
                loss = np.mean((a - plain) ** 2) / np.mean(plain**2)
                if loss > 0.012:
                    complaints.append(f"{runtime}: {what} loses {loss:.4f}")
                continue
            apart = np.abs(a - b)
            if not apart.max() <= 4e-6 * np.abs(b).max():
                complaints.append(f"{runtime}: {what} is off by {apart.max():.3g} of {np.abs(b).max():.3g} in {np.count_nonzero(apart > 1e-5)} places")
    return complaints, sorted(set(ops))


if sys.argv[1] == "make":
    make()
else:
    print(json.dumps({name: judge(name, rule) for name, (_, _, rule) in CASES.items() if os.path.exists(os.path.join(FOLDER, name + ".onnx"))}))
