#!/usr/bin/env bash
# Asks a running `mesh dev` for names with the resolvers that people have: dig, delv, kdig, getent, Python, Go in both modes,
# Node and Java; directly and behind unbound and dnsmasq. MESH names the binary. Everything runs in a network and a mount
# namespace of its own, in which /etc/resolv.conf is ours; that needs root. Exits 0 only if all held; 69 when something
# could not be tried.
set -euo pipefail
mesh=$(realpath -e "${MESH:?MESH must name the mesh binary}")
cd "$(dirname "$0")"
if [ -z "${MESH_RESOLVERS_INSIDE:-}" ]; then
  # The Go program is built outside: inside there is no network.
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  if command -v go >/dev/null; then
    (cd "$scratch" && cp "$OLDPWD/resolvers.go" main.go && { [ -e go.mod ] || go mod init resolvers; } && CGO_ENABLED=1 go build -o resolve .) \
      >"$scratch/go.log" 2>&1 || { cat "$scratch/go.log"; exit 1; }
  fi
  if ! unshare --net --mount true 2>/dev/null; then
    echo "SKIPPED: namespaces cannot be made here (needs root)"
    exit 69
  fi
  MESH_RESOLVERS_INSIDE=1 MESH=$mesh SCRATCH=$scratch unshare --net --mount --propagation private "$PWD/resolvers.sh" && held=0 || held=$?
  exit "$held"
fi
ip link set lo up
: >"$SCRATCH/resolv.conf"
# /etc/resolv.conf may be a link into a place that is not there.
touch "$(realpath -m /etc/resolv.conf)"
mount --bind "$SCRATCH/resolv.conf" "$(realpath /etc/resolv.conf)"
exec python3 resolvers.py "$mesh" "$SCRATCH"
