"""The table of `resolvers.sh`: every client asks every server for every kind of name. Arguments: the mesh binary, a folder."""
import json, os, shutil, signal, socket, subprocess, sys, time, urllib.request

mesh, scratch = sys.argv[1:3]
started, failed, skipped, held = [], [], set(), 0


def start(name, *command):
    log = open(os.path.join(scratch, name + ".log"), "w")
    started.append((name, subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)))


def stop():
    for _, process in reversed(started):
        process.send_signal(signal.SIGTERM)
    for _, process in started:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write(name, text):
    path = os.path.join(scratch, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def run(*command, **env):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **env})
    return done.stdout + (done.stderr if done.returncode and not done.stdout else "")


def register(name, ident, address, port, tags=()):
    body = {"Name": name, "ID": ident, "Address": address, "Port": port, "Tags": list(tags)}
    request = urllib.request.Request("http://127.0.0.1:8500/v1/agent/service/register", json.dumps(body).encode(), method="PUT")
    urllib.request.urlopen(request, timeout=10).read()


def listening(address):
    try:
        socket.create_connection((address, 53), timeout=1).close()
        return True
    except OSError:
        return False


def until(what, ready):
    for _ in range(200):
        if ready():
            return
        time.sleep(0.1)
    for name, _ in started:
        sys.stderr.write(f"--- {name}\n" + open(os.path.join(scratch, name + ".log")).read()[-3000:])
    raise SystemExit(f"{what} is not ready")


# ---- the servers: mesh on 127.0.0.1 (8600, and 53 by redirection), unbound on 127.0.0.2, dnsmasq on 127.0.0.3
start("mesh", mesh, "dev", "--data-dir", os.path.join(scratch, "data"))
subprocess.run(["nft", "-f", "-"], input="""table ip dns {
  chain out {
    type nat hook output priority -100
    ip daddr 127.0.0.1 udp dport 53 redirect to :8600
    ip daddr 127.0.0.1 tcp dport 53 redirect to :8600
  }
}""", text=True, check=True)
servers = {"directly": "127.0.0.1"}
if shutil.which("unbound"):
    # As docs/dns.md says.
    config = write("unbound.conf", f"""server:
  interface: 127.0.0.2
  do-daemonize: no
  use-syslog: no
  chroot: ""
  username: ""
  directory: "{scratch}"
  pidfile: ""
  do-not-query-localhost: no
  domain-insecure: "mesh"
  domain-insecure: "consul"
  local-zone: "10.in-addr.arpa." nodefault
stub-zone:
  name: "mesh"
  stub-addr: 127.0.0.1@8600
stub-zone:
  name: "consul"
  stub-addr: 127.0.0.1@8600
stub-zone:
  name: "10.in-addr.arpa"
  stub-addr: 127.0.0.1@8600
remote-control:
  control-enable: no
""")
    start("unbound", "unbound", "-d", "-c", config)
    servers["unbound"] = "127.0.0.2"
if shutil.which("dnsmasq"):
    config = write("dnsmasq.conf", """no-resolv
no-hosts
bind-interfaces
listen-address=127.0.0.3
server=/mesh/127.0.0.1#8600
server=/consul/127.0.0.1#8600
rev-server=10.0.0.0/8,127.0.0.1#8600
""")
    start("dnsmasq", "dnsmasq", "--keep-in-foreground", "--user=root", "--group=root", "--pid-file=", f"--conf-file={config}")
    servers["dnsmasq"] = "127.0.0.3"
for missing in {"unbound", "dnsmasq"} - set(servers):
    skipped.add(missing)

# ---- what can be asked for
until("mesh", lambda: "export MESH" in open(os.path.join(scratch, "mesh.log")).read())
register("web", "web1", "10.1.0.1", 8001, ["v1"])
register("web", "web2", "10.1.0.2", 8002, ["v2"])
register("six", "six1", "2001:db8::1", 80)
for i in range(60):
    register("many", f"many{i}", f"10.2.0.{i + 1}", 7000 + i)
for name, address in servers.items():
    until(name, lambda: listening(address))
until("the catalog", lambda: "10.1.0.2" in run("dig", "+short", "@127.0.0.1", "web.service.mesh"))

WEB = {"10.1.0.1", "10.1.0.2"}
TARGETS = {"8001 0a010001.addr.dc1.mesh", "8002 0a010002.addr.dc1.mesh"}


def lines(text):
    return {line.strip() for line in text.splitlines() if line.strip() and not line.startswith(";")}


def srv(text):
    return {" ".join([parts[2], parts[3].rstrip(".")]) for parts in (line.split() for line in lines(text)) if len(parts) == 4}


def words(text):
    return set(text.split())


def dig(at, *asked):
    return run("dig", "+time=3", "+tries=2", f"@{at}", *asked)


def status(text):
    return next((part.split(",")[0] for part in text.split("status: ")[1:]), "none")


