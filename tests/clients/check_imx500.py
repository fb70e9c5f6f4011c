#!/usr/bin/env python3
"""Sony's imx500-converter on MODEL: whether it makes a network of it (packerOut.zip). It has no simulator, and says nothing of single nodes.
Needs Java 17 on PATH, and the environment that install_clients.sh makes in NPU_VENVS. The last line is `RESULT {json}`, as of the other scripts.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time

began = time.time()
programs = os.path.join(os.environ["NPU_VENVS"], "imx500", "bin")
folder = tempfile.mkdtemp(prefix="imx500")
command = [os.path.join(programs, "imxconv-pt"), "-i", sys.argv[1], "-o", folder, "--overwrite-output", "--no-input-persistency"]
try:
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"})
    said = run.stdout + run.stderr
except subprocess.TimeoutExpired:
    said = "ERROR : no end within 900 s"
accepted = os.path.exists(os.path.join(folder, "packerOut.zip"))
errors = [line for line in said.splitlines() if re.search(r"ERROR|Error:|AssertionError", line)] or [said[-300:]]
print("RESULT " + json.dumps({"client": "imx500-converter", "accepted": accepted, "seconds": round(time.time() - began, 1), **({} if accepted else {"error": " | ".join(errors)[:500]})}))
