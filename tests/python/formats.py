"""formats.py IN.json: what ml_dtypes and onnx make of codes.

In:  {"x": [bits of float32 …], "codes": {dtype: [code …] …}}
Out: {dtype: {"values": [bits of float32, by code], "encoded": [code of each x], "packed": hex, "unpacked": [code …]} …}
"""

import json
import sys

import ml_dtypes
import numpy as np
import onnx

asked = json.load(open(sys.argv[1]))
x = np.array(asked["x"], np.uint32).view(np.float32)
answer = {}
for name, codes in asked["codes"].items():
    element = getattr(onnx.TensorProto, name.upper())
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    row = answer[name] = {}
    if "float" in name:
        info = ml_dtypes.finfo(dtype)
        row["values"] = np.arange(2**info.bits, dtype=np.uint8).view(dtype).astype(np.float32).view(np.uint32).tolist()
        limit = np.float32(info.max)
        row["encoded"] = np.clip(x, -limit, limit).astype(dtype).view(np.uint8).tolist()
    tensor = onnx.numpy_helper.from_array(np.array(codes, np.uint8).view(dtype) if "float" in name else np.array(codes).astype(dtype))
    row["packed"] = tensor.raw_data.hex()
    back = onnx.numpy_helper.to_array(tensor)
    row["unpacked"] = (back.view(np.uint8) if "float" in name else back.astype(np.int64)).tolist()
print(json.dumps(answer))
