"""Writes small quantized models, seeded inputs and what onnxruntime without optimizations (or onnx's reference) answers, for tests/it/lift.rs.

quantized.py FOLDER: FOLDER/<case>.onnx, FOLDER/<case>.<i>.bin and FOLDER/cases.json.
"""

import json
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

FOLDER = sys.argv[1]
CASES = []
MS = "com.microsoft"
ort.set_default_logger_severity(4)


def rng(name):
    return np.random.default_rng(abs(hash_of(name)))


def hash_of(name):
    return int.from_bytes(name.encode()[-8:], "little") % (2**31)


def normal(name, *shape):
    return rng(name).standard_normal(shape).astype(np.float32)


def const(name, value, dtype=None):
    """An initializer; `dtype` for types that numpy lacks: codes by value."""
    value = np.asarray(value)
    if dtype is None:
        return nh.from_array(value, name)
    to = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return nh.from_array(value.astype(to), name)


def info(name, dtype, shape):
    return h.make_tensor_value_info(name, dtype, shape)


DT = {np.dtype(k): v for k, v in [("float32", T.FLOAT), ("float16", T.FLOAT16), ("uint8", T.UINT8), ("int8", T.INT8), ("int32", T.INT32), ("int64", T.INT64), ("bool", T.BOOL), ("uint16", T.UINT16), ("int16", T.INT16)]}


def model(nodes, inputs, outputs, consts, opset):
    ins = [info(k, DT[v.dtype], v.shape) for k, v in inputs.items()]
    outs = [info(k, t, None) for k, t in outputs.items()]
    graph = h.make_graph(nodes, "g", ins, outs, consts)
    m = h.make_model(graph, opset_imports=[h.make_opsetid("", opset), h.make_opsetid(MS, 1)])
    m.ir_version = max(8, {19: 9, 21: 10, 23: 11, 24: 12, 25: 13, 28: 14}.get(opset, 8))
    return m


def run(m, inputs, reference=False):
    if reference:
        return ReferenceEvaluator(m).run(None, inputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)


def case(name, m, inputs, *, steps=0, step=None, relative=None, db=None, reference=False, codes=None, fakes=None, quantizers=None, casts=None, outputs=None):
    """`steps` of size `step` (1 for integer outputs); or `relative` to the largest number; or `db` of SQNR."""
    outputs = run(m, inputs, reference) if outputs is None else outputs
    onnx.save(m, os.path.join(FOLDER, name + ".onnx"))
    record = dict(name=name, inputs=[], outputs=[], steps=steps, step=step, relative=relative, db=db, codes=codes, fakes=fakes, quantizers=quantizers, casts=casts)
    i = 0
    pairs = [("inputs", k, v) for k, v in inputs.items()] + [("outputs", o.name, v) for o, v in zip(m.graph.output, outputs)]
    for kind, k, v in pairs:
        v = np.asarray(v, order="C")
        file = f"{name}.{i}.bin"
        v.tofile(os.path.join(FOLDER, file))
        record[kind].append(dict(name=k, file=file, dtype=str(v.dtype), shape=list(v.shape)))
        i += 1
    CASES.append(record)


def node(op, ins, outs, domain="", **attrs):
    return h.make_node(op, ins, outs, domain=domain, name=f"{op}_{outs[0]}", **attrs)


# ---- QuantizeLinear, DequantizeLinear


def qdq(name, dtype, zero, scale, opset, x=None, domain="", reference=False, codes=0, **attrs):
    x = normal(name, 3, 8, 5) * 3 if x is None else x
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"], domain, **attrs), node("DequantizeLinear", ["q", "s", "z"], ["y"], domain, **attrs)]
    m = model(nodes, {"x": x}, {"y": T.FLOAT}, [const("s", np.float32(scale)), const("z", zero, dtype)], opset)
    case(name, m, {"x": x}, reference=reference, fakes=1, codes=codes, quantizers=1)


qdq("qdq_uint8", T.UINT8, 117, 0.031, 13)
qdq("qdq_int8", T.INT8, -3, 0.05, 13)
qdq("qdq_opset10", T.UINT8, 117, 0.031, 10)
qdq("qdq_int16", T.INT16, 5, 0.0005, 21)
qdq("qdq_uint16", T.UINT16, 30000, 0.0003, 21)
qdq("qdq_ms_int16", T.INT16, 5, 0.0005, 13, domain=MS)
qdq("qdq_ms_uint16", T.UINT16, 30000, 0.0003, 13, domain=MS)
qdq("qdq_int4", T.INT4, -1, 0.5, 21)
qdq("qdq_uint4", T.UINT4, 7, 0.4, 21)
qdq("qdq_uint2", T.UINT2, 1, 0.9, 25)
qdq("qdq_int2", T.INT2, 0, 0.9, 25)
qdq("qdq_axis1", T.INT8, np.arange(8) - 4, 0.02 + 0.01 * np.arange(8), 13, axis=1)
qdq("qdq_axis_last", T.UINT8, np.arange(5) + 100, 0.02 + 0.01 * np.arange(5), 13, axis=-1)
qdq("qdq_default_axis", T.UINT8, np.arange(8) + 100, 0.02 + 0.01 * np.arange(8), 13)
qdq("qdq_blocked", T.INT8, np.zeros((3, 3, 5)), 0.02 + 0.001 * np.arange(45).reshape(3, 3, 5), 21, axis=1, block_size=3)
for kind in ["E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ"]:
    qdq("qdq_f8" + kind, getattr(T, "FLOAT8" + kind), 0.0, 0.01, 19)
