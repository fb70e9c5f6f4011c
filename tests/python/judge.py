"""judge.py SHARED DIR NAME…: accuracy of DIR/NAME.onnx on the labelled data of the shared folder, beside the float model's.

Prints {NAME: {"float": accuracy, "accuracy", "agree", "sqnr_db"} …}. The figures are those of the shared eval scripts.
"""

import json
import pathlib
import re
import subprocess
import sys

shared, folder, *names = sys.argv[1:]
manifest = pathlib.Path(shared) / "models" / "eval" / "manifest.py"


def run(*more):
    command = [sys.executable, "-B", str(manifest), "--only", ",".join(names), *more]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split(" | ", 1) for line in lines)


def figure(line, name):
    found = re.search(rf"{name}=([-0-9.]+)", line)
    if not found:
        sys.exit(f"no {name} in: {line}")
    return float(found[1])


plain, converted = run(), run("--models", folder, "--ref")
accuracy = lambda line: figure(line, "(?:acc|top1)")
print(
    json.dumps(
        {
            n: {
                "float": accuracy(plain[n]),
                "accuracy": accuracy(converted[n]),
                "agree": figure(converted[n], "agree"),
                "sqnr_db": figure(converted[n], "sqnr_db"),
            }
            for n in names
        }
    )
)
