"""What existing clients of Vault must be able to do against `mesh dev`, unchanged."""

import json
import sys

import hvac
from hvac.exceptions import Forbidden, InvalidPath

ADDRESSES = json.load(open(sys.argv[1]))
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


def vault():
    client = hvac.Client(url=ADDRESSES["vault"], token=ADDRESSES["root_token"])
    health = client.sys.read_health_status(method="GET")
    check("health says initialised and unsealed", health["initialized"] and not health["sealed"])
    check("seal status has a version", client.sys.read_seal_status()["version"][0].isdigit())
    check("the leader is this server", client.sys.read_leader_status()["is_self"] in (True, False))
    check("the root token is valid", client.is_authenticated())
    check("it looks itself up", "root" in client.lookup_token()["data"]["policies"])
    check("secret/ is mounted", "secret/" in client.sys.list_mounted_secrets_engines()["data"])

    kv = client.secrets.kv.v2
    kv.create_or_update_secret("app/db", secret={"password": "first"})
    kv.create_or_update_secret("app/db", secret={"password": "second"})
    check("the newest version is read", kv.read_secret_version("app/db", raise_on_deleted_version=True)["data"]["data"] == {"password": "second"})
    check("an old version is read", kv.read_secret_version("app/db", version=1, raise_on_deleted_version=True)["data"]["data"] == {"password": "first"})
    check("check-and-set refuses a stale writer", refused(hvac.exceptions.InvalidRequest, lambda: kv.create_or_update_secret("app/db", secret={"x": "1"}, cas=1)))
    kv.patch("app/db", secret={"user": "web"})
    check("a patch keeps the rest", kv.read_secret_version("app/db", raise_on_deleted_version=True)["data"]["data"] == {"password": "second", "user": "web"})
    check("list", kv.list_secrets("app")["data"]["keys"] == ["db"])
    kv.delete_secret_versions("app/db", versions=[3])
    check("a deleted version is gone", refused(InvalidPath, lambda: kv.read_secret_version("app/db", raise_on_deleted_version=True)))
    kv.undelete_secret_versions("app/db", versions=[3])
    check("and comes back", kv.read_secret_version("app/db", raise_on_deleted_version=True)["data"]["metadata"]["version"] == 3)
    kv.destroy_secret_versions("app/db", versions=[1])
    check("a destroyed one does not", refused(InvalidPath, lambda: kv.read_secret_version("app/db", version=1, raise_on_deleted_version=True)))
    check("metadata counts versions", kv.read_secret_metadata("app/db")["data"]["current_version"] == 3)
    kv.delete_metadata_and_all_versions("app/db")
    check("everything of it is gone", refused(InvalidPath, lambda: kv.read_secret_metadata("app/db")))

    client.sys.create_or_update_policy("readers", 'path "secret/data/open/*" { capabilities = ["read"] }')
    kv.create_or_update_secret("open/a", secret={"v": 1})
    reader = hvac.Client(url=ADDRESSES["vault"], token=client.auth.token.create(policies=["readers"], ttl="1h")["auth"]["client_token"])
    check("a policy grants", reader.secrets.kv.v2.read_secret_version("open/a", raise_on_deleted_version=True)["data"]["data"] == {"v": 1})
    check("and denies the rest", refused(Forbidden, lambda: reader.secrets.kv.v2.read_secret_version("app/db", raise_on_deleted_version=True)))
    check("a wrong token is refused", refused(Forbidden, lambda: hvac.Client(url=ADDRESSES["vault"], token="hvs.wrong").lookup_token()))


