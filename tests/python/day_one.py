"""day_one.py IN.json: the quantizers that must be expressible from the first day, fitted and applied without requant.

In:  {"case": name, "x": [bits of float32 …], "shape": […], more by case …}
Out: {"values": [bits], more by case …}
All arithmetic is float32, as ONNX's, unless said.
"""

import json
import sys

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

F = np.float32
OPSET = 25


def floats(bits, shape=-1):
    return np.array(bits, np.uint32).view(F).reshape(shape)


def onnx_run(nodes, feeds, **elements):
    """Runs nodes; the last one's output is the result. `elements`: ONNX types of feeds that are not float32."""
    inputs = [helper.make_tensor_value_info(n, elements.get(n, TensorProto.FLOAT), a.shape) for n, a in feeds.items()]
    out = nodes[-1].output[0]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)])
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])).run(None, feeds)[0]


def qdq(x, scale, zero, element, axis=1, block_size=0):
    """QuantizeLinear and DequantizeLinear of onnx.reference; `zero` a number or None."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    feeds, names = {"x": x, "s": np.asarray(scale, F)}, ["s"]
    if zero is not None:
        feeds["z"] = np.full(feeds["s"].shape, zero).astype(dtype)
        names.append("z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *names], ["q"], axis=axis, block_size=block_size, output_dtype=element),
        helper.make_node("DequantizeLinear", ["q", *names], ["y"], axis=axis, block_size=block_size),
    ]
    return onnx_run(nodes, feeds, z=element)


def blocked(x, size):
    """The ranges of blocks of `size` along the last axis of a matrix, and a function that spreads one number a block over them."""
    columns = np.arange(x.shape[1]) // size
    split = [x[:, columns == b] for b in range(columns.max() + 1)]
    low, high = (np.stack([f(s, axis=1) for s in split], axis=1) for f in (np.min, np.max))
    return low, high, lambda a: a[:, columns]


def int8_per_channel(x, asked):
    scale = np.abs(x).max(axis=(1, 2)) / F(127)
    return {"values": qdq(x, scale, None, TensorProto.INT8, axis=0), "scale": scale}


def uint8_zero_128(x, asked):
    scale = max(x.max() / F(127), -x.min() / F(128))
    return {"values": qdq(x, scale, 128, TensorProto.UINT8)}


def nvfp4(x, asked):
    low, high, spread = blocked(x, 16)
    wanted = np.maximum(high, -low) / F(6)
    tensor = wanted.max() / F(448)
    codes = np.clip(wanted / tensor, 0, F(448)).astype(ml_dtypes.float8_e4m3fn)
    codes = np.where(codes.astype(F) == 0, np.uint8(1).view(ml_dtypes.float8_e4m3fn), codes)
    v = np.clip(x / spread(codes.astype(F) * tensor), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    nodes = [
        helper.make_node("DequantizeLinear", ["c", "t"], ["s"]),
        helper.make_node("DequantizeLinear", ["v", "s"], ["y"], axis=1, block_size=16),
    ]
    y = onnx_run(nodes, {"c": codes, "t": np.asarray(tensor), "v": v}, c=TensorProto.FLOAT8E4M3FN, v=TensorProto.FLOAT4E2M1)
    return {"values": y, "codes": codes.view(np.uint8)}


def mxfp4(x, asked):
    rows = x.reshape(-1, x.shape[-1])
    low, high, spread = blocked(rows, 32)
    _, exponent = np.frexp(np.maximum(high, -low))  # absmax = m · 2^exponent, m in [1/2, 1)
    scale = spread(np.ldexp(F(1), exponent - 1 - 2).astype(F))
    v = np.clip(rows / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(F)
    return {"values": v * scale}


def lpbq(x, asked):
    low, high, spread = blocked(x, 16)
    wanted = np.maximum(high, -low) / F(7)
    channel = wanted.max(axis=1) / F(15)
    codes = np.clip(np.rint(wanted / channel[:, None]), 1, 15).astype(ml_dtypes.uint4)
    v = np.clip(np.rint(x / spread(codes.astype(F) * channel[:, None])), -8, 7).astype(ml_dtypes.int4)
    nodes = [
        helper.make_node("DequantizeLinear", ["c", "k"], ["s"], axis=0),
        helper.make_node("DequantizeLinear", ["v", "s"], ["y"], axis=1, block_size=16),
    ]
    y = onnx_run(nodes, {"c": codes, "k": channel, "v": v}, c=TensorProto.UINT4, v=TensorProto.INT4)
    return {"values": y, "codes": codes.astype(np.uint8)}


def int4_real_zero(x, asked):
    low, high, spread = blocked(x, 32)
    scale = (high - low) / F(15)
    zero = F(-8) - low / scale
    q = np.clip(np.rint(x / spread(scale) + spread(zero)), -8, 7).astype(F)
    return {"values": (q - spread(zero)) * spread(scale)}


def codebook(x, asked):
    """Takes the table as given; every value goes to its nearest entry, and every entry is the mean of the values that go there."""
    table = floats(asked["table"])
    low, high, spread = blocked(x, 64)
    scale = spread(np.maximum(high, -low))
    v = (x / scale).astype(np.float64)
    index = np.abs(v[..., None] - table.astype(np.float64)).argmin(axis=-1)
    means = [v[index == i].mean() if (index == i).any() else table[i] for i in range(len(table))]
    return {"values": table[index] * scale, "drift": np.asarray(np.abs(np.array(means) - table).max())}


def power(x, asked):
    a = 0.5
    scale = np.abs(x).max() / F(127.0 ** (1 / a))
    v = (x / scale).astype(np.float64)
    q = np.clip(np.rint(np.sign(v) * np.abs(v) ** a), -128, 127)
    return {"values": (np.sign(q) * np.abs(q) ** (1 / a)).astype(F) * scale}


def per_token(x, asked):
    scale = np.abs(x).max(axis=-1, keepdims=True) / F(127)
    return {"values": np.clip(np.rint(x / scale), -128, 127).astype(np.int8).astype(F) * scale}


def lstm_gates(x, asked):
    gates = x.reshape(x.shape[0], 4, -1)
    scale = np.abs(gates).max(axis=-1, keepdims=True) / F(127)
    return {"values": np.clip(np.rint(gates / scale), -128, 127).astype(np.int8).astype(F) * scale}


def bias(x, asked):
    scale = F(asked["input_scale"]) * floats(asked["weight_scales"])
    codes = np.clip(np.rint(x / scale).astype(np.float64), -(2**31), 2**31 - 1).astype(np.int32)
    y = onnx_run([helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0)], {"q": codes, "s": scale}, q=TensorProto.INT32)
    return {"values": y, "codes": codes}


def concat(x, asked):
    low, high = min(x.min(), F(0)), max(x.max(), F(0))
    scale = (high - low) / F(255)
    return {"values": qdq(x, scale, int(np.clip(np.rint(-low / scale), 0, 255)), TensorProto.UINT8)}


def shared_weight(x, asked):
    channel = np.abs(x).max(axis=1) / F(127)
    low, high, _ = blocked(x, 32)
    block = np.maximum(high, -low) / F(7)
    return {
        "values": qdq(x, channel, None, TensorProto.INT8, axis=0),
        "block": qdq(x, block, None, TensorProto.INT4, axis=1, block_size=32),
    }


def int16_half_up(x, asked):
    scale = F(asked["scale"])
    q = np.clip(np.floor((x / scale).astype(np.float64) + 0.5), -32768, 32767)
    return {"values": q.astype(np.int16).astype(F) * scale}


def if_branch(x, asked):
    scale = np.abs(x).max() / F(127)
    return {"values": qdq(x, scale, None, TensorProto.INT8)}


asked = json.load(open(sys.argv[1]))
answer = globals()[asked["case"]](floats(asked["x"], asked["shape"]), asked)
as_json = lambda a: (np.ascontiguousarray(a).view(np.uint32) if a.dtype == F else np.asarray(a)).ravel().tolist()
print(json.dumps({name: as_json(np.asarray(a)) for name, a in answer.items()}))
