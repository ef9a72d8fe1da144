"""What py-consul must be able to do against a server that has ACLs on, unchanged."""

import json
import sys
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


def denied(words, call, kind=consul.ACLPermissionDenied):
    try:
        call()
    except kind as error:
        return words in str(error)
    return False


def client(token=None):
    return consul.Consul(host=WHERE.hostname, port=WHERE.port, token=token)


def management():
    made = root.acl.token.create(policies_name=["global-management"], description="boss")
    check("the root token of the store makes one that manages", made["Policies"][0]["Name"] == "global-management")
    return client(made["SecretID"]), made["AccessorID"]


def policies_and_roles(boss):
    rules = {"key_prefix": {"py/": {"policy": "write"}}, "service": {"py": {"policy": "write"}}, "node_prefix": {"": {"policy": "read"}}}
    policy = boss.acl.policy.create("py", description="of py", rules=rules)
    read = boss.acl.policy.read(policy["ID"])
    check("a policy in JSON", json.loads(read["Rules"]) == rules and (read["Name"], read["Description"]) == ("py", "of py"))
    rules["session_prefix"] = {"": {"policy": "write"}}
    boss.acl.policy.update(policy["ID"], "py", description="more", rules=rules)
    check("is updated", json.loads(boss.acl.policy.read(policy["ID"])["Rules"]) == rules)
    check("and listed", "py" in [p["Name"] for p in boss.acl.policy.list()])
    role = boss.acl.role.create("py", policies_name=["py"])
    check("a role", boss.acl.role.read(role["ID"])["Policies"] == [{"ID": policy["ID"], "Name": "py"}])
    check("by name", boss.acl.role.read_by_name("py")["ID"] == role["ID"])
    check("listed by policy", [r["Name"] for r in boss.acl.role.list(policy=policy["ID"])] == ["py"])
    return policy["ID"], role["ID"]


def tokens(boss):
    made = boss.acl.token.create(roles_name=["py"], description="worker", expiration_ttl="1h")
    check("a token with an end", made["ExpirationTime"] > made["CreateTime"])
    worker = client(made["SecretID"])
    check("reads itself", worker.acl.token.read_self()["AccessorID"] == made["AccessorID"])
    check("is read by others that may", boss.acl.token.read(made["AccessorID"])["Description"] == "worker")
    check("lists none", denied("Permission denied", worker.acl.token.list))
    chosen = "11111111-2222-4333-8444-555555555555"
    check("an ID may be chosen", boss.acl.token.create(accessor_id=chosen)["AccessorID"] == chosen and boss.acl.token.delete(chosen))
    clone = boss.acl.token.clone(made["AccessorID"], description="another")
    check("a clone", clone["Description"] == "another" and clone["Roles"][0]["Name"] == "py")
    check("all are listed", {made["AccessorID"], clone["AccessorID"]} <= {t["AccessorID"] for t in boss.acl.token.list()})

    check("writes its keys", worker.kv.put("py/a", "1") and worker.kv.get("py/a")[1]["Value"] == b"1")
    check("and no others", denied("Permission denied", lambda: worker.kv.put("other/a", "1")))
    session = worker.session.create("py", ttl=10)
    check("holds a lock", worker.kv.put("py/lock", "", acquire=session) and worker.session.destroy(session))
    check("registers its service", worker.agent.service.register("py", port=1))
    check("and no other", denied("Permission denied", lambda: worker.agent.service.register("db", port=1)))
    check("finds it", len(worker.health.service("py", passing=True)[1]) == 1)
    check("which nobody else sees", client().health.service("py")[1] == [] and client().catalog.services()[1] == {})
    worker.agent.service.deregister("py")
    check("an unknown token is not found", denied("ACL not found", lambda: client("none").kv.get("py/a")))
    check("deleted", boss.acl.token.delete(made["AccessorID"]))
    check("it writes no more", denied("ACL not found", lambda: worker.kv.put("py/a", "2")))
    boss.acl.token.delete(clone["AccessorID"])
    boss.kv.delete("py/", recurse=True)


root = client(ADDRESSES["root_token"])
boss, accessor = management()
policy, role = policies_and_roles(boss)
tokens(boss)
check("a role is deleted", boss.acl.role.delete(role) and "py" not in [r["Name"] for r in boss.acl.role.list()])
check("a policy is deleted", boss.acl.policy.delete(policy) and "py" not in [p["Name"] for p in boss.acl.policy.list()])
check("a token does not delete itself", denied("not permitted", lambda: boss.acl.token.delete(accessor), consul.ConsulException))
check("another does", root.acl.token.delete(accessor))
check("and is gone", denied("ACL not found", boss.acl.token.list))
print(f"{PASSED} passed, 0 failed")