def logins():
    client = hvac.Client(url=ADDRESSES["vault"], token=ADDRESSES["root_token"])
    new = lambda token=None: hvac.Client(url=ADDRESSES["vault"], token=token)

    client.sys.enable_auth_method("userpass", description="people")
    check("a login method is listed", client.sys.list_auth_methods()["data"]["userpass/"]["description"] == "people")
    client.sys.tune_auth_method("userpass", default_lease_ttl=1800, max_lease_ttl=3600, listing_visibility="unauth")
    check("and tuned", client.sys.read_auth_method_tuning("userpass")["data"]["max_lease_ttl"] == 3600)
    client.auth.userpass.create_or_update_user("ann", password="pw", policies=["readers"])
    check("users are listed", client.auth.userpass.list_user()["data"]["keys"] == ["ann"])
    ann = new()
    answer = ann.auth.userpass.login("ann", "pw")["auth"]
    check("a password logs in", ann.is_authenticated() and answer["lease_duration"] == 1800 and "readers" in answer["policies"])
    check("and reads what its policy grants", ann.secrets.kv.v2.read_secret_version("open/a", raise_on_deleted_version=True)["data"]["data"] == {"v": 1})
    check("it is renewed", ann.auth.token.renew_self(increment="10m")["auth"]["lease_duration"] == 600)
    check("a wrong password does not", refused(hvac.exceptions.InvalidRequest, lambda: new().auth.userpass.login("ann", "no")))
    client.auth.userpass.update_password_on_user("ann", "pw2")
    check("a new password holds", new().auth.userpass.login("ann", "pw2")["auth"]["entity_id"] == answer["entity_id"])

    entity = client.secrets.identity.read_entity(answer["entity_id"])["data"]
    check("a login has an entity", entity["aliases"][0]["name"] == "ann")
    client.secrets.identity.create_or_update_group("team", policies=["writers"], member_entity_ids=[entity["id"]])
    client.sys.create_or_update_policy("writers", 'path "secret/data/{{identity.entity.name}}/*" { capabilities = ["create", "update"] }')
    ann.secrets.kv.v2.create_or_update_secret(f"{entity['name']}/own", secret={"a": "b"})
    check("groups and templates grant", refused(Forbidden, lambda: ann.secrets.kv.v2.create_or_update_secret("other/own", secret={"a": "b"})))
    check("the group is found by name", client.secrets.identity.read_group_by_name("team")["data"]["member_entity_ids"] == [entity["id"]])

    client.sys.enable_auth_method("approle")
    role = client.auth.approle
    role.create_or_update_approle("web", token_policies=["readers"], token_ttl="20m", secret_id_num_uses=2)
    role_id = role.read_role_id("web")["data"]["role_id"]
    secret = role.generate_secret_id("web", metadata={"host": "a"})["data"]
    web = new()
    answer = web.auth.approle.login(role_id, secret["secret_id"])["auth"]
    check("a secret id logs in", answer["metadata"] == {"host": "a", "role_name": "web"} and web.is_authenticated())
    check("its uses are counted", role.read_secret_id("web", secret["secret_id"])["data"]["secret_id_num_uses"] == 1)
    role.destroy_secret_id("web", secret["secret_id"])
    check("destroyed, it does not", refused(hvac.exceptions.InvalidRequest, lambda: new().auth.approle.login(role_id, secret["secret_id"])))
    wrapped = role.generate_secret_id("web", wrap_ttl="60s")["wrap_info"]
    check("a wrapped answer says where it is from", wrapped["creation_path"] == "auth/approle/role/web/secret-id")
    unwrapped = new(wrapped["token"]).sys.unwrap()["data"]
    check("unwrapped, it logs in", new().auth.approle.login(role_id, unwrapped["secret_id"])["auth"]["client_token"].startswith("hvs."))
    check("and is seen once", refused(hvac.exceptions.InvalidRequest, lambda: new(wrapped["token"]).sys.unwrap()))

    token = client.auth.token
    token.create_or_update_role("jobs", allowed_policies=["readers"], token_period="30m", orphan=True)
    made = token.create(role_name="jobs")["auth"]
    check("a token role makes tokens", made["orphan"] and made["policies"] == ["default", "readers"] and made["lease_duration"] == 1800)
    batch = token.create(policies=["readers"], ttl="1h", type="batch")["auth"]
    check("a batch token reads", new(batch["client_token"]).secrets.kv.v2.read_secret_version("open/a", raise_on_deleted_version=True)["data"]["data"] == {"v": 1})
    check("what a token may do is told", client.sys.get_capabilities(["secret/data/open/a"], token=batch["client_token"])["data"]["secret/data/open/a"] == ["read"])

    client.sys.enable_secrets_engine("kv", path="old", options={"version": "2"})
    client.secrets.kv.v2.create_or_update_secret("k", secret={"a": "b"}, mount_point="old")
    client.sys.move_backend("old", "new")
    check("a mount moves with what is in it", client.secrets.kv.v2.read_secret_version("k", mount_point="new", raise_on_deleted_version=True)["data"]["data"] == {"a": "b"})
    client.sys.disable_auth_method("userpass")
    check("a method that is disabled takes its tokens along", not ann.is_authenticated())


vault()
logins()
print(f"{PASSED} passed, 0 failed")
