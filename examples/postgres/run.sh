#!/usr/bin/env bash
# A real PostgreSQL through the mesh, as the distribution ships it, with nothing changed in it.
#
#   psql ── 127.0.0.1 ── sidecar of `app` ══ TLS 1.3 ══ sidecar of `postgres` ── 127.0.0.1 ── PostgreSQL
#
# psql's password is fetched with `mesh secret get`, with the mesh identity of `app` and no token. A wire tap between
# the sidecars keeps every byte that crosses; what it kept is then examined.
#
# Usage: examples/postgres/run.sh       MESH=path/to/mesh and TAP=path/to/tap name the programs; without them those of
# target/release, then target/debug, are used, and what is missing is built.
# Exit codes: 0 everything held · 1 something did not · 77 skipped: PostgreSQL, psql or openssl is missing.
set -euo pipefail
umask 077
for name in MESH TAP; do [ -z "${!name:-}" ] || declare "$name=$(realpath "${!name}")"; done
cd "$(dirname "$0")/../.."
# Nothing of the caller's own mesh or store: no address, and above all no token.
for name in $(compgen -e | grep -E '^(MESH|VAULT|CONSUL|PG)_?[A-Z]' || true); do
  case $name in MESH | PATH) ;; *) unset "$name" ;; esac
done

say()  { printf '\n== %s\n' "$*"; }
fact() { printf '   %s\n' "$*"; }
die()  { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }
skip() { printf '\n!!!! SKIPPED: %s !!!!\n!!!! Nothing was shown. Install it: apt-get install postgresql postgresql-client openssl\n' "$*" >&2; exit 77; }

# --- what is needed -------------------------------------------------------------------------------------------------
pgbin=$(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -V | tail -1 || true)
[ -x "${pgbin:-/none}/initdb" ] || pgbin=$(dirname "$(command -v initdb || echo /none/initdb)")
[ -x "$pgbin/initdb" ] && [ -x "$pgbin/postgres" ] || skip "the PostgreSQL server is not installed"
command -v psql >/dev/null || skip "psql is not installed"
command -v openssl >/dev/null || skip "openssl is not installed"
as_postgres() { "$@"; }
if [ "$(id -u)" = 0 ]; then
  id postgres >/dev/null 2>&1 || skip "PostgreSQL does not run as root, and there is no user postgres"
  as_postgres() { runuser -u postgres -- "$@"; }
fi
# What is built already is used: an optimised build before a debug build, else one is made now.
built() { # built NAME CARGO-ARGUMENT...: the path of a program of this workspace
  local name=$1 target=${CARGO_TARGET_DIR:-target} kind; shift
  for kind in release debug; do
    [ -x "$target/$kind/$name" ] && { printf '%s' "$target/$kind/$name"; return; }
  done
  cargo build -q "$@" >&2 && printf '%s' "$target/debug/$name"
}
MESH=${MESH:-$(built mesh -p sidecar --bin mesh)} TAP=${TAP:-$(built tap -p examples --bin tap)}
MESH=$(realpath "$MESH") TAP=$(realpath "$TAP")

