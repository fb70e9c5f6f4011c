#!/usr/bin/env bash
# Everything a change must pass: format, clippy, unit tests, integration tests, cross-checks in Python.
# Needs cargo, python3 and the package registries. REQUANT_TEST_FEATURES=shared adds the tests that need the folder REQUANT_SHARED.
set -euo pipefail
cd "$(dirname "$0")/.."

features="${REQUANT_TEST_FEATURES:-}"

if [ -z "${REQUANT_PYTHON:-}" ]; then
  if ! cmp -s tests/requirements.txt .venv/requirements.txt; then
    echo "== python packages (.venv)"
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
    cp tests/requirements.txt .venv/requirements.txt
  fi
  export REQUANT_PYTHON="$PWD/.venv/bin/python"
fi

echo "== cargo fmt"
cargo fmt --check
echo "== cargo clippy"
cargo clippy --quiet --locked --all-targets --features "$features" -- -D warnings
echo "== cargo test"
cargo test --locked --features "$features"
