"""versions.py REQUIREMENTS: fails unless the installed packages are the pinned ones."""

import importlib.metadata
import sys

pins = [line.strip().split("==") for line in open(sys.argv[1]) if "==" in line]
wrong = [f"{name}: {have}, not {want}" for name, want in pins if (have := importlib.metadata.version(name)) != want]
if wrong:
    sys.exit("; ".join(wrong))
print("as pinned")
