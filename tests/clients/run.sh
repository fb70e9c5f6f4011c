#!/usr/bin/env bash
# Asks real compilers what they make of files that requant writes, and compares with what `requant check` says.
#   tests/clients/run.sh CLIENT… [-- options of clients.py]      CLIENT: onnxruntime, qnn, openvino, rknn, tpumlir, acuity, imx500
#   tests/clients/run.sh CLIENT… -- --gate                       whether what is written for the client's profiles runs as it must
#   tests/clients/run.sh CLIENT… -- --accuracy [options of accuracy.py]
# Needs REQUANT_SHARED, the folder with tools/npu (check scripts, install_clients.sh) and models, and python3, 3.11 or newer.
# NPU_VENVS says where the clients' environments are made. REQUANT names the program to test; without it a release build is made.
# REQUANT_PREP is a folder of calibration arrays, NAME.npz; what is missing there is made, of few samples.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
tools="${REQUANT_SHARED:?the folder with tools/npu and models}/tools/npu"
target="${CARGO_TARGET_DIR:-$here/../../target}"
export REQUANT_SHARED NPU_VENVS="${NPU_VENVS:-$target/npu_venvs}"
if [ -z "${REQUANT:-}" ]; then
  (cd "$here/../.." && cargo build --release --locked)
  export REQUANT="$target/release/requant"
fi

# Clients that are wheels and need nothing else are installed here; the others by the script of the shared folder.
install() {
  local pins="$here/requirements/$1.txt" venv="$NPU_VENVS/$1"
  [ "$1" = base ] && pins="$here/../requirements.txt"
  if [ -f "$pins" ]; then
    cmp -s "$pins" "$venv/requirements.txt" && return
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$pins"
    cp "$pins" "$venv/requirements.txt"
  elif [ ! -d "$venv" ]; then
    bash "$tools/install_clients.sh" "$1"
  fi
}

clients=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do clients+=("$1"); shift; done
[ "${1:-}" = "--" ] && shift
script=clients.py
[ "${1:-}" = "--accuracy" ] && { script=accuracy.py; shift; }
mkdir -p "$NPU_VENVS"
for client in "${clients[@]:-onnxruntime}"; do
  install base
  [ "$client" = onnxruntime ] || install "$client"
  "$NPU_VENVS/base/bin/python" -B "$here/$script" "$client" "$@"
done
