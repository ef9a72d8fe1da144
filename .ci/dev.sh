# To be sourced: a scratch directory that goes at the end, programs that are installed into it, and a running `mesh dev`.
# MESH names the binary. What is in `pids` ends at the end; before that the function `finish` is called, if there is one.
set -euo pipefail
mesh=$(realpath -e "${MESH:?MESH must name the mesh binary}")
cd "$(dirname "${BASH_SOURCE[0]}")"
# Nothing of the caller's own: no address, and above all no token.
for name in $(compgen -e | grep -E '^(MESH|VAULT|CONSUL)_' || true); do unset "$name"; done

scratch=$(mktemp -d)
pids=()
cleanup() {
  trap '' INT TERM # it takes a moment; a second Ctrl-C must not leave half of it
  local pid at
  ! declare -F finish >/dev/null || finish
  # The newest first: what was started last uses what was started before.
  for ((at = ${#pids[@]} - 1; at >= 0; at--)); do
    pid=${pids[at]}
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  chmod -R u+w "$scratch"
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# installed NAME: runs the function of that name, which installs; what cannot be installed is named, with the last
# lines of why, and `skipped` says so at the end.
skipped=0
installed() {
  ("$1") >"$scratch/$1.log" 2>&1 && return
  echo "SKIPPED: $1 cannot be installed here"
  tail -3 "$scratch/$1.log"
  skipped=69
  return 1
}

# What held, counted.
held=0
ok() { held=$((held + 1)); echo "ok: $*"; }
passed() { echo "$held passed, 0 failed"; }
fail() { echo "FAILED: $*"; tail -n 40 "$scratch"/*.log; exit 1; }

# until_true SECONDS WHAT COMMAND...: again and again until it succeeds.
until_true() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "$what: not within the time given"
    sleep 0.1
  done
}

# mesh_dev ARGUMENT...: starts one; the file "$addresses" says where it listens.
addresses=$scratch/addresses.json
mesh_dev() {
  "$mesh" dev --data-dir "$scratch/data" --free-ports --addresses "$addresses" "$@" >"$scratch/dev.log" 2>&1 &
  pids+=($!)
  until_true 30 "mesh dev starts" test -s "$addresses"
}

# told COMMAND...: which is told the addresses, and must succeed.
told() {
  "$@" "$addresses" || fail "$*"
}

# free_port: into $port, one that nothing uses and no other call gave. Ports the system itself hands out begin above.
taken=" "
free_port() {
  while :; do
    port=$((RANDOM % 12000 + 20000))
    case $taken in *" $port "*) continue ;; esac
    grep -qsi "^ *[0-9]*: [0-9A-F]*:$(printf '%04X' $port) " /proc/net/{tcp,tcp6,udp,udp6} || break
  done
  taken+="$port "
}
