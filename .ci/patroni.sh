#!/usr/bin/env bash
# Two nodes of Patroni, each with a PostgreSQL, which elect their leader through `mesh dev` as if it were Consul. The leader
# is killed, the other takes over with all that was written, the first comes back and is made the leader again. MESH names
# the binary; PATRONI_FROM=pypi takes Patroni from there though the distribution's is installed. Exits 0 only if all held; 77
# when Patroni or PostgreSQL is missing.
. "$(dirname "$0")/dev.sh"
skip() { echo "SKIPPED: $*"; exit 77; }

pgbin=$(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -V | tail -1 || true)
[ -x "${pgbin:-/none}/initdb" ] && [ -x "$pgbin/postgres" ] || skip "the PostgreSQL server is not installed"
for needed in psql curl jq; do command -v "$needed" >/dev/null || skip "$needed is not installed"; done
as_postgres=()
if [ "$(id -u)" = 0 ]; then
  id postgres >/dev/null 2>&1 || skip "PostgreSQL does not run as root, and there is no user postgres"
  as_postgres=(setpriv --reuid postgres --regid postgres --init-groups --)
fi
# The distribution's Patroni with the distribution's client of Consul, else those of the package index.
patroni_in_venv() {
  # The system's own: one of somebody's home is none for the user postgres.
  /usr/bin/python3 -m venv "$scratch/venv" &&
    "$scratch/venv/bin/pip" install -q --disable-pip-version-check 'patroni[consul]==4.1.5' psycopg2-binary
}
if [ "${PATRONI_FROM:-}" != pypi ] && command -v patroni >/dev/null && /usr/bin/python3 -I -c 'import consul, psycopg2' 2>/dev/null; then
  patroni=$(command -v patroni) patronictl=$(command -v patronictl)
else
  installed patroni_in_venv || skip "Patroni cannot be installed"
  patroni=$scratch/venv/bin/patroni patronictl=$scratch/venv/bin/patronictl
fi
"$patroni" --version

mesh_dev --compat consul
consul=$(jq -r .http "$addresses")
chmod 711 "$scratch"
password=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')

declare -A rest sql patroni_pid
for node in a b; do
  free_port; rest[$node]=$port
  free_port; sql[$node]=$port
  mkdir -m 700 "$scratch/$node"
  cat >"$scratch/$node/patroni.yml" <<YAML
scope: ledger
name: $node
restapi: { listen: "127.0.0.1:${rest[$node]}", connect_address: "127.0.0.1:${rest[$node]}" }
consul: { url: "$consul", register_service: true, service_check_interval: 1s }
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 3
    postgresql:
      use_pg_rewind: true
      parameters: { wal_keep_size: 64MB, max_connections: 20 }
  initdb: [{ encoding: UTF8 }, data-checksums, no-sync]
postgresql:
  listen: "127.0.0.1:${sql[$node]}"
  connect_address: "127.0.0.1:${sql[$node]}"
  data_dir: "$scratch/$node/data"
  bin_dir: "$pgbin"
  pgpass: "$scratch/$node/pgpass"
  pg_hba:
    - host all all 127.0.0.1/32 scram-sha-256
    - host replication all 127.0.0.1/32 scram-sha-256
  authentication:
    superuser: { username: postgres, password: "$password" }
    replication: { username: replicator, password: "$password" }
  parameters: { unix_socket_directories: "", shared_buffers: 16MB, fsync: "off" }
YAML
  [ "$(id -u)" != 0 ] || chown -R postgres "$scratch/$node"
done

start() { # start NODE: its Patroni, which starts its PostgreSQL
  HOME=$scratch/$1 "${as_postgres[@]}" "$patroni" "$scratch/$1/patroni.yml" >>"$scratch/patroni-$1.log" 2>&1 &
  patroni_pid[$1]=$!
  pids+=($!)
}
finish() { # without a Patroni, which would start it again, each PostgreSQL
  kill -KILL "${patroni_pid[@]}" 2>/dev/null || true
  for node in a b; do
    [ ! -e "$scratch/$node/data/postmaster.pid" ] || "${as_postgres[@]}" "$pgbin/pg_ctl" -D "$scratch/$node/data" -m immediate -s stop || true
  done
}
query() { # query NODE SQL
  PGPASSWORD=$password PGCONNECT_TIMEOUT=3 psql -X -q -At -h 127.0.0.1 -p "${sql[$1]}" -U postgres -d postgres -c "$2"
}
is() { # is NODE ROLE: as its own interface says, with the status of its answer
  curl -fsS -o "$scratch/answer" -m 3 "http://127.0.0.1:${rest[$1]}/$2"
}
answers() { [ "$(query "$1" "$2" 2>/dev/null)" = "$3" ]; }
says() { [ "$(curl -fsS -m 5 "$consul$1" | jq -r "$2")" = "$3" ]; }
leads() { # leads NODE: in the key that decides, and as a service whose check passes
  says /v1/kv/service/ledger/leader '.[0].Value | @base64d' "$1"
  says "/v1/health/service/ledger?passing&tag=primary" '[.[].Service | "\(.ID) \(.Port)"] | join(",")' "ledger/$1 ${sql[$1]}"
}

start a
until_true 60 "the first node leads" is a leader
until_true 20 "and is the leader of the catalog" leads a
ok "the first node is the leader"
start b
until_true 60 "the second node follows" is b replica
until_true 30 "it streams" answers a "select state from pg_stat_replication" streaming
until_true 20 "the replica is in the catalog" says "/v1/health/service/ledger?passing&tag=replica" '.[].Service.Port' "${sql[b]}"
says "/v1/kv/service/ledger/members/?keys" 'join(",")' service/ledger/members/a,service/ledger/members/b || fail "members in the keys"
ok "the second follows and streams; both are in the catalog, by role"
query a "create table entries(what text); insert into entries values ('before')"
until_true 20 "the row is at the second" answers b "select what from entries" before
ok "what is written at the first is at the second"

killed=$SECONDS
kill -KILL "${patroni_pid[a]}" "$(head -1 "$scratch/a/data/postmaster.pid")"
wait "${patroni_pid[a]}" 2>/dev/null || true
until_true 60 "the second takes over" is b leader
until_true 20 "and is the leader of the catalog" leads b
took=$((SECONDS - killed))
answers b "select pg_is_in_recovery(), what from entries" "f|before" || fail "what was written before is not there"
query b "insert into entries values ('after')"
ok "the leader was killed: the other took over within $took s, with what was written, and takes writes"

start a
until_true 60 "the first comes back as a replica" is a replica
until_true 30 "with what was written meanwhile" answers a "select string_agg(what, ',' order by what) from entries" after,before
ok "the first came back and follows"
HOME=$scratch/b "${as_postgres[@]}" "$patronictl" -c "$scratch/b/patroni.yml" switchover ledger --candidate a --force >"$scratch/switchover.log" 2>&1 \
  || fail "patronictl switchover"
until_true 60 "the first leads again" is a leader
until_true 20 "and is the leader of the catalog" leads a
until_true 60 "the second follows again" is b replica
query a "insert into entries values ('again')"
until_true 30 "and has every row" answers b "select count(*) from entries" 3
ok "a switchover made it the leader again"
passed
