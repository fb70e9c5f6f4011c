"""Compares two ONNX files as onnx itself reads them: usage same_model.py A B. Prints "same", or what differs first.

Where a tensor's elements are stored (raw_data, a typed field, an external file) does not count; everything else does, and nodes in their order.
"""

import sys

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper


def tensors(message):
    """Every TensorProto inside a message, in order."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if field.is_repeated else [value]:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from tensors(part)


def load(path):
    """The model without its tensors' elements, and these."""
    model = onnx.load(path)
    elements = []
    for tensor in tensors(model):
        elements.append(numpy_helper.to_array(tensor))
        for field in ("raw_data", "external_data", "data_location"):
            tensor.ClearField(field)
        for field in ("float", "int32", "string", "int64", "double", "uint64"):
            tensor.ClearField(field + "_data")
    return model, elements


def difference(a, b):
    (model_a, elements_a), (model_b, elements_b) = load(a), load(b)
    if model_a != model_b:
        return "the models differ beside their tensors' elements"
    for i, (x, y) in enumerate(zip(elements_a, elements_b, strict=True)):
        same = x.dtype == y.dtype and x.shape == y.shape and (np.array_equal(x, y) if x.dtype == object else x.tobytes() == y.tobytes())
        if not same:
            return f"tensor {i} differs"
    return "same"


print(difference(*sys.argv[1:]))