qdq("qdq_f4", T.FLOAT4E2M1, 0.0, 0.5, 23, reference=True)
for kind in ["E2M3", "E3M2"]:
    qdq("qdq_f6" + kind, getattr(T, "FLOAT6" + kind), 0.0, 0.3, 28, reference=True)


def no_zero_point():
    x = normal("nozero", 4, 6)
    nodes = [node("QuantizeLinear", ["x", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["y"])]
    m = model(nodes, {"x": x}, {"y": T.FLOAT}, [const("s", np.float32(0.02))], 13)
    case("q_without_zero_point", m, {"x": x}, fakes=1)
    nodes = [node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=T.INT8), node("DequantizeLinear", ["q", "s"], ["y"])]
    m = model(nodes, {"x": x}, {"y": T.FLOAT}, [const("s", np.float32(0.02))], 21)
    case("q_output_dtype", m, {"x": x}, fakes=1)


def interfaces():
    x = normal("ifaces", 4, 6)
    consts = [const("s", np.float32(0.02)), const("z", np.uint8(120)), const("s2", np.float32(0.05)), const("z2", np.uint8(7))]
    m = model([node("QuantizeLinear", ["x", "s", "z"], ["q"])], {"x": x}, {"q": T.UINT8}, consts[:2], 13)
    case("q_alone", m, {"x": x}, fakes=1)
    codes = rng("codes").integers(0, 256, (4, 6)).astype(np.uint8)
    m = model([node("DequantizeLinear", ["q", "s", "z"], ["y"])], {"q": codes}, {"y": T.FLOAT}, consts[:2], 13)
    case("dq_alone", m, {"q": codes}, fakes=0)
    scale, zero = const("s", np.float32(0.01) * np.arange(1, 5, dtype=np.float32)), const("z", np.arange(4).astype(np.uint8))
    m = model([node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0)], {"q": codes}, {"y": T.FLOAT}, [scale, zero], 13)
    case("dq_alone_axis", m, {"q": codes}, fakes=0)
    m = model([node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0)], {"x": x}, {"q": T.UINT8}, [scale, zero], 13)
    case("q_alone_axis", m, {"x": x}, fakes=1)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        node("DequantizeLinear", ["q", "s", "z"], ["b"]),
        node("DequantizeLinear", ["q", "s2", "z2"], ["c"]),
        node("Cast", ["q"], ["d"], to=T.FLOAT),
        node("Cast", ["q"], ["e"], to=T.INT32),
    ]
    m = model(nodes, {"x": x}, {"a": T.FLOAT, "b": T.FLOAT, "c": T.FLOAT, "d": T.FLOAT, "e": T.INT32}, consts, 13)
    case("q_several_readers", m, {"x": x})
    i = rng("i32").integers(-9000, 9000, (4, 6)).astype(np.int32)
    m = model([node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s2", "z2"], ["y"])], {"x": i}, {"y": T.FLOAT}, [const("s", np.float32(70)), *consts[1:]], 21)
    case("q_of_int32", m, {"x": i}, reference=True)
    # Parameters that are computed.
    m = model([node("Mul", ["s", "t"], ["u"]), node("QuantizeLinear", ["x", "u", "z"], ["q"]), node("DequantizeLinear", ["q", "u", "z"], ["y"])],
              {"x": x, "t": np.array(2.0, np.float32)}, {"y": T.FLOAT}, consts[:2], 13)
    case("computed_scale", m, {"x": x, "t": np.array(2.0, np.float32)})


def movement():
    x = normal("moves", 1, 4, 6, 6)
    consts = [const("s", np.float32(0.02)), const("z", np.uint8(120)), const("s2", np.float32(0.03)), const("shape", np.array([4, 9])),
              const("pads", np.array([0, 1, 0, 0, 0, 0, 0, 0]))]
    q = node("QuantizeLinear", ["x", "s", "z"], ["q"])
    nodes = [q, node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2], strides=[2, 2]), node("Reshape", ["p", "shape"], ["r"]),
             node("Transpose", ["r"], ["t"], perm=[1, 0]), node("DequantizeLinear", ["t", "s", "z"], ["y"])]
    m = model(nodes, {"x": x}, {"y": T.FLOAT}, consts, 13)
    case("codes_move", m, {"x": x}, fakes=1, casts=0)
    nodes = [q, node("Transpose", ["q"], ["t"], perm=[0, 2, 3, 1]), node("DequantizeLinear", ["t", "s", "z"], ["y"]), node("DequantizeLinear", ["t", "s", "z"], ["v"]),
             node("DequantizeLinear", ["t", "s2", "z"], ["u"]), node("Cast", ["t"], ["i"], to=T.INT32)]
    m = model(nodes, {"x": x}, {"y": T.FLOAT, "v": T.FLOAT, "u": T.FLOAT, "i": T.INT32}, consts, 13)
    case("moved_codes_with_several_readers", m, {"x": x})
    m = model([*nodes[:3], *nodes[4:]], {"x": x}, {"t": T.UINT8, "y": T.FLOAT, "u": T.FLOAT, "i": T.INT32}, consts, 13)
    case("moved_codes_as_an_output", m, {"x": x})
    m = model([q, node("ArgMax", ["q"], ["i"], axis=1), node("Clip", ["q", "lo", "hi"], ["c"]), node("DequantizeLinear", ["c", "s", "z"], ["y"])], {"x": x}, {"i": T.INT64, "y": T.FLOAT},
              [*consts, const("lo", np.uint8(100)), const("hi", np.uint8(140))], 13)
    case("codes_read_by_plain_operators", m, {"x": x})
    half = normal("half", 4, 6).astype(np.float16)
    consts16 = [const("s", np.float16(0.02)), const("z", np.uint8(120))]
    m = model([q, node("Transpose", ["q"], ["t"]), node("DequantizeLinear", ["t", "s", "z"], ["d"]), node("Cast", ["d"], ["y"], to=T.FLOAT)], {"x": half}, {"y": T.FLOAT}, consts16, 19)
    case("float16_codes_move", m, {"x": half}, fakes=1)
    m = model([q, node("Pad", ["q", "pads"], ["p"]), node("DequantizeLinear", ["p", "s", "z"], ["y"])], {"x": x}, {"y": T.FLOAT}, consts, 13)
    case("codes_padded_with_code_0", m, {"x": x}, fakes=1, casts=0)
    m = model([q, node("Pad", ["q", "pads", "z"], ["p"]), node("DequantizeLinear", ["p", "s", "z"], ["y"])], {"x": x}, {"y": T.FLOAT}, consts, 13)
    case("codes_padded_with_zero", m, {"x": x}, casts=0)
    q2 = node("QuantizeLinear", ["x", "s2", "z"], ["q2"])
    same = node("QuantizeLinear", ["w", "s", "z"], ["q2"])
    w = normal("moves2", 1, 2, 6, 6)
    tail = [node("Concat", ["q", "q2"], ["c"], axis=1), node("DequantizeLinear", ["c", "s", "z"], ["y"])]
    m = model([q, same, *tail], {"x": x, "w": w}, {"y": T.FLOAT}, consts, 13)
    case("codes_concat", m, {"x": x, "w": w}, casts=0)
    m = model([q, q2, *tail], {"x": x}, {"y": T.FLOAT}, consts, 13)
    case("codes_concat_of_two_grids", m, {"x": x})
    m = model([q, node("Concat", ["q", "k"], ["c"], axis=1), tail[1]], {"x": x}, {"y": T.FLOAT}, [*consts, const("k", rng("k").integers(0, 256, (1, 2, 6, 6)).astype(np.uint8))], 13)
    case("codes_concat_with_a_constant", m, {"x": x}, codes=1, casts=0)
    m = model([q, node("Split", ["q"], ["a", "b"], axis=1), node("DequantizeLinear", ["a", "s", "z"], ["y"]), node("DequantizeLinear", ["b", "s2", "z"], ["v"])],
              {"x": x}, {"y": T.FLOAT, "v": T.FLOAT, "b": T.UINT8}, consts, 13)
    case("codes_split", m, {"x": x})
    m = model([q, node("Shape", ["q"], ["n"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]), node("Reshape", ["d", "n"], ["y"])], {"x": x}, {"y": T.FLOAT}, consts, 13)
    case("shape_of_codes", m, {"x": x}, casts=0)
    table, i = const("table", rng("tab").integers(0, 256, (9, 4)).astype(np.uint8)), np.array([[3, 8], [0, 1]])
    m = model([node("Gather", ["table", "i"], ["g"]), node("DequantizeLinear", ["g", "s", "z"], ["y"])], {"i": i}, {"y": T.FLOAT}, [*consts[:2], table], 13)
    case("embedding_codes", m, {"i": i}, codes=1, casts=0)
    m = model([node("Transpose", ["table"], ["g"], perm=[1, 0]), node("DequantizeLinear", ["g", "s", "z"], ["d"]), node("MatMul", ["d", "f"], ["y"])],
              {"f": normal("f", 9, 2)}, {"y": T.FLOAT}, [*consts[:2], table], 13)
    case("constant_codes_transposed", m, {"f": normal("f", 9, 2)}, codes=1, relative=1e-6)


