"""older.py make FOLDER: small models of late opsets whose operators came or changed late, NAME.onnx with NAME.npz.
older.py judge FOLDER OPSET: {NAME: largest distance between NAME.onnx and NAME.old.onnx, as a share of the largest output}; NAME.old.onnx must have OPSET at most.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from exporters import info, node, weight
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def model(opset, nodes, inputs, outputs, constants):
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return made


X = info("x", [1, 4, 6, 6])
CONV = node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1])
W = {"w": weight(4, 4, 3, 3)}
FORMS = {
    "gelu": (20, [CONV, node("Gelu", ["c"], ["y"], name="f")], {}),
    "gelu_tanh": (20, [CONV, node("Gelu", ["c"], ["y"], name="f", approximate="tanh")], {}),
    "mish": (22, [CONV, node("Mish", ["c"], ["y"], name="f")], {}),
    "swish": (24, [CONV, node("Swish", ["c"], ["y"], name="f", alpha=1.5)], {}),
    "rms": (23, [CONV, node("RMSNormalization", ["c", "s"], ["y"], name="f", axis=2, epsilon=1e-3)], {"s": weight(6, 6)}),
    "mean": (18, [CONV, node("ReduceMean", ["c", "axes"], ["y"], name="f", keepdims=0)], {"axes": np.array([2, 3])}),
    "total": (21, [CONV, node("ReduceL2", ["c"], ["y"], name="f")], {}),
    "split": (18, [CONV, node("Split", ["c"], ["a", "b", "d"], name="f", axis=1, num_outputs=3), node("Concat", ["d", "b", "a"], ["y"], name="j", axis=1)], {}),
    "pool": (22, [CONV, node("AveragePool", ["c"], ["y"], name="f", kernel_shape=[2, 2], dilations=[1, 1])], {}),
    "cast": (19, [CONV, node("Cast", ["c"], ["i"], name="f", to=7, saturate=1), node("Cast", ["i"], ["y"], name="g", to=1)], {}),
    "heads": (23, [CONV, node("Attention", ["c", "x", "x"], ["y"], name="f", is_causal=1)], {}),
    "truths": (23, [CONV, node("Attention", ["c", "x", "c", "m"], ["y"], name="f", scale=0.3)], {"m": np.arange(36).reshape(6, 6) % 5 < 3}),
    "shared": (
        24,
        [
            node("Reshape", ["x", "rows"], ["r"], name="r"),
            *(node("MatMul", ["r", p], [p + "_"], name=p) for p in ("q", "k", "v")),
            node("Attention", ["q_", "k_", "v_", "m"], ["a"], name="f", q_num_heads=4, kv_num_heads=2),
            node("Unsqueeze", ["a", "one"], ["y"], name="u"),
        ],
        {"rows": np.array([1, 16, 9]), "q": weight(9, 12), "k": weight(9, 6), "v": weight(9, 10), "m": weight(16, 16), "one": np.array([1])},
    ),
    "branch": (
        20,
        [
            CONV,
            node("ReduceSum", ["c"], ["t"], name="t", keepdims=0),
            node("Greater", ["t", "zero"], ["p"], name="p"),
            node(
                "If",
                ["p"],
                ["y"],
                name="if",
                then_branch=helper.make_graph([node("Gelu", ["c"], ["u"], name="u")], "a", [], [helper.make_empty_tensor_value_info("u")]),
                else_branch=helper.make_graph(
                    [node("ReduceMax", ["c", "rows"], ["m"], name="m"), node("Add", ["c", "m"], ["v"], name="v")],
                    "b",
                    [],
                    [helper.make_empty_tensor_value_info("v")],
                ),
            ),
        ],
        {"zero": np.float32(0), "rows": np.array([3])},
    ),
}


def make(folder):
    for name, (opset, nodes, constants) in FORMS.items():
        rank = 2 if name == "mean" else 4
        made = model(opset, nodes, [X], [info("y", [None] * rank)], W | constants)
        onnx.checker.check_model(made)
        onnx.save(made, folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", x=np.random.default_rng(3).standard_normal((16, 4, 6, 6)).astype(np.float32))


def judge(folder, opset):
    told = {}
    for name in FORMS:
        old = onnx.load(folder / f"{name}.old.onnx")
        onnx.checker.check_model(old, full_check=True)
        assert next(o.version for o in old.opset_import if o.domain == "") <= int(opset)
        x = np.load(folder / f"{name}.npz")["x"]
        # Of the late one, onnx itself says what it means.
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        a = ReferenceEvaluator(str(folder / f"{name}.onnx"))
        b = ort.InferenceSession(str(folder / f"{name}.old.onnx"), options, providers=["CPUExecutionProvider"])
        pairs = [(a.run(None, {"x": v[None]})[0], b.run(None, {"x": v[None]})[0]) for v in x]
        told[name] = float(max(np.abs(p - q).max() for p, q in pairs) / max(np.abs(p).max() for p, _ in pairs))
    print(json.dumps(told))


if __name__ == "__main__":
    {"make": make, "judge": judge}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
