"""What ONNX Runtime, without any optimisation, computes for every value of the outermost graph of each model of a corpus.

usage: corpus.py DIR OUT   every .onnx below DIR; prints JSON, a list of {model, out, error}

A result is an ONNX file whose initializers are the inputs and all values, by name. Inputs are normal deviates; integers are 0 or 1. ONNX's own
operator tests have their own inputs, which the models do not carry. Each model is written in up to three forms: as it is, with all inputs but the
first as constants, with all as constants.
"""

import json
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

ort.set_default_logger_severity(4)


def fresh(model):
    """Inputs that are no initializers."""
    known = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in known]


def every_value(model, feeds, folder):
    """All values by name. Fails where ONNX Runtime does."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    outputs = {o.name for o in wide.graph.output}
    for node in wide.graph.node:
        for name in node.output:
            if name and name not in outputs:
                outputs.add(name)
                wide.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    here = os.getcwd()
    os.chdir(folder)
    try:
        session = ort.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
    finally:
        os.chdir(here)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def container(values):
    graph = onnx.GraphProto(name="values")
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
    return onnx.ModelProto(ir_version=10, graph=graph, opset_import=[helper.make_opsetid("", 17)])


def draw(info, shape, rng):
    dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def forms(model, feeds):
    """The model with none, all but the first and all of its inputs as constants."""
    inputs = [i.name for i in fresh(model)]
    yield "", model, feeds
    for form, fixed in (("rest", inputs[1:]), ("all", inputs)):
        plain = all(isinstance(feeds[n], np.ndarray) and feeds[n].dtype.kind in "biuf" for n in fixed)
        if not fixed or not plain or (form == "rest" and fixed == inputs):
            continue
        m = onnx.ModelProto()
        m.CopyFrom(model)
        m.ir_version = max(m.ir_version, 4)
        kept = [i for i in m.graph.input if i.name not in fixed]
        del m.graph.input[:]
        m.graph.input.extend(kept)
        m.graph.initializer.extend(numpy_helper.from_array(feeds[n], n) for n in fixed)
        yield form, m, {n: v for n, v in feeds.items() if n not in fixed}


def run_corpus(folder, out):
    from onnx.backend.test.case.node import collect_testcases

    cases = {case.name: case for case in collect_testcases(None)}
    report = []
    paths = sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".onnx"))
    for path in paths:
        rng = np.random.default_rng(1)
        parts = os.path.basename(path).split("__")
        try:
            model = onnx.load(path)
            case = cases.get(parts[1]) if len(parts) == 3 else None
            inputs = fresh(model)
            if case is not None and len(case.data_sets[0][0]) == len(inputs):
                own = [np.asarray(x) if isinstance(x, np.generic) else x for x in case.data_sets[0][0]]
                feeds = dict(zip([i.name for i in inputs], own, strict=True))
            else:
                feeds = {}
                for i in inputs:
                    shape = [d.dim_value if d.dim_value > 0 else 2 for d in i.type.tensor_type.shape.dim]
                    feeds[i.name] = draw(i, shape, rng)
            variants = list(forms(model, feeds))
        except Exception as e:
            report.append({"model": path, "out": "", "error": str(e)})
            continue
        for form, m, given in variants:
            entry = {"model": path, "out": "", "error": ""}
            try:
                if form:
                    entry["model"] = os.path.join(out, f"{len(report)}.{form}.{parts[-2]}.onnx")
                    onnx.save(m, entry["model"])
                values = every_value(m, given, os.path.dirname(path))
                entry["out"] = os.path.join(out, f"{len(report)}.values.onnx")
                onnx.save(container(values | given), entry["out"])
            except Exception as e:
                entry["error"] = str(e) or type(e).__name__
            report.append(entry)
    print(json.dumps(report))


if __name__ == "__main__":
    run_corpus(sys.argv[1], sys.argv[2])