def constants():
    x = normal("const", 2, 64)
    for bits, opset, dtype, signed in [(4, 21, T.INT4, True), (4, 21, T.UINT4, False), (2, 25, T.INT2, True), (2, 25, T.UINT2, False), (8, 21, T.INT8, True)]:
        lo = -(2 ** (bits - 1)) if signed else 0
        w, z = rng("w").integers(lo, lo + 2**bits, (64, 6)), rng("z").integers(lo, lo + 2**bits, (2, 6))
        consts = [const("w", w, dtype), const("s", np.abs(normal("s", 2, 6)) + 0.01), const("z", z, dtype)]
        m = model([node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0, block_size=32), node("MatMul", ["x", "d"], ["y"])], {"x": x}, {"y": T.FLOAT, "d": T.FLOAT}, consts, opset)
        case(f"dq_blocked_{'' if signed else 'u'}int{bits}", m, {"x": x}, codes=1, relative=1e-6)
    w = rng("w8").integers(-128, 128, (6, 64)).astype(np.int8)
    consts = [const("w", w), const("s", np.abs(normal("s8", 6)) + 0.01), const("z", np.zeros(6, np.int8)), const("b", rng("b").integers(-5000, 5000, 6).astype(np.int32)), const("bs", np.abs(normal("bs", 6)) / 1000)]
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0), node("DequantizeLinear", ["b", "bs"], ["e"], axis=0), node("Gemm", ["x", "d", "e"], ["y"], transB=1)]
    m = model(nodes, {"x": x}, {"y": T.FLOAT, "d": T.FLOAT, "e": T.FLOAT}, consts, 13)
    case("dq_gemm_with_bias", m, {"x": x}, codes=2, relative=1e-6)
    m = model([node("DequantizeLinear", ["w", "s"], ["d"], axis=0), node("Transpose", ["d"], ["t"]), node("MatMul", ["x", "t"], ["y"])], {"x": x}, {"y": T.FLOAT}, consts[:2], 13)
    case("dq_transpose_matmul", m, {"x": x}, codes=1, relative=1e-6)
    half = [const("w", w), const("s", (np.abs(normal("s8", 6)) + 0.01).astype(np.float16))]
    m = model([node("DequantizeLinear", ["w", "s"], ["d"], axis=0), node("Cast", ["d"], ["y"], to=T.FLOAT)], {"x": x}, {"y": T.FLOAT, "d": T.FLOAT16}, half, 19)
    case("dq_float16", m, {"x": x}, codes=1)
    inner = [const("c", rng("c4").integers(1, 16, (2, 6)), T.UINT4), const("cs", np.float32(0.003) * np.arange(1, 7, dtype=np.float32)), const("w", rng("w4").integers(-8, 8, (64, 6)), T.INT4)]
    nodes = [node("DequantizeLinear", ["c", "cs"], ["s"], axis=1), node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=32), node("MatMul", ["x", "d"], ["y"])]
    m = model(nodes, {"x": x}, {"y": T.FLOAT}, inner, 21)
    case("dq_of_a_dequantized_scale", m, {"x": x}, codes=1, relative=1e-6)
    m = model([node("QuantizeLinear", ["f", "s", "z"], ["q"], axis=0), node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0), node("Gemm", ["x", "d"], ["y"], transB=1)],
              {"x": x}, {"y": T.FLOAT}, [const("f", normal("wf", 6, 64)), *consts[1:3]], 13)
    case("float_weight_between_q_and_dq", m, {"x": x}, codes=0, fakes=1, relative=1e-6)
    e8 = [const("w", rng("w8e").standard_normal((64, 6)), T.FLOAT8E4M3FN), const("s", np.exp2(rng("e8").integers(-5, 5, (2, 6)).astype(np.float32)), T.FLOAT8E8M0)]
    m = model([node("DequantizeLinear", ["w", "s"], ["y"], axis=0, block_size=32, output_dtype=T.FLOAT)], {"x": x}, {"y": T.FLOAT}, e8, 24)
    case("dq_mxfp8", m, {"x": x}, codes=1, reference=True)


