"""casts.py FLOAT.onnx CONVERTED.onnx DATA.npz I,J,…: what the converted file holds, and how far ONNX Runtime's answers on samples I, J … are from the float file's. JSON."""
import json
import sys

import numpy as np
import onnx

float_path, path, data, judged = sys.argv[1:5]
model = onnx.load(path)
onnx.checker.check_model(model, full_check=True)
name = lambda value: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
said = {
    "input": name(model.graph.input[0]),
    "output": name(model.graph.output[0]),
    "casts": sum(n.op_type == "Cast" for n in model.graph.node),
    "opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
    "float32_constants": sum(t.data_type == onnx.TensorProto.FLOAT for t in model.graph.initializer),
}
if not any(t.data_type == onnx.TensorProto.BFLOAT16 for t in model.graph.initializer):
    import onnxruntime as ort

    a, b = (ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (float_path, path))
    with np.load(data) as arrays:
        x = arrays[arrays.files[0]]
    kind = np.float16 if "float16" in b.get_inputs()[0].type else np.float32
    signal = noise = 0.0
    for i in map(int, judged.split(",")):
        want = a.run(None, {a.get_inputs()[0].name: x[i : i + 1].astype(np.float32)})[0].astype(np.float64)
        got = b.run(None, {b.get_inputs()[0].name: x[i : i + 1].astype(kind)})[0].astype(np.float64)
        assert np.isfinite(got).all()
        signal, noise = signal + (want**2).sum(), noise + ((want - got) ** 2).sum()
    said["sqnr_db"] = float(10 * np.log10(signal / max(noise, 1e-30)))
print(json.dumps(said))
