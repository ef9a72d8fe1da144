#!/usr/bin/env bash
# Drives a running `mesh dev` with clients of Consul as they are: py-consul, the npm package consul, Go's consul/api with
# its watch plans, locks and semaphores, consul-template, and blocking loops while much changes (WATCH_SECONDS, 20).
# Then a `mesh server` with ACLs on, with Go's consul/api and py-consul.
# MESH names the binary. Exits 0 only if all held; 69 when some of the clients cannot be installed.
. "$(dirname "$0")/dev.sh"

py_consul() {
  python3 -m venv "$scratch/venv" &&
    "$scratch/venv/bin/pip" install -q --disable-pip-version-check py-consul==1.8.0
}
npm_consul() {
  mkdir "$scratch/node" && cp consul/node.js "$scratch/node" && cd "$scratch/node" &&
    npm init -y && npm install --no-audit --no-fund consul@2.0.1
}
go_api() { cd consul && go build -o "$scratch/clients" .; }
consul_template() { GOBIN=$scratch go install github.com/hashicorp/consul-template@v0.41.1; }

# A template over services and keys, rendered anew at each change, by one that asks for itself and by two of which one asks
# for both (-dedup: a lock and the found data are in keys).
templates() {
  local consul=$1 out=$scratch/rendered put="curl -fsS -o /dev/null -X PUT"
  mkdir "$out"
  cat >"$scratch/template" <<'TEMPLATE'
limit={{ keyOrDefault "template/limit" "none" }}
{{ range service "backend" }}{{ .ID }}={{ .Address }}:{{ .Port }} {{ .Tags | join "," }}
{{ end }}{{ range services }}{{ if eq .Name "backend" }}{{ .Name }} {{ .Tags | join "," }}
{{ end }}{{ end }}{{ range ls "template/list" }}{{ .Key }}:{{ .Value }}
{{ end }}{{ range tree "template" }}{{ .Key }}
{{ end }}{{ range nodes }}a node
{{ end }}
TEMPLATE
  local name renderers=()
  for name in alone first second; do
    local dedup=(); [ $name = alone ] || dedup=(-dedup)
    "$scratch/consul-template" -consul-addr "$consul" "${dedup[@]}" -wait 50ms:500ms -log-level warn \
      -template "$scratch/template:$out/$name" >"$scratch/template-$name.log" 2>&1 &
    renderers+=($!); pids+=($!)
  done
  all_show() { for name in alone first second; do tr '\n' ' ' <"$out/$name" | grep -qE "$1" || return 1; done; }
  shows() { # shows REGEX WHAT: all three do, soon
    until_true 20 "$2" all_show "$1"
    ok "$2"
  }
  shows '^limit=none a node *$' "templates are rendered"
  curl -fsS "$consul/v1/kv/consul-template/dedup?recurse" | grep -q '"Session"' || fail "nobody holds the lock of the two"
  ok "one of two asks for both"
  $put -d 10 "$consul/v1/kv/template/limit"
  shows '^limit=10 limit a node' "a key is rendered"
  local port
  for port in 1 2; do
    $put -d '{"ID":"backend-'$port'","Name":"backend","Address":"127.0.0.1","Port":'$port',"Tags":["x"]}' "$consul/v1/agent/service/register"
  done
  shows 'backend-1=127.0.0.1:1 x backend-2=127.0.0.1:2 x backend x limit a' "services are rendered"
  $put "$consul/v1/agent/service/maintenance/backend-1?enable=true"
  shows '=10 backend-2=127.0.0.1:2 x backend x' "one that does not pass goes"
  $put -d a "$consul/v1/kv/template/list/one"
  shows 'backend x one:a limit list/one a' "a list is rendered"
  for port in 1 2; do $put "$consul/v1/agent/service/deregister/backend-$port"; done
  curl -fsS -o /dev/null -X DELETE "$consul/v1/kv/template?recurse"
  shows '^limit=none a node *$' "all goes"
  # It ends at SIGINT only.
  kill -INT "${renderers[@]}"
  for name in "${renderers[@]}"; do wait "$name" || true; done
  passed
}

# A server with ACLs on; "$addresses" says where, and has the root token of its store.
acl_server() {
  local dir=$scratch/acl gossip http dns vault name
  for name in gossip http dns vault; do free_port; declare $name=$port; done
  mkdir "$dir"
  (umask 077; od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n' >"$dir/unseal.key")
  cat >"$dir/server.toml" <<TOML
node = { name = "server1", data_dir = "$dir/data", bind = "127.0.0.1" }
ports = { gossip = $gossip, http = $http, dns = $dns, vault = $vault }
acl = { enabled = true, token_ttl = "1s" }
[server.seal]
type = "static"
key_file = "$dir/unseal.key"
TOML
  "$mesh" server --config "$dir/server.toml" >"$scratch/server.log" 2>&1 &
  pids+=($!)
  uninitialised() { [ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$vault/v1/sys/health")" = 501 ]; }
  until_true 30 "a server starts" uninitialised
  MESH_VAULT_ADDR=http://127.0.0.1:$vault "$mesh" operator init --out "$dir/init.json" >"$scratch/init.log" 2>&1 ||
    fail "its store is made"
  until_true 30 "it is ready" curl -fs "http://127.0.0.1:$http/health/ready"
  addresses=$dir/addresses.json
  (umask 077; sed "s|^{|{ \"http\": \"http://127.0.0.1:$http\",|" "$dir/init.json" >"$addresses")
}

mesh_dev --compat consul
python='' go=''
if installed py_consul; then python=$scratch/venv/bin/python; told "$python" consul/python.py; fi
if installed npm_consul; then told node "$scratch/node/node.js"; fi
if installed go_api; then
  go=$scratch/clients
  told "$go" all
  told "$go" loops
fi
if installed consul_template; then templates "$(sed 's/.*"http":"\([^"]*\)".*/\1/' "$addresses")"; fi
acl_server
if [ "$go" ]; then told "$go" acl; fi
if [ "$python" ]; then told "$python" consul/acl.py; fi
exit $skipped