# ---- onnx's own tests of its operators


def onnx_tests():
    """Once as they are, every parameter an input; once with all inputs but the first (for DequantizeLinear all) as constants."""
    plain = set(DT.values())
    wanted = ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"]
    tests = {t.name: t for t in collect_testcases(None) if len(t.model.graph.node) == 1 and t.model.graph.node[0].op_type in wanted}
    for name, t in sorted(tests.items()):
        g = t.model.graph
        op = g.node[0].op_type
        values, outputs = [[nh.to_array(v) if isinstance(v, T) else np.asarray(v) for v in vs] for vs in t.data_sets[0]]
        if any(o.type.tensor_type.elem_type not in plain for o in g.output):
            continue  # the engine has no tensors of these types
        names = [i.name for i in g.input]
        steps = 1 if op.startswith("QLinear") else 0
        blocked = any(a.name == "block_size" for a in g.node[0].attribute)
        relative = 1e-6 if op == "DynamicQuantizeLinear" else None
        if all(i.type.tensor_type.elem_type in plain for i in g.input) and not blocked:
            case(f"onnx_{name}", t.model, dict(zip(names, values)), steps=steps, relative=relative, outputs=outputs)
        if len(names) == 1:
            continue
        kept = 0 if op == "DequantizeLinear" else 1
        m = onnx.ModelProto()
        m.CopyFrom(t.model)
        for i, v in list(zip(m.graph.input, values))[kept:]:
            m.graph.initializer.append(nh.from_array(v, i.name))
        del m.graph.input[kept:]
        case(f"onnx_{name}_constant", m, dict(list(zip(names, values))[:kept]), steps=steps, outputs=outputs)


# ---- QOperator

def ints(name, dtype, *shape):
    i = np.iinfo(dtype)
    return rng(name).integers(i.min, i.max + 1, shape).astype(dtype)


def weights(name, *shape):
    """Of 7 bits: two products with uint8 fit 16 bits, in which x86 kernels without VNNI add them."""
    return rng(name).integers(-64, 64, shape).astype(np.int8)


def sz(name, scale, zero, dtype):
    return [const(name + "_s", np.asarray(scale, np.float32)), const(name + "_z", np.asarray(zero).astype(dtype))]


def p(name):
    return [name, name + "_s", name + "_z"]


def unary():
    for dtype in [np.uint8, np.int8]:
        off = 0 if dtype == np.uint8 else 128
        t, tag = DT[np.dtype(dtype)], np.dtype(dtype).name
        x = ints("un" + tag, dtype, 2, 4, 6, 6)
        xs = sz("x", 0.03, 120 - off, dtype)
        for op, ys, attrs in [
            ("QLinearSigmoid", (1 / 256, 0 - off), {}),
            ("QLinearLeakyRelu", (0.02, 60 - off), dict(alpha=0.2)),
            ("QLinearAveragePool", (0.02, 110 - off), dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])),
            ("QLinearAveragePool", (0.02, 110 - off), dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)),
            ("QLinearGlobalAveragePool", (0.01, 120 - off), {}),
            ("QLinearSoftmax", (1 / 256, 0 - off), dict(axis=-1, opset=13)),
            ("QLinearSoftmax", (1 / 256, 0 - off), dict(axis=1, opset=13)),
        ]:
            m = model([node(op, [*p("x"), "y_s", "y_z"], ["y"], MS, **attrs)], {"x": x}, {"y": t}, [*xs, *sz("y", *ys, dtype)], 13)
            case(f"{op}_{tag}_{len(CASES)}", m, {"x": x}, steps=1)
    x = ints("nhwc", np.uint8, 2, 6, 6, 4)
    for op, attrs in [("QLinearAveragePool", dict(kernel_shape=[2, 2], channels_last=1)), ("QLinearGlobalAveragePool", dict(channels_last=1))]:
        m = model([node(op, [*p("x"), "y_s", "y_z"], ["y"], MS, **attrs)], {"x": x}, {"y": T.UINT8}, [*sz("x", 0.03, 120, np.uint8), *sz("y", 0.02, 118, np.uint8)], 13)
        case(f"{op}_channels_last", m, {"x": x}, steps=1)


