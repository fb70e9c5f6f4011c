"""Python reads this file when it starts, if its folder is on PYTHONPATH, which tests/it/python.rs sees to.

On x86 without VNNI, ONNX Runtime's optimized kernels add pairs of uint8 × int8 products in 16 bits, which saturate: the answers then say nothing of a model.
There, sessions that ask for nothing else compute with the basic optimizations, which leave quantizers where they are.
"""

import importlib.abc
import importlib.util
import pathlib
import platform
import sys

cpu = pathlib.Path("/proc/cpuinfo")
SATURATES = platform.machine() == "x86_64" and not (cpu.exists() and "vnni" in cpu.read_text())


class Exact(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "onnxruntime":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            made = module.InferenceSession.__init__

            def make(session, model, sess_options=None, *args, **kwargs):
                options = sess_options or module.SessionOptions()
                every = module.GraphOptimizationLevel.ORT_ENABLE_ALL
                if SATURATES and options.graph_optimization_level == every and not options.optimized_model_filepath:
                    options.graph_optimization_level = module.GraphOptimizationLevel.ORT_ENABLE_BASIC
                made(session, model, options, *args, **kwargs)

            module.InferenceSession.__init__ = make

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Exact())