# --- what is started here ends here -----------------------------------------------------------------------------------
dir=${TMPDIR:-/tmp}/mesh-postgres.$$.$RANDOM
pids=()
cleanup() {
  local code=$?
  trap - EXIT
  trap '' INT TERM HUP # it takes seconds; a second Ctrl-C must not leave half of it
  # Sidecars before agents, the server last.
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill -TERM "${pids[i]}" 2>/dev/null || true; done
  if [ -e "$dir/pg/data/postmaster.pid" ]; then as_postgres "$pgbin/pg_ctl" -D "$dir/pg/data" -m immediate -s stop || true; fi
  exec 9>&- || true
  for pid in "${pids[@]}"; do
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  if [ "$code" = 1 ]; then
    for log in "$dir"/*.log; do [ -s "$log" ] && { echo "--- $(basename "$log")"; tail -n 15 "$log"; }; done >&2
  fi
  rm -rf "$dir"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
mkdir -m 711 "$dir"

start() { # start NAME COMMAND...: in the background, its output in NAME.log
  local name=$1; shift
  "$@" >"$dir/$name.log" 2>&1 9>&- &
  pids+=($!)
}
until_true() { # until_true SECONDS WHAT COMMAND...: again and again until it succeeds
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what: not within the time given"
    for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null || die "$what: a process that is needed has ended"; done
    sleep 0.1
  done
}
listening() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }
taken=" "
free_port() { # into $port; no two calls give the same, none that anything uses for TCP or UDP, none the system hands out
  while :; do
    port=$((RANDOM % 12000 + 20000))
    case $taken in *" $port "*) continue ;; esac
    grep -qsi "^ *[0-9]*: [0-9A-F]*:$(printf '%04X' $port) " /proc/net/{tcp,tcp6,udp,udp6} || break
  done
  taken+="$port "
}
as_operator() { MESH_TOKEN_FILE=$dir/root.token "$@"; } # nothing else gets the root token
random() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; } # the first string of that name in JSON

for name in pg upstream mesh pg_admin app_admin s_gossip s_http s_dns s_vault a_gossip a_http a_dns; do
  free_port; declare "${name}_port=$port"
done

# --- PostgreSQL, untouched --------------------------------------------------------------------------------------------
say "PostgreSQL $("$pgbin/postgres" --version | sed 's/.* \([0-9.]*\).*/\1/'), as it comes, on loopback, passwords by SCRAM"
random >"$dir/password"
mkdir -m 700 "$dir/pg"
cp "$dir/password" "$dir/pg/password"
[ "$(id -u)" != 0 ] || chown -R postgres "$dir/pg"
as_postgres "$pgbin/initdb" -D "$dir/pg/data" -U app --pwfile="$dir/pg/password" --auth=scram-sha-256 --no-sync >"$dir/initdb.log" 2>&1 \
  || die "initdb"
as_postgres "$pgbin/pg_ctl" -D "$dir/pg/data" -l "$dir/pg/log" -w -s \
  -o "-h 127.0.0.1 -p $pg_port -c unix_socket_directories='' -c fsync=off" start || die "PostgreSQL does not start"
rm "$dir/pg/password"

# --- the mesh: a server with the sealed store, and a second node ---------------------------------------------------------
say "A mesh of two nodes: a server with the sealed store, and an agent"
random >"$dir/postgres.token"; random >"$dir/app.token"
mkdir "$dir/tap"
# Others reach the sidecar of postgres at 127.0.0.2: there the tap listens, and passes on to the sidecar at 127.0.0.1.
cat >"$dir/server.toml" <<TOML
[node]
name = "server"
data_dir = "$dir/server"
bind = "127.0.0.1"
[ports]
gossip = $s_gossip_port
http = $s_http_port
dns = $s_dns_port
vault = $s_vault_port
[[service]]
name = "postgres"
address = "127.0.0.2"
port = $pg_port
attach = { token_file = "$dir/postgres.token" }
[[service.check]]
tcp = "127.0.0.1:$pg_port"
interval = "1s"
TOML
cat >"$dir/agent.toml" <<TOML
[node]
name = "client"
data_dir = "$dir/agent"
bind = "127.0.0.1"
[join]
seeds = ["127.0.0.1:$s_gossip_port"]
token_file = "$dir/join.token"
[ports]
gossip = $a_gossip_port
http = $a_http_port
dns = $a_dns_port
[[service]]
name = "app"
port = 0
attach = { token_file = "$dir/app.token" }
TOML
export HOME=$dir NO_COLOR=1
export MESH_VAULT_ADDR=http://127.0.0.1:$s_vault_port MESH_HTTP_ADDR=http://127.0.0.1:$s_http_port
start server "$MESH" server --config "$dir/server.toml"
until_true 20 "the server answers" listening 127.0.0.1 "$s_vault_port"
"$MESH" operator init --shares 1 --threshold 1 --out "$dir/init.json" >/dev/null 2>"$dir/init.log" || die "mesh operator init: $(cat "$dir/init.log")"
tr -d '\n' <"$dir/init.json" | sed -n 's/.*"keys": *\[ *"\([^"]*\)".*/\1/p' >"$dir/share"
field root_token <"$dir/init.json" >"$dir/root.token"
[ -s "$dir/share" ] && [ -s "$dir/root.token" ] || die "mesh operator init gave no share or no root token"
"$MESH" operator unseal "@$dir/share" >/dev/null || die "mesh operator unseal"
until_true 20 "join tokens can be made" as_operator "$MESH" join-token create --publish app --out "$dir/join.token"
start agent "$MESH" agent --config "$dir/agent.toml"
until_true 20 "the agent has joined" test -S "$dir/agent/mesh.sock"
until_true 20 "the server has its socket" test -S "$dir/server/mesh.sock"
"$MESH" members | sed 's/^/   /'

say "The database's password becomes a secret that only \`app\` may read"
as_operator "$MESH" secret put secret/app/postgres "password=@$dir/password" >/dev/null || die "mesh secret put"
as_operator "$MESH" secret grant app secret/app >/dev/null || die "mesh secret grant"
fact "mesh secret put secret/app/postgres password=@FILE; mesh secret grant app secret/app"

say "A sidecar on each side, and the tap between them"
mkfifo "$dir/alive"; exec 9<>"$dir/alive" # the tap ends when this closes
"$TAP" record "127.0.0.2:$mesh_port" "127.0.0.1:$mesh_port" "$dir/tap" <"$dir/alive" >"$dir/tap.log" 2>&1 9>&- &
pids+=($!)
start postgres-sidecar "$MESH" sidecar --service postgres --agent "$dir/server/mesh.sock" \
  --attach-token-file "$dir/postgres.token" --inbound "127.0.0.1:$mesh_port" --app "127.0.0.1:$pg_port" \
  --admin "127.0.0.1:$pg_admin_port"
start app-sidecar "$MESH" sidecar --service app --agent "$dir/agent/mesh.sock" \
  --attach-token-file "$dir/app.token" --upstream "postgres=127.0.0.1:$upstream_port" --admin "127.0.0.1:$app_admin_port"
http_get() ( # http_get PORT PATH: the body, with nothing but the shell; a subshell, because a failing `exec` ends it
  exec 4<>"/dev/tcp/127.0.0.1/$1"
  printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" >&4
  IFS= read -r status <&4
  cat <&4
  case $status in *" 200 "*) ;; *) exit 1 ;; esac
)
until_true 20 "the sidecar of postgres is ready" http_get "$pg_admin_port" /health/ready
until_true 20 "the sidecar of app is ready" http_get "$app_admin_port" /health/ready