def binary():
    for dtype in [np.uint8, np.int8]:
        off, t, tag = (0 if dtype == np.uint8 else 128), DT[np.dtype(dtype)], np.dtype(dtype).name
        a, b = ints("a" + tag, dtype, 2, 3, 8), ints("b" + tag, dtype, 3, 8)
        c = [*sz("a", 0.02, 100 - off, dtype), *sz("b", 0.015, 140 - off, dtype), *sz("y", 0.03, 128 - off, dtype)]
        for op in ["QLinearAdd", "QLinearMul"]:
            m = model([node(op, [*p("a"), *p("b"), "y_s", "y_z"], ["y"], MS)], {"a": a, "b": b}, {"y": t}, c, 13)
            case(f"{op}_{tag}", m, {"a": a, "b": b}, steps=1)
        m = model([node(op, [*p("a"), *p("k"), "y_s", "y_z"], ["y"], MS)], {"a": a}, {"y": t}, [*c, const("k", b), *sz("k", 0.015, 140 - off, dtype)], 13)
        case(f"{op}_constant_{tag}", m, {"a": a}, steps=1, codes=1)
        b3 = ints("b3" + tag, dtype, 2, 3, 8)
        m = model([node("QLinearConcat", ["y_s", "y_z", *p("a"), *p("b")], ["y"], MS, axis=1)], {"a": a, "b": b3}, {"y": t}, c, 13)
        case(f"QLinearConcat_{tag}", m, {"a": a, "b": b3}, steps=1)
        k = rng("cond").integers(0, 2, (2, 3, 8)).astype(bool)
        m = model([node("QLinearWhere", ["k", *p("a"), *p("b"), "y_s", "y_z"], ["y"], MS)], {"k": k, "a": a, "b": b3}, {"y": t}, c, 13)
        case(f"QLinearWhere_{tag}", m, {"k": k, "a": a, "b": b3}, steps=1)


