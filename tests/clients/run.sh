#!/usr/bin/env bash
# Asks real compilers what they make of files that requant writes, and compares with what `requant check` says.
#   tests/clients/run.sh CLIENT… [-- options of clients.py]      CLIENT: onnxruntime, qnn, openvino, rknn, tpumlir
# Needs REQUANT_SHARED, the folder with tools/npu (check scripts, install_clients.sh) and models; NPU_VENVS says where the clients' environments are made.
# REQUANT names the program to test; without it a release build is made. REQUANT_PREP is a folder of calibration arrays, NAME.npz; without it inputs are random.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
tools="${REQUANT_SHARED:?the folder with tools/npu and models}/tools/npu"
export NPU_VENVS="${NPU_VENVS:-$here/../../target/npu_venvs}"
if [ -z "${REQUANT:-}" ]; then
  (cd "$here/../.." && cargo build --release --locked)
  export REQUANT="${CARGO_TARGET_DIR:-$here/../../target}/release/requant"
fi
clients=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do clients+=("$1"); shift; done
[ "${1:-}" = "--" ] && shift
for client in "${clients[@]:-onnxruntime}"; do
  venv="$client"
  [ "$client" = onnxruntime ] && venv=base
  for v in base "$venv"; do
    [ -d "$NPU_VENVS/$v" ] || bash "$tools/install_clients.sh" "$v"
  done
  "$NPU_VENVS/base/bin/python" "$here/clients.py" "$client" "$@"
done
