#!/usr/bin/env bash
# Drives a running `mesh dev` with clients of Vault and Consul as they are: hvac and py-consul, node-vault, Go's
# vault/api. MESH names the binary. Exits 0 only if all held; 69 when some of the clients cannot be installed.
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
  chmod -R u+w "$scratch"
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

python() {
  python3 -m venv "$scratch/venv" &&
    "$scratch/venv/bin/pip" install -q --disable-pip-version-check hvac py-consul
}
node_vault() {
  mkdir "$scratch/node" && cp clients.js "$scratch/node" && cd "$scratch/node" &&
    npm init -y && npm install --no-audit --no-fund node-vault
}
go_api() {
  local api=github.com/hashicorp/vault/api
  mkdir "$scratch/go" && cp clients.go "$scratch/go/main.go" && cd "$scratch/go" &&
    go mod init clients && go get "$api" "$api/auth/approle" "$api/auth/userpass" && go build -o clients .
}

skipped=0
# Installs; what cannot be installed is named, with the last lines of why.
installed() {
  ("$1") >"$scratch/$1.log" 2>&1 && return
  echo "SKIPPED: $1 cannot be installed here"
  tail -3 "$scratch/$1.log"
  skipped=69
  return 1
}

"$mesh" dev --data-dir "$scratch/data" --free-ports --addresses "$scratch/addresses.json" >"$scratch/dev.log" 2>&1 &
dev=$!
for _ in $(seq 100); do [ -s "$scratch/addresses.json" ] && break; sleep 0.1; done
[ -s "$scratch/addresses.json" ] || { cat "$scratch/dev.log"; exit 1; }
told() {
  "$@" "$scratch/addresses.json" || { tail -40 "$scratch/dev.log"; exit 1; }
}

if installed python; then told "$scratch/venv/bin/python" clients.py; fi
if installed node_vault; then told node "$scratch/node/clients.js"; fi
if installed go_api; then told "$scratch/go/clients"; fi
exit $skipped