def products():
    x = ints("px", np.uint8, 2, 4, 7, 7)
    w = weights("pw", 6, 2, 3, 3)
    bias = rng("pb").integers(-4000, 4000, 6).astype(np.int32)
    ws = np.abs(normal("ws", 6)) / 50 + 0.002
    attrs = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], group=2)
    ins = [*p("x"), *p("w"), "y_s", "y_z"]
    for tag, scale, zero in [("tensor", 0.01, 3), ("channel", ws, np.zeros(6))]:
        c = [*sz("x", 0.02, 120, np.uint8), const("w", w), *sz("w", scale, zero, np.int8), *sz("y", 0.1, 100, np.uint8), const("b", bias)]
        m = model([node("QLinearConv", ins, ["y"], **attrs)], {"x": x}, {"y": T.UINT8}, c[:-1], 13)
        case(f"QLinearConv_{tag}", m, {"x": x}, steps=1, codes=1)
        m = model([node("QLinearConv", [*ins, "b"], ["y"], **attrs)], {"x": x}, {"y": T.UINT8}, c, 10)
        case(f"QLinearConv_bias_{tag}", m, {"x": x}, steps=1, codes=2)
    c[4] = const("w_z", np.zeros(6, np.int8))
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    m = model([node("QLinearConv", [*ins, "b"], ["y"], MS, channels_last=1, **attrs)], {"x": last}, {"y": T.UINT8}, c, 13)
    case("QLinearConv_channels_last", m, {"x": last}, steps=1, codes=2)

    a, b = ints("ma", np.uint8, 2, 5, 16), weights("mb", 16, 6)
    for tag, scale, zero in [("tensor", 0.01, 3), ("column", ws, np.zeros(6))]:
        c = [*sz("a", 0.02, 120, np.uint8), const("b", b), *sz("b", scale, zero, np.int8), *sz("y", 0.1, 100, np.uint8)]
        m = model([node("QLinearMatMul", [*p("a"), *p("b"), "y_s", "y_z"], ["y"])], {"a": a}, {"y": T.UINT8}, c, 13)
        case(f"QLinearMatMul_{tag}", m, {"a": a}, steps=1, codes=1)
    m = model([node("QLinearMatMul", [*p("a"), *p("b"), "y_s", "y_z"], ["y"])], {"a": a, "b": b}, {"y": T.UINT8}, [*c[:2], *sz("b", 0.01, 0, np.int8), *c[-2:]], 13)
    case("QLinearMatMul_two_inputs", m, {"a": a, "b": b}, steps=1, codes=0)

    g, gb = ints("ga", np.uint8, 5, 16), weights("gb", 6, 16)
    c = [*sz("a", 0.02, 120, np.uint8), const("b", gb), *sz("b", ws, np.zeros(6), np.int8), *sz("y", 0.1, 100, np.uint8), const("c", bias)]
    ins = [*p("a"), *p("b"), "c"]
    m = model([node("QGemm", [*ins, "y_s", "y_z"], ["y"], MS, transB=1)], {"a": g}, {"y": T.UINT8}, c, 13)
    case("QGemm", m, {"a": g}, steps=1, codes=2)
    m = model([node("QGemm", ins, ["y"], MS, transB=1, alpha=0.5)], {"a": g}, {"y": T.FLOAT}, c, 13)
    case("QGemm_float", m, {"a": g}, relative=1e-5, codes=2)

    # Products of codes that leave scales to others.
    m = model([node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])], {"a": a}, {"y": T.INT32}, [const("b", b), const("az", np.uint8(120)), const("bz", np.int8(3))], 13)
    case("MatMulInteger", m, {"a": a}, codes=1)
    m = model([node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])], {"a": a}, {"y": T.INT32}, [const("b", b), const("az", np.uint8(120)), const("bz", np.arange(6).astype(np.int8))], 13)
    case("MatMulInteger_zero_a_column", m, {"a": a}, codes=1)
    m = model([node("MatMulInteger", ["a", "b"], ["i"]), node("Cast", ["i"], ["y"], to=T.FLOAT)], {"a": a, "b": b}, {"y": T.FLOAT}, [], 13)
    case("MatMulInteger_two_inputs", m, {"a": a, "b": b}, codes=0)
    w8 = ints("pw8", np.uint8, 6, 4, 3, 3)
    m = model([node("ConvInteger", ["x", "w", "xz", "wz"], ["y"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])], {"x": x}, {"y": T.INT32}, [const("w", w8), const("xz", np.uint8(120)), const("wz", np.uint8(130))], 13)
    case("ConvInteger", m, {"x": x}, codes=1)
    ins = ["a", "b", "a_s", "b_s", "a_z", "b_z", "c"]
    c = [const("b", b), const("a_s", np.float32(0.02)), const("a_z", np.uint8(120)), *sz("b", ws, np.zeros(6), np.int8), const("c", normal("fb", 6))]
    m = model([node("MatMulIntegerToFloat", ins, ["y"], MS)], {"a": a}, {"y": T.FLOAT}, c, 13)
    case("MatMulIntegerToFloat", m, {"a": a}, relative=1e-5, codes=1)
    f = normal("dyn", 2, 5, 16)
    m = model([node("DynamicQuantizeMatMul", ["f", *p("b"), "c"], ["y"], MS)], {"f": f}, {"y": T.FLOAT}, [c[0], *c[3:]], 13)
    case("DynamicQuantizeMatMul", m, {"f": f}, relative=1e-5, codes=1)
    m = model([node("DynamicQuantizeLinear", ["f"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])], {"f": f}, {"q": T.UINT8, "s": T.FLOAT, "z": T.UINT8, "y": T.FLOAT}, [], 13)
    # The engine divides by 255 as it likes: the scale may be off by a bit in the last place.
    case("DynamicQuantizeLinear", m, {"f": f}, fakes=2, relative=1e-6)
    case("DynamicQuantizeLinear_of_zeros", m, {"f": np.zeros_like(f)}, fakes=2)
    m = model([node("DynamicQuantizeLinear", ["f"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])], {"f": f}, {"y": T.FLOAT}, [], 13)
    case("DynamicQuantizeLinear_and_back", m, {"f": f}, fakes=1, casts=0)
    nodes = [node("DynamicQuantizeLinear", ["f"], ["q", "s", "z"]), node("MatMulInteger", ["q", "b", "z", "bz"], ["i"]), node("Cast", ["i"], ["j"], to=T.FLOAT), node("Mul", ["j", "s"], ["y"])]
    m = model(nodes, {"f": f}, {"y": T.FLOAT}, [const("b", b), const("bz", np.int8(3))], 13)
    case("dynamic_without_weight_scale", m, {"f": f}, relative=1e-5, codes=1)
    for tag, scale in [("tensor", np.float32(0.01)), ("column", ws)]:
        nodes = [*nodes[:3], node("Mul", ["s", "bs"], ["k"]), node("Mul", ["j", "k"], ["y"])]
        m = model(nodes, {"f": f}, {"y": T.FLOAT}, [const("b", b), const("bz", np.int8(3)), const("bs", scale)], 13)
        case(f"dynamic_matmul_{tag}", m, {"f": f}, relative=1e-5, codes=1, fakes=2, casts=0)
    xf = normal("dynx", 1, 4, 7, 7)
    nodes = [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("ConvInteger", ["q", "w", "z", "wz"], ["i"], kernel_shape=[3, 3]), node("Cast", ["i"], ["j"], to=T.FLOAT),
             node("Mul", ["s", "ws"], ["k"]), node("Mul", ["j", "k"], ["y"])]
    m = model(nodes, {"x": xf}, {"y": T.FLOAT}, [const("w", w8), const("wz", np.uint8(130)), const("ws", ws.reshape(1, 6, 1, 1))], 13)
    case("dynamic_conv", m, {"x": xf}, relative=1e-5, codes=1, fakes=2, casts=0)


def lstm():
    x = normal("lstm", 7, 1, 12) / 2
    hidden = 8
    for directions, per in [(1, False), (2, False), (1, True)]:
        w, r = weights("lw", directions, 12, 4 * hidden), weights("lr", directions, hidden, 4 * hidden)
        shape = (directions, 4 * hidden) if per else (directions,)
        c = [const("w", w), const("r", r), const("b", normal("lb", directions, 8 * hidden) / 10), *sz("w", np.full(shape, 0.004), np.zeros(shape), np.int8), *sz("r", np.full(shape, 0.005), np.zeros(shape), np.int8)]
        ins = ["x", "w", "r", "b", "", "", "", "", "w_s", "w_z", "r_s", "r_z"]
        m = model([node("DynamicQuantizeLSTM", ins, ["y", "h", "c"], MS, hidden_size=hidden, direction="bidirectional" if directions == 2 else "forward")], {"x": x}, {"y": T.FLOAT, "h": T.FLOAT, "c": T.FLOAT}, c, 13)
        case(f"DynamicQuantizeLSTM_{directions}_{per}", m, {"x": x}, db=30, codes=2)


# ---- packed weights


