"""What py-consul must be able to do against `mesh dev`, unchanged."""

import json
import sys
import threading
import time
from urllib.parse import urlsplit

import consul

ADDRESSES = json.load(open(sys.argv[1]))
WHERE = urlsplit(ADDRESSES["http"])
PASSED = 0


def check(what, held):
    global PASSED
    if not held:
        sys.exit(f"FAILED: {what}")
    PASSED += 1
    print(f"ok: {what}")


def refused(error, call):
    try:
        call()
    except error:
        return True
    return False


def until(what, holds):
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"FAILED: {what}")
        time.sleep(0.02)
    check(what, True)


CLIENT = consul.Consul(host=WHERE.hostname, port=WHERE.port)


def services():
    client = CLIENT
    check("a leader", ":" in client.status.leader())
    check("the agent knows its name", client.agent.self()["Config"]["NodeName"])
    check("one member, alive", [m["Status"] for m in client.agent.members()] == [1])

    client.agent.service.register("api", service_id="api-1", address="127.0.0.1", port=9090, tags=["v1", "blue"], check=consul.Check.ttl("30s"))
    index, found = client.health.service("api")
    check("registered, still critical", found[0]["Checks"] and any(c["Status"] == "critical" for c in found[0]["Checks"]))

    woken = []

    def watch():
        woken.append(client.health.service("api", passing=True, index=index, wait="20s"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(0.3)
    started = time.monotonic()
    client.agent.check.ttl_pass("service:api-1")
    watcher.join(15)
    check("a blocking query wakes on the change", woken and time.monotonic() - started < 10)
    check("and shows the passing instance", [e["Service"]["ID"] for e in woken[0][1]] == ["api-1"])
    check("its index grew", int(woken[0][0]) > int(index))
    check("by tag", len(client.health.service("api", tag="blue")[1]) == 1 and client.health.service("api", tag="green")[1] == [])
    check("by filter", len(client.health.service("api", filter_expr='"blue" in Service.Tags')[1]) == 1)
    check("catalog lists it", sorted(client.catalog.services()[1]["api"]) == ["blue", "v1"])
    check("catalog has its address", client.catalog.service("api")[1][0]["ServicePort"] == 9090)
    check("catalog has the node", len(client.catalog.nodes()[1]) == 1)
    client.agent.check.ttl_warn("service:api-1", notes="tired")
    noted = client.health.checks("api")[1][0]
    check("a warning with its words", (noted["Status"], noted["Output"]) == ("warning", "tired"))
    check("and by state", [c["CheckID"] for c in client.health.state("warning")[1]] == ["service:api-1"])
    client.agent.service.maintenance("api-1", True, reason="new disk")
    check("under maintenance", "api-1" not in [e["Service"]["ID"] for e in client.health.service("api", passing=True)[1]])
    client.agent.service.maintenance("api-1", False)
    check("the agent's own view", client.agent.services()["api-1"]["Port"] == 9090 and "service:api-1" in client.agent.checks())
    client.agent.service.deregister("api-1")
    check("deregistered", client.health.service("api")[1] == [])

    client.catalog.register("printer", "192.0.2.7", service={"Service": "print", "ID": "print-1", "Port": 631}, node_meta={"external-node": "true"})
    until("a node without an agent", lambda: [e["ServicePort"] for e in client.catalog.service("print")[1]] == [631])
    client.catalog.deregister("printer")
    until("which goes again", lambda: client.catalog.service("print")[1] == [])


def keys():
    client = CLIENT
    check("kv put", client.kv.put("config/web/limit", "10"))
    index, entry = client.kv.get("config/web/limit")
    check("kv get", entry["Value"] == b"10" and entry["Key"] == "config/web/limit")
    check("kv cas refuses a stale writer", client.kv.put("config/web/limit", "11", cas=entry["ModifyIndex"] - 1) is False)
    check("kv cas accepts the current one", client.kv.put("config/web/limit", "12", cas=entry["ModifyIndex"]) is True)
    client.kv.put("config/web/name", "w")
    check("kv recurse", [e["Key"] for e in client.kv.get("config/", recurse=True)[1]] == ["config/web/limit", "config/web/name"])
    check("kv keys", client.kv.get("config/", keys=True, separator="/")[1] == ["config/web/"])
    session = client.session.create("worker", ttl=10, lock_delay=0)
    other = client.session.create("other", behavior="delete", lock_delay=0)
    check("a session holds a lock", client.kv.put("lock", "a", acquire=session) and client.kv.get("lock")[1]["Session"] == session)
    check("and nobody else does", client.kv.put("lock", "b", acquire=other) is False)
    check("it is renewed", client.session.renew(session)["ID"] == session)
    check("sessions are listed", {s["Name"] for s in client.session.list()[1]} >= {"worker", "other"})
    index, _ = client.kv.get("lock")
    check("it ends", client.session.destroy(session))
    check("and lets go, which a blocking query sees", "Session" not in client.kv.get("lock", index=index, wait="20s")[1])
    check("a lock that is deleted with its session", client.kv.put("temporary", "b", acquire=other) and client.session.destroy(other) and client.kv.get("temporary")[1] is None)
    check("an unknown session takes nothing", refused(consul.ConsulException, lambda: client.kv.put("lock", "c", acquire="0e4f5f0e-0000-4000-8000-000000000000")))
    ops = [{"KV": {"Verb": "set", "Key": "txn/a", "Value": "MQ=="}}, {"KV": {"Verb": "get-tree", "Key": "txn/"}}]
    check("a transaction", [r["KV"]["Key"] for r in client.txn.put(ops)["Results"]] == ["txn/a", "txn/a"])
    check("kv delete", client.kv.delete("config/", recurse=True) and client.kv.get("config/web/limit")[1] is None)
    client.kv.delete("txn/", recurse=True)
    client.kv.delete("lock")


def queries_and_intentions():
    client = CLIENT
    client.agent.service.register("geo", port=1)
    query = client.query.create("geo", name="near", tags=[], onlypassing=True)["ID"]
    check("a prepared query", [n["Service"]["Service"] for n in client.query.execute("near")["Nodes"]] == ["geo"])
    check("is listed and explained", query in [q["ID"] for q in client.query.list()] and client.query.explain("near")["Query"]["Name"] == "near")
    check("and deleted", client.query.delete(query))
    client.agent.service.deregister("geo")

    intentions = client.connect.intentions
    check("an intention", intentions.upsert("web", "db", action="deny"))
    check("is read", intentions.read("web", "db")["Action"] == "deny")
    check("decides", intentions.check("web", "db") in (False, {"Allowed": False}))
    check("matches", [i["SourceName"] for i in intentions.match("destination", "db")["db"]] == ["web"])
    check("and is deleted", intentions.delete("web", "db") and "web" not in [i["SourceName"] for i in intentions.list()])
    check("ACLs are off, in the words for it", refused(consul.ACLDisabled, client.acl.token.list))


def rest():
    client = CLIENT
    fired = client.event.fire("deploy", "v7")
    until("an event is heard of", lambda: fired["ID"] in [e["ID"] for e in client.event.list("deploy")[1]])
    check("a configuration entry", client.config.set("service-defaults", "shop", {"Protocol": "http"}))
    check("is read", client.config.get("service-defaults", "shop")["Protocol"] == "http")
    check("listed", [e["Name"] for e in client.config.list("service-defaults")] == ["shop"])
    client.config.delete("service-defaults", "shop")
    check("roots of the mesh", "BEGIN CERTIFICATE" in client.connect.ca.roots()["Roots"][0]["RootCert"])
    check("by the agent", client.agent.connect.ca.roots()["ActiveRootID"] != "")
    client.agent.service.register("leafy", port=1)
    check("a leaf", client.agent.connect.ca.leaf("leafy")["Service"] == "leafy")
    client.agent.service.deregister("leafy")
    check("coordinates", len(client.coordinate.nodes()[1]) > 0)
    check("metrics", "Gauges" in client.agent.metrics())
    check("a leader among the servers", any(s["Leader"] for s in client.operator.raft_config()["Servers"]))


services()
keys()
queries_and_intentions()
rest()
print(f"{PASSED} passed, 0 failed")