# --- calls -----------------------------------------------------------------------------------------------------------
become_psql() { # become_psql SQL: as app, over loopback; the password comes from the mesh and stands in no command line or file
  local password
  password=$("$MESH" secret get secret/app/postgres --field password --socket "$dir/agent/mesh.sock" \
    --attach-token-file "$dir/app.token") || exit 1
  export PGPASSWORD=$password PGCONNECT_TIMEOUT=5 PGSSLMODE=disable
  exec psql -X -q -At -h 127.0.0.1 -p "$upstream_port" -U app -d postgres -c "$1"
}
query() { (become_psql "$1"); }
refused() { ! query 'select 1'; }

say "Denied by default: no intention, no connection"
refused >/dev/null 2>&1 || die "psql got through without an intention"
http_get "$app_admin_port" /connections | grep -q '"refused":"intention"' || die "the refusal is not to be seen in /connections"
fact "refused, and the reason stands in the sidecar's /connections"

say "mesh intention allow app postgres"
as_operator "$MESH" intention allow app postgres >/dev/null || die "mesh intention allow"
until_true 20 "psql gets through" query 'select 1'
marker="seen-only-by-psql-and-postgres-$RANDOM$RANDOM"
answer=$(query "create table orders(what text); insert into orders values ('$marker'); select what from orders") || die "psql"
[ "$answer" = "$marker" ] || die "psql got '$answer'"
rows=$(query "select count(*), sum(length(md5(n::text))) from generate_series(1, 200000) n") || die "psql"
[ "$rows" = "200000|6400000" ] || die "psql got '$rows'"
dump=$(query "select repeat(md5(n::text), 32) from generate_series(1, 5000) n" | cksum)
direct=$(PGPASSWORD=$(cat "$dir/password") PGSSLMODE=disable psql -X -q -At -h 127.0.0.1 -p "$pg_port" -U app -d postgres \
  -c "select repeat(md5(n::text), 32) from generate_series(1, 5000) n" | cksum)
