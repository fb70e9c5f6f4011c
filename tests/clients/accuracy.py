"""Task accuracy on a real compiler beside what the report of the conversion predicts, on the same images.

    accuracy.py CLIENT [--models a,b] [--n 500] [--out DIR]     CLIENT: onnxruntime, qnn, openvino, rknn

Converts under the client's own profiles with their own recipes, the report's `accuracy` being measured on the written file with `--labels`, then
classifies the same samples with the compiler's own execution (a simulator where there is no chip). Prints both, and how many samples fall differently.
Exit 1 if they differ by more than half a point.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

import clients

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)


def cifar(n, norm, resize=0):
    from PIL import Image

    d = np.load(os.path.join(clients.SHARED, "models/cifar10/test_a.npz"))
    u, y = d["x"][:n], d["y"][:n]
    if resize:
        u = np.stack([np.asarray(Image.fromarray(v).resize((resize, resize), Image.BICUBIC)) for v in u])
    mean, std = (np.array(v, np.float32) for v in norm)
    return ((u.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2), y


def photographs(n):
    """Every so manieth of the labelled photographs, as eval_imagenet.py prepares them for EfficientNet-Lite."""
    from PIL import Image

    folder = os.path.join(clients.SHARED, "models/imagenet/nips17_a")
    rows = [(f, int(c)) for f, c in csv.reader(open(os.path.join(folder, "labels.csv")))]
    rows = rows[:: max(1, len(rows) // n)][:n]

    def one(name):
        image = Image.open(os.path.join(folder, name)).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.size[0] * scale), round(image.size[1] * scale)), Image.BICUBIC)
        left, top = (image.size[0] - 224) // 2, (image.size[1] - 224) // 2
        return ((np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) - 127) / 128).transpose(2, 0, 1)

    return np.stack([one(f) for f, _ in rows]), np.array([c for _, c in rows])


def keywords(n):
    d = np.load(os.path.join(clients.SHARED, "models/mlperf_tiny/kws_test900.npz"))
    return d["x"][:n].astype(np.float32), d["y"][:n]


TASKS = {
    "kws_dscnn": keywords,
    "resnet20_bn": lambda n: cifar(n, IMAGENET),
    "mobilenetv2_cifar10": lambda n: cifar(n, HALF, 160),
    "effnet_lite0": photographs,
    "effnet_lite0_dynamo": photographs,
}


# ---- inside the compiler's environment: model -> a function of one sample


def open_onnxruntime(path):
    import onnxruntime as ort

    s = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = s.get_inputs()[0].name
    return lambda x: s.run(None, {name: x})[0]


def open_qnn(path):
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    ort.set_default_logger_severity(4)
    ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # What the compiler does not take is an error, not the CPU's work, except Q and DQ at the borders.
    options.add_provider_for_devices([d for d in ort.get_ep_devices() if d.ep_name.startswith("QNN")][:1], {"backend_type": "htp"})
    s = ort.InferenceSession(path, options)
    name = s.get_inputs()[0].name
    return lambda x: s.run(None, {name: x})[0]


def open_openvino(path):
    import openvino as ov

    core = ov.Core()
    request = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    return lambda x: next(iter(request.infer([x]).values()))


def open_rknn(path):
    from rknn.api import RKNN

    r = RKNN(verbose=False)
    r.config(target_platform=os.environ.get("PLATFORM", "rk3588"))
    assert r.load_onnx(model=path) == 0 and r.build(do_quantization=False) == 0 and r.init_runtime() == 0, "rknn-toolkit2 refuses it"
    return lambda x: r.inference(inputs=[x], data_format=["nchw"] if x.ndim == 4 else None)[0]


def classify(client, path, samples, out):
    classes = []
    run = globals()[f"open_{client}"](path)
    x = next(iter(np.load(samples).values()))
    for k in range(len(x)):
        classes.append(int(np.asarray(run(x[k : k + 1])).reshape(-1).argmax()))
    np.save(out, np.array(classes))
    sys.stdout.flush()
    os._exit(0)


def main():
    if sys.argv[1:2] == ["--classify"]:
        classify(*sys.argv[2:6])
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("client", choices=[c for c in clients.CLIENTS if f"open_{c}" in globals()])
    p.add_argument("--models", default="kws_dscnn,resnet20_bn,mobilenetv2_cifar10,effnet_lite0")
    p.add_argument("--targets", help="other profiles than the client's own")
    p.add_argument("--n", type=int, default=500, help="samples (fewer where there are not so many)")
    p.add_argument("--out", default=tempfile.mkdtemp(prefix="accuracy"))
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    venv, _, targets, _ = clients.CLIENTS[a.client]
    parted = []
    for name in a.models.split(","):
        x, y = TASKS[name](a.n)
        at = lambda suffix: os.path.join(a.out, f"{name}.{suffix}")
        source = os.path.join(clients.SHARED, "models", clients.MODELS[name])
        np.savez(at("samples.npz"), arr_0=np.ascontiguousarray(x, np.float32))
        np.save(at("labels.npy"), y.astype(np.int64))
        for target in a.targets.split(",") if a.targets else targets:
            model = at(f"{target}.onnx")
            data = ["--data", clients.prepared(name, a.out), "--validate-data", at("samples.npz"), "--labels", at("labels.npy"), "--set", f"data.validate={len(x)}"]
            why = clients.convert(source, model, target, data)
            if why:
                raise SystemExit(f"{name} for {target}: {why}")
            said = json.load(open(model + ".json"))["outputs"][0]["accuracy"]
            started = time.time()
            python = os.path.join(clients.VENVS, venv, "bin", "python")
            done = subprocess.run([python, os.path.abspath(__file__), "--classify", a.client, model, at("samples.npz"), at("classes.npy")], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} for {target}: {a.client} did not run it: {(done.stderr or done.stdout)[-400:]}")
            seconds = (time.time() - started) / len(x)
            is_ = float((np.load(at("classes.npy")) == y).mean())
            apart = 100 * (is_ - said["converted"])
            parted += [name] if abs(apart) > 0.5 else []
            print(
                f"{a.client} {target} {name}: {len(x)} samples, float {100 * said['reference']:.2f} %, report {100 * said['converted']:.2f} %,"
                f" {a.client} {100 * is_:.2f} %, {apart:+.2f} points, {seconds:.2f} s a sample",
                flush=True,
            )
    if parted:
        raise SystemExit(f"more than half a point apart: {', '.join(parted)}")


if __name__ == "__main__":
    main()
