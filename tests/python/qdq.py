"""qdq.py IN.json: QuantizeLinear and DequantizeLinear of onnx.reference.

In:  [{"x": [bits], "shape", "scale": [bits], "scale_shape", "zero": [code …] or null, "dtype", "axis", "block_size"} …]
Out: [{"codes": [integer, or bit pattern of a float], "values": [bits]} …]
"""

import json
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def floats(bits, shape):
    return np.array(bits, np.uint32).view(np.float32).reshape(shape)


def run(case):
    element = getattr(TensorProto, case["dtype"].upper())
    dtype = helper.tensor_dtype_to_np_dtype(element)
    is_float = "float" in case["dtype"]
    scale = floats(case["scale"], case["scale_shape"])
    feeds = {"x": floats(case["x"], case["shape"]), "scale": scale}
    attrs = {"axis": case["axis"], "block_size": case["block_size"]}
    parameters = ["scale"]
    if case["zero"] is not None:
        feeds["zero"] = np.array(case["zero"]).reshape(case["scale_shape"]).astype(dtype)
        parameters.append("zero")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *parameters], ["q"], output_dtype=element, **attrs),
        helper.make_node("DequantizeLinear", ["q", *parameters], ["y"], **attrs),
    ]
    value = helper.make_tensor_value_info
    inputs = [value(n, element if n == "zero" else TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    outputs = [value("q", element, None), value("y", TensorProto.FLOAT, None)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", case["opset"])])
    q, y = ReferenceEvaluator(model).run(None, feeds)
    codes = q.view(np.uint8) if is_float else q.astype(np.int64)
    return {"codes": codes.ravel().tolist(), "values": y.astype(np.float32).ravel().view(np.uint32).tolist()}


print(json.dumps([run(case) for case in json.load(open(sys.argv[1]))]))
