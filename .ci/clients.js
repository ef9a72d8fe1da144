// What node-vault must be able to do against `mesh dev`, unchanged.
"use strict";
const fs = require("node:fs");
const assert = require("node:assert");
const vault = require("node-vault");

const addresses = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
let passed = 0;
function check(what, held) {
  assert(held, `FAILED: ${what}`);
  passed += 1;
  console.log(`ok: ${what}`);
}
const connect = (token) => vault({ apiVersion: "v1", endpoint: addresses.vault, token });
async function refused(call, status) {
  try {
    await call();
  } catch (error) {
    return error.response.statusCode === status;
  }
  return false;
}

async function main() {
  const root = connect(addresses.root_token);
  check("health", (await root.health()).initialized === true);
  check("status", (await root.status()).sealed === false);
  check("initialised", (await root.initialized()).initialized === true);
  await root.write("secret/data/node", { data: { k: "v" } });
  check("a secret is read", (await root.read("secret/data/node")).data.data.k === "v");
  check("listed", (await root.list("secret/metadata")).data.keys.includes("node"));
  await root.addPolicy({ name: "node", rules: 'path "secret/data/node" { capabilities = ["read"] }' });
  check("policies are listed at top level", (await root.policies()).policies.includes("node"));
  check("a policy's text", (await root.getPolicy({ name: "node" })).rules.includes("secret/data/node"));
  check("mounts at top level", (await root.mounts())["secret/"].type === "kv");

  await root.enableAuth({ mount_point: "node-role", type: "approle" });
  const role = "auth/node-role/role/job";
  await root.write(role, { token_policies: "node", token_ttl: "10m" });
  const { role_id } = (await root.read(`${role}/role-id`)).data;
  const { secret_id } = (await root.write(`${role}/secret-id`, {})).data;
  const job = connect();
  const login = await job.approleLogin({ mount_point: "node-role", role_id, secret_id });
  check("AppRole logs in", login.auth.lease_duration === 600);
  check("and reads", (await job.read("secret/data/node")).data.data.k === "v");
  check("and nothing else", await refused(() => job.read("secret/data/other"), 403));
  check("it looks itself up", (await job.tokenLookupSelf()).data.display_name === "node-role");
  check("it is renewed", (await job.tokenRenewSelf({ increment: 300 })).auth.lease_duration === 300);

  // This client goes on with the token that it made.
  const made = await connect(addresses.root_token).tokenCreate({ policies: ["node"], ttl: "1h" });
  check("a token is made", made.auth.policies.includes("node"));
  await root.tokenRevoke({ token: made.auth.client_token });
  check("and revoked", await refused(() => connect(made.auth.client_token).read("secret/data/node"), 403));
  const wrapped = await root.write("sys/wrapping/wrap", { a: "b" }, { headers: { "X-Vault-Wrap-TTL": "60" } });
  const unwrapped = await connect(wrapped.wrap_info.token).unwrap();
  check("wrapped and unwrapped", unwrapped.data.a === "b");
  await root.remount({ from: "auth/node-role", to: "auth/moved" });
  check("moved", "moved/" in (await root.auths()));
  check("which ends what was given before", await refused(() => job.tokenLookupSelf(), 403));
  await root.disableAuth({ mount_point: "moved" });
  await root.delete("secret/metadata/node");
  console.log(`${passed} passed, 0 failed`);
}

main().catch((error) => {
  console.error(error.response ? error.response.body : error);
  process.exit(1);
});
