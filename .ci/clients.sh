#!/usr/bin/env bash
# Drives a running `mesh dev` with the Python clients of Vault (hvac) and Consul (py-consul), and with
# curl. MESH names the binary. Exits 0 only if all held; 69 when the clients cannot be installed.
set -euo pipefail
mesh=$(realpath -e "${MESH:?MESH must name the mesh binary}")
cd "$(dirname "$0")"

scratch=$(mktemp -d)
dev=
cleanup() {
  if [ -n "$dev" ]; then
    kill "$dev" 2>/dev/null || true
    wait "$dev" || true
  fi
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

python3 -m venv "$scratch/venv" >/dev/null 2>&1 &&
  "$scratch/venv/bin/pip" install -q --disable-pip-version-check hvac py-consul >/dev/null 2>&1 || exit 69

"$mesh" dev --data-dir "$scratch/data" --free-ports --addresses "$scratch/addresses.json" >"$scratch/dev.log" 2>&1 &
dev=$!
for _ in $(seq 100); do [ -s "$scratch/addresses.json" ] && break; sleep 0.1; done
[ -s "$scratch/addresses.json" ] || { cat "$scratch/dev.log"; exit 1; }

"$scratch/venv/bin/python" clients.py "$scratch/addresses.json" || { tail -40 "$scratch/dev.log"; exit 1; }