[ "$dump" = "$direct" ] || die "5 MB through the mesh differ from 5 MB read directly"
fact "psql wrote and read a row, and 5 MB through the mesh equal 5 MB read directly"

say "Who talked to whom"
pairs() { # pairs PORT: who the connections of a sidecar that carried something were between, each pair once: "own peer"
  http_get "$1" /connections | tr '{' '\n' | grep '"outcome":"closed"' | while IFS= read -r line; do
    printf '%s %s\n' "$(field local <<<"$line")" "$(field peer <<<"$line")"
  done | sort -u
}
read -r local_id peer_id <<<"$(pairs "$pg_admin_port")"
case $local_id in spiffe://*/svc/postgres) ;; *) die "the callee is '$local_id'" ;; esac
case $peer_id in spiffe://*/svc/app) ;; *) die "the caller is '$peer_id'" ;; esac
[ "$(pairs "$pg_admin_port")" = "$local_id $peer_id" ] || die "somebody else reached PostgreSQL, too"
[ "$(pairs "$app_admin_port")" = "$peer_id $local_id" ] || die "the sidecar of app does not say the same as the one of postgres"
fact "caller $peer_id"
fact "callee $local_id"
shown=$(openssl s_client -connect "127.0.0.1:$mesh_port" -tls1_3 -alpn mesh-tcp/1 -showcerts </dev/null 2>/dev/null || true)
printf '%s\n' "$shown" | openssl x509 -noout -ext subjectAltName 2>/dev/null | grep -qF "URI:$local_id" \
  || die "openssl does not see $local_id in the certificate"
fact "openssl s_client sees the same ID in the certificate, over TLS 1.3"
older=$(openssl s_client -connect "127.0.0.1:$mesh_port" -tls1_2 -alpn mesh-tcp/1 </dev/null 2>&1 || true)
grep -q 'alert protocol version' <<<"$older" || die "TLS 1.2 is not refused for being TLS 1.2: $older"
fact "TLS 1.2 is refused"

say "What crossed between the sidecars"
[ "$(cat "$dir"/tap/*.down | wc -c)" -gt 5000000 ] || die "the 5 MB did not cross at the tap"
{ echo "$marker"; cat "$dir/password"; printf 'SCRAM-SHA-256\nselect\norders\nserver_version\n'; } >"$dir/forbidden"
"$TAP" check "$dir/tap" "$dir/forbidden" | sed 's/^/   /' || die "what crossed is not what it should be"

say "The secret is nobody else's"
code=0
"$MESH" secret get secret/app/postgres --socket "$dir/server/mesh.sock" --attach-token-file "$dir/postgres.token" >/dev/null 2>&1 || code=$?
[ "$code" = 77 ] || die "postgres reading the secret of app: exit code $code instead of 77"
fact "mesh secret get as postgres: denied"

say "Taking the intention away closes what is open"
become_psql 'select pg_sleep(60)' >"$dir/sleeping.log" 2>&1 &
sleeping=$!; pids+=($sleeping)
carrying() { http_get "$app_admin_port" /connections | grep -q '"open":\[{'; }
until_true 10 "a long query runs" carrying
as_operator "$MESH" intention remove app postgres >/dev/null || die "mesh intention remove"
began=$SECONDS
wait "$sleeping" && die "the long query ended as if nothing had happened"
[ $((SECONDS - began)) -lt 20 ] || die "the open connection was not closed"
refused >/dev/null 2>&1 || die "psql still gets through"
fact "the running query was cut, and new calls are refused"

say "Everything held."