def packed():
    k, n, block = 70, 6, 32
    blocks = -(-k // block)
    x = normal("nbits", 3, k)
    for bits in [2, 4, 8]:
        for zp in ["none", "packed", "float"]:
            if zp == "float" and bits == 8:
                continue
            name = f"MatMulNBits_{bits}_{zp}"
            c = [const("w", rng(name + "w").integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)), const("s", normal(name + "s", n, blocks))]
            ins = ["x", "w", "s"]
            if zp == "packed":
                c.append(const("z", rng(name + "z").integers(0, 256, (n, -(-blocks * bits // 8))).astype(np.uint8)))
            if zp == "float":
                c.append(const("z", rng(name + "z").uniform(0, 2**bits, (n, blocks)).astype(np.float32)))
            if zp != "none":
                ins.append("z")
            if bits == 4:
                ins = [*ins, *[""] * (5 - len(ins)), "b"]
                c.append(const("b", normal("nb", n)))
            # At level 4 the input is rounded to int8 in blocks, unless zero points are real.
            for level in [0, 4]:
                m = model([node("MatMulNBits", ins, ["y"], MS, K=k, N=n, bits=bits, block_size=block, accuracy_level=level)], {"x": x}, {"y": T.FLOAT}, c, 13)
                case(f"{name}_level{level}", m, {"x": x}, relative=1e-5, codes=1, fakes=1 + (level == 4 and zp != "float"))
    x = normal("bnb", 3, 48)
    for kind in [0, 1]:
        c = [const("w", rng("bnbw").integers(0, 256, 48 * 6 // 2).astype(np.uint8)), const("s", np.abs(normal("bnbs", 48 * 6 // 32)))]
        m = model([node("MatMulBnb4", ["x", "w", "s"], ["y"], MS, K=48, N=6, block_size=32, quant_type=kind)], {"x": x}, {"y": T.FLOAT}, c, 13)
        case(f"MatMulBnb4_{kind}", m, {"x": x}, relative=1e-5, codes=1)
    i = np.array([[1, 4], [0, 2]])
    s = np.abs(normal("gs", 5, 2)) + 0.1
    gather = dict(block_size=16, quantize_axis=1, gather_axis=0)
    for tag, data, zero, attrs in [
        ("uint8x4", const("d", rng("gd").integers(0, 256, (5, 16)).astype(np.uint8)), const("z", rng("gz").integers(0, 256, (5, 1)).astype(np.uint8)), dict(bits=4)),
        ("uint8x8", const("d", rng("gd").integers(0, 256, (5, 32)).astype(np.uint8)), const("z", rng("gz").integers(0, 256, (5, 2)).astype(np.uint8)), dict(bits=8)),
        ("uint4", const("d", rng("gd").integers(0, 16, (5, 32)), T.UINT4), const("z", rng("gz").integers(0, 16, (5, 2)), T.UINT4), {}),
        ("int4", const("d", rng("gd").integers(-8, 8, (5, 32)), T.INT4), const("z", rng("gz").integers(-8, 8, (5, 2)), T.INT4), {}),
    ]:
        for ins in [["d", "i", "s"], ["d", "i", "s", "z"]]:
            m = model([node("GatherBlockQuantized", ins, ["y"], MS, **gather, **attrs)], {"i": i}, {"y": T.FLOAT}, [data, const("s", s), *([zero] if len(ins) == 4 else [])], 21)
            case(f"GatherBlockQuantized_{tag}_{len(ins)}", m, {"i": i}, codes=1)


# ---- bodies


def bodies():
    x = normal("if", 3, 8)
    w = rng("ifw").integers(-128, 128, (8, 4)).astype(np.int8)
    for tag, flag in [("then", True), ("else", False)]:
        branches = []
        for b in ["then", "else"]:
            nodes = [
                h.make_node("DequantizeLinear", [f"w_{b}", "ws", "wz"], [f"d_{b}"]),
                h.make_node("DequantizeLinear", ["q", "s", "z"] if b == "then" else ["q", "s2", "z"], [f"x_{b}"]),
                h.make_node("MatMul", [f"x_{b}", f"d_{b}"], [f"m_{b}"]),
                h.make_node("QuantizeLinear", [f"m_{b}", "ms", "z"], [f"q_{b}"]),
                h.make_node("DequantizeLinear", [f"q_{b}", "ms", "z"], [f"o_{b}"]),
            ]
            branches.append(h.make_graph(nodes, b, [], [info(f"o_{b}", T.FLOAT, None)], [const(f"w_{b}", w if b == "then" else w // 2)]))
        c = [*[const(k, np.float32(v)) for k, v in [("s", 0.02), ("s2", 0.04), ("ws", 0.01), ("ms", 0.1)]], const("z", np.uint8(120)), const("wz", np.int8(0))]
        nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("If", ["f"], ["y"], then_branch=branches[0], else_branch=branches[1])]
        ins = {"x": x, "f": np.array(flag)}
        m = model(nodes, ins, {"y": T.FLOAT}, c, 13)
        case(f"if_{tag}", m, ins, steps=1, step=0.1, codes=2)


def scan():
    x, q = normal("scan", 5, 8), ints("scanq", np.uint8, 5, 8)
    inside = [
        h.make_node("DequantizeLinear", ["code", "s", "z"], ["a"]),
        h.make_node("Add", ["a", "item"], ["b"]),
        h.make_node("QuantizeLinear", ["b", "t", "z"], ["c"]),
        h.make_node("DequantizeLinear", ["c", "t", "z"], ["d"]),
        h.make_node("DequantizeLinear", ["w", "s", "wz"], ["e"]),
        h.make_node("Mul", ["d", "e"], ["f"]),
        h.make_node("Add", ["state", "f"], ["next"]),
        h.make_node("Identity", ["f"], ["out"]),
    ]
    body = h.make_graph(inside, "body", [info("state", T.FLOAT, [8]), info("code", T.UINT8, [8]), info("item", T.FLOAT, [8])], [info("next", T.FLOAT, [8]), info("out", T.FLOAT, [8])],
                        [const("w", ints("scanw", np.int8, 8)), const("wz", np.int8(2))])
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("Scan", ["start", "q", "x"], ["last", "all"], body=body, num_scan_inputs=2)]
    c = [const("s", np.float32(0.02)), const("t", np.float32(0.05)), const("z", np.uint8(120)), const("start", np.zeros(8, np.float32))]
    m = model(nodes, {"x": x}, {"last": T.FLOAT, "all": T.FLOAT}, c, 13)
    case("scan_over_codes", m, {"x": x}, relative=1e-6, codes=1)


# ---- whole nets


def cnn():
    c = [const("w1", normal("n1", 8, 3, 3, 3) / 4), const("b1", normal("nb1", 8) / 4), const("w2", normal("n2", 8, 8, 3, 3) / 7), const("b2", normal("nb2", 8) / 4),
         const("w3", normal("n3", 16, 8, 1, 1) / 3), const("w4", normal("n4", 16, 10) / 4), const("b4", normal("nb4", 10))]
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Relu", ["c1"], ["r1"]), node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2", "b2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Add", ["c2", "p1"], ["a2"]), node("Sigmoid", ["a2"], ["g2"]), node("Mul", ["a2", "g2"], ["m2"]),
        node("Conv", ["m2", "w3"], ["c3"], kernel_shape=[1, 1]), node("LeakyRelu", ["c3"], ["l3"], alpha=0.1), node("Concat", ["l3", "m2"], ["k3"], axis=1),
        node("Split", ["k3", "parts"], ["k4", "k5"], axis=1), node("GlobalAveragePool", ["k4"], ["v4"]), node("Flatten", ["v4"], ["f4"]), node("Gemm", ["f4", "w4", "b4"], ["e4"]), node("Softmax", ["e4"], ["y"]),
    ]
    x = normal("net", 1, 3, 16, 16)
    m = model(nodes, {"x": x}, {"y": T.FLOAT, "e4": T.FLOAT}, [*c, const("parts", np.array([16, 8]))], 13)
    del m.graph.output[:]
    m.graph.output.extend([info("y", T.FLOAT, [1, 10]), info("e4", T.FLOAT, [1, 10])])
    return m, x


def nets():
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": normal(f"cal{i}", 1, 3, 16, 16)} for i in range(8)]

        def get_next(self):
            return self.left.pop() if self.left else None

    m, x = cnn()
    with tempfile.TemporaryDirectory() as d:
        src, dst = os.path.join(d, "m.onnx"), os.path.join(d, "q.onnx")
        onnx.save(m, src)
        U8, S8, U16, S16 = QuantType.QUInt8, QuantType.QInt8, QuantType.QUInt16, QuantType.QInt16
        for fmt, per, a, w in [(QuantFormat.QDQ, False, U8, S8), (QuantFormat.QDQ, True, U8, S8), (QuantFormat.QDQ, True, S8, S8), (QuantFormat.QDQ, False, U8, U8), (QuantFormat.QDQ, True, U16, S8),
                               (QuantFormat.QDQ, True, S16, S8), (QuantFormat.QOperator, False, U8, U8), (QuantFormat.QOperator, False, U8, S8), (QuantFormat.QOperator, True, U8, S8), (QuantFormat.QOperator, False, S8, S8)]:
            quantize_static(src, dst, Reader(), quant_format=fmt, per_channel=per, activation_type=a, weight_type=w)
            name = f"cnn_{fmt.name}_{a.name}_{w.name}_{'channel' if per else 'tensor'}"
            case(name, onnx.load(dst), {"x": x}, db=30)
        for w in [U8, S8]:
            quantize_dynamic(src, dst, weight_type=w)
            case(f"cnn_dynamic_{w.name}", onnx.load(dst), {"x": x}, db=30)


def n_bits():
    """What onnxruntime's matmul_nbits_quantizer writes, by its own packing functions."""
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

    z, block = normal("mlp", 4, 70), 32
    for bits, pack in [(4, quantize_matmul_4bits), (8, quantize_matmul_8bits)]:
        for symmetric in [True, False]:
            consts, nodes, at = [], [], "x"
            for i, (k, n) in enumerate([(70, 96), (96, 33)]):
                blocks = -(-k // block)
                w, s, zp = np.zeros((n, blocks, block * bits // 8), np.uint8), np.zeros(n * blocks, np.float32), np.zeros(n * -(-blocks * bits // 8), np.uint8)
                pack(w, normal(f"m{i}", k, n), s, zp, block, n, k, symmetric)
                consts += [const(f"w{i}", w), const(f"s{i}", s), *([] if symmetric else [const(f"z{i}", zp)])]
                ins = [at, f"w{i}", f"s{i}", *([] if symmetric else [f"z{i}"])]
                nodes.append(node("MatMulNBits", ins, [f"y{i}"], MS, K=k, N=n, bits=bits, block_size=block))
                at = f"y{i}"
            m = model(nodes, {"x": z}, {at: T.FLOAT}, consts, 21)
            case(f"mlp_{bits}_{'symmetric' if symmetric else 'asymmetric'}", m, {"x": z}, relative=1e-5, codes=2)


no_zero_point()
onnx_tests()
interfaces()
movement()
constants()
unary()
binary()
products()
lstm()
packed()
bodies()
scan()
nets()
n_bits()
with open(os.path.join(FOLDER, "cases.json"), "w") as f:
    json.dump(CASES, f)