TABLE = [
    # client, what it needs, how it asks (the server's address is given; the system's resolver is set to it), what it must say
    ("dig A", "dig", lambda at: lines(dig(at, "+short", "web.service.mesh")), WEB),
    ("dig A .consul", "dig", lambda at: lines(dig(at, "+short", "WEB.service.dc1.consul")), WEB),
    ("dig tag", "dig", lambda at: lines(dig(at, "+short", "v2.web.service.mesh")), {"10.1.0.2"}),
    ("dig AAAA", "dig", lambda at: lines(dig(at, "+short", "six.service.mesh", "AAAA")), {"2001:db8::1"}),
    ("dig no such type", "dig", lambda at: status(dig(at, "web.service.mesh", "AAAA")), "NOERROR"),
    ("dig no such name", "dig", lambda at: status(dig(at, "nope.service.mesh")), "NXDOMAIN"),
    ("dig SRV", "dig", lambda at: srv(dig(at, "+short", "_web._tcp.service.mesh", "SRV")), TARGETS),
    ("dig target of SRV", "dig", lambda at: lines(dig(at, "+short", "0a010001.addr.dc1.mesh")), {"10.1.0.1"}),
    ("dig node", "dig", lambda at: lines(dig(at, "+short", "dev.node.mesh")), {"127.0.0.1"}),
    ("dig PTR", "dig", lambda at: lines(dig(at, "+short", "-x", "10.1.0.1")), {"web.service.dc1.mesh."}),
    ("dig +tcp", "dig", lambda at: lines(dig(at, "+tcp", "+short", "web.service.mesh")), WEB),
    ("dig +noedns", "dig", lambda at: lines(dig(at, "+noedns", "+short", "web.service.mesh")), WEB),
    ("dig +dnssec", "dig", lambda at: status(dig(at, "+dnssec", "web.service.mesh")), "NOERROR"),
    ("dig 60 SRV: UDP, then TCP", "dig", lambda at: len(srv(dig(at, "+short", "many.service.mesh", "SRV"))), 60),
    ("dig SOA", "dig", lambda at: lines(dig(at, "+short", "mesh", "SOA")).pop().split()[:2], ["ns.mesh.", "hostmaster.mesh."]),
    ("delv", "delv", lambda at: {line.split()[-1] for line in lines(run("delv", "-i", f"@{at}", "web.service.mesh")) if "\tA\t" in line}, WEB),
    ("kdig +dnssec", "kdig", lambda at: lines(run("kdig", "+dnssec", "+short", f"@{at}", "web.service.mesh")), WEB),
    ("kdig +tcp", "kdig", lambda at: srv(run("kdig", "+tcp", "+short", f"@{at}", "web.service.mesh", "SRV")), TARGETS),
    ("getent ahosts", "getent", lambda at: {line.split()[0] for line in lines(run("getent", "ahosts", "web.service.mesh"))}, WEB),
    ("getent hosts, no such name", "getent", lambda at: run("getent", "hosts", "nope.service.mesh"), ""),
    ("getent hosts, reverse", "getent", lambda at: words(run("getent", "hosts", "10.1.0.1")), {"10.1.0.1", "web.service.dc1.mesh"}),
    ("Python", "python3", lambda at: words(run("python3", "-c", "import socket; print(*{a[4][0] for a in socket.getaddrinfo('web.service.mesh', 80)})")), WEB),
    ("Python, IPv6", "python3", lambda at: words(run("python3", "-c", "import socket; print(*{a[4][0] for a in socket.getaddrinfo('six.service.mesh', 80)})")), {"2001:db8::1"}),
]
go = os.path.join(scratch, "resolve")
if os.path.exists(go):
    for mode in ("go", "cgo"):
        how = {"GODEBUG": f"netdns={mode}"}
        TABLE += [
            (f"Go ({mode})", go, lambda at, how=how: words(run(go, "host", "web.service.mesh", **how)), WEB),
            (f"Go ({mode}), no such name", go, lambda at, how=how: run(go, "host", "nope.service.mesh", **how).strip(), "not found"),
            (f"Go ({mode}), reverse", go, lambda at, how=how: run(go, "ptr", "10.1.0.2", **how).strip().rstrip("."), "web.service.dc1.mesh"),
        ]
    TABLE.append(("Go, SRV", go, lambda at: sorted(run(go, "srv", "service.mesh").split()), sorted(" ".join(TARGETS).split())))
else:
    skipped.add("go")
NODE = "const d=require('dns').promises;(async()=>{%s})().catch(e=>console.log(e.code))"
TABLE += [
    ("Node, lookup", "node", lambda at: words(run("node", "-e", NODE % "for (const a of await d.lookup('web.service.mesh',{all:true})) console.log(a.address)")), WEB),
    ("Node, resolve4", "node", lambda at: words(run("node", "-e", NODE % "console.log(...await d.resolve4('web.service.mesh'))")), WEB),
    ("Node, resolveSrv", "node", lambda at: lines(run("node", "-e", NODE % "for (const r of await d.resolveSrv('_web._tcp.mesh')) console.log(r.port+' '+r.name)")), TARGETS),
    ("Node, no such name", "node", lambda at: run("node", "-e", NODE % "await d.resolve4('nope.service.mesh')").strip(), "ENOTFOUND"),
]
java = write("Resolve.java", """public class Resolve { public static void main(String[] a) throws Exception {
  for (var one : java.net.InetAddress.getAllByName(a[0])) System.out.println(one.getHostAddress()); } }""")
TABLE.append(("Java", "java", lambda at: words(run("java", java, "web.service.mesh")), WEB))

try:
    for through, address in servers.items():
        write("resolv.conf", f"nameserver {address}\noptions timeout:3\n")
        for what, needs, ask, expected in TABLE:
            if not shutil.which(needs):
                skipped.add(needs)
                continue
            try:
                said = ask(address)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            if said == expected:
                held += 1
            else:
                failed.append(f"{through}: {what}: {said!r} instead of {expected!r}")
finally:
    stop()
print(f"resolvers: {held} held, {len(failed)} failed")
for one in failed:
    print("  " + one)
for one in sorted(skipped):
    print(f"SKIPPED: {one} is not here")
sys.exit(1 if failed else 69 if skipped else 0)
