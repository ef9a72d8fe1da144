#!/usr/bin/env bash
# Drives a running `mesh dev` with clients of Vault as they are: hvac, node-vault, Go's vault/api. MESH names the binary.
# Exits 0 only if all held; 69 when some of the clients cannot be installed.
. "$(dirname "$0")/dev.sh"

python() {
  python3 -m venv "$scratch/venv" &&
    "$scratch/venv/bin/pip" install -q --disable-pip-version-check hvac
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

mesh_dev
if installed python; then told "$scratch/venv/bin/python" clients.py; fi
if installed node_vault; then told node "$scratch/node/clients.js"; fi
if installed go_api; then told "$scratch/go/clients"; fi
exit $skipped
