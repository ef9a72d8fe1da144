// What the npm package consul must be able to do against `mesh dev`, unchanged.
"use strict";
const fs = require("node:fs");
const assert = require("node:assert");
const required = require("consul");
const Consul = required.default ?? required;

const addresses = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const where = new URL(addresses.http);
const consul = new Consul({ host: where.hostname, port: where.port });
let passed = 0;
function check(what, held) {
  assert(held, `FAILED: ${what}`);
  passed += 1;
  console.log(`ok: ${what}`);
}
async function until(what, holds) {
  const end = Date.now() + 30000;
  while (!(await holds())) {
    assert(Date.now() < end, `FAILED: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  check(what, true);
}
async function refused(call, status) {
  try {
    await call();
  } catch (error) {
    return error.statusCode === status;
  }
  return false;
}

async function services() {
  check("a leader and its peers", (await consul.status.leader()).includes(":") && (await consul.status.peers()).length === 1);
  const self = await consul.agent.self();
  check("the agent is its only member", (await consul.agent.members())[0].Name === self.Config.NodeName);
  check("a datacenter", (await consul.catalog.datacenters())[0] === self.Config.Datacenter);

  await consul.agent.service.register({
    name: "node-web", id: "node-web-1", address: "127.0.0.1", port: 3000, tags: ["a", "b"], meta: { team: "x" },
    check: { ttl: "30s", status: "critical", notes: "alive" },
  });
  const watch = consul.watch({ method: consul.health.service, options: { service: "node-web", passing: true, wait: "20s" } });
  const seen = [];
  const indexes = [];
  let failed;
  watch.on("change", (data, answer) => {
    seen.push(data.length);
    indexes.push(BigInt(answer.headers["x-consul-index"]));
  });
  watch.on("error", (error) => (failed = error));
  await until("a watch begins", () => seen.length === 1);
  check("with nothing that passes", seen[0] === 0);
  await consul.agent.check.pass("service:node-web-1");
  await until("it sees a service pass", () => seen.at(-1) === 1);
  await consul.agent.check.fail({ id: "service:node-web-1", note: "broken" });
  await until("and fail", () => seen.at(-1) === 0);
  await consul.agent.check.warn("service:node-web-1");
  const checks = await consul.health.checks("node-web");
  check("a warning", checks[0].Status === "warning" && checks[0].ServiceID === "node-web-1");
  check("by state", (await consul.health.state("warning")).some((one) => one.CheckID === "service:node-web-1"));
  check("of the node", (await consul.health.node(self.Config.NodeName)).some((one) => one.CheckID === "serfHealth"));
  watch.end();
  check("without an error, its index growing", failed === undefined && indexes.every((index, at) => at === 0 || index > indexes[at - 1]));

  check("the agent's services", (await consul.agent.service.list())["node-web-1"].Meta.team === "x");
  check("the catalog's", (await consul.catalog.service.list())["node-web"].length === 2);
  check("its instances", (await consul.catalog.service.nodes("node-web"))[0].ServicePort === 3000);
  check("nodes", (await consul.catalog.node.list()).length === 1);
  check("services of a node", (await consul.catalog.node.services(self.Config.NodeName)).Services["node-web-1"].Port === 3000);
  await consul.agent.service.maintenance({ id: "node-web-1", enable: true, reason: "new disk" });
  check("under maintenance", (await consul.health.service({ service: "node-web", passing: true })).length === 0);
  await consul.agent.service.maintenance({ id: "node-web-1", enable: false });
  await consul.agent.check.register({ name: "disk", ttl: "30s" });
  check("a check of the node", (await consul.agent.check.list()).disk.Status === "critical");
  await consul.agent.check.deregister("disk");
  await consul.agent.service.deregister("node-web-1");
  check("deregistered", (await consul.health.service("node-web")).length === 0);
  check("once", await refused(() => consul.agent.service.deregister("node-web-1"), 404));

  await consul.catalog.register({ node: "scale", address: "192.0.2.9", service: { service: "weigh", id: "w1", port: 7 } });
  await until("a node without an agent", async () => (await consul.catalog.service.nodes("weigh"))[0]?.ServicePort === 7);
  await consul.catalog.deregister("scale");
  await until("which goes again", async () => (await consul.catalog.service.nodes("weigh")).length === 0);
}

async function keys() {
  check("a key", await consul.kv.set("node/a", "1"));
  const pair = await consul.kv.get("node/a");
  check("is read", pair.Value === "1" && pair.Key === "node/a");
  check("no such key", (await consul.kv.get("node/none")) === undefined);
  check("check-and-set", await consul.kv.set({ key: "node/a", value: "2", cas: String(pair.ModifyIndex) }));
  // This client answers a failed one with nothing.
  check("refuses a stale writer", !(await consul.kv.set({ key: "node/a", value: "3", cas: String(pair.ModifyIndex) })));
  check("flags", (await consul.kv.set({ key: "node/b/c", value: "", flags: 7 })) && (await consul.kv.get("node/b/c")).Flags === 7);
  check("a buffer", (await consul.kv.get({ key: "node/a", buffer: true })).Value.equals(Buffer.from("2")));
  check("a tree", (await consul.kv.get({ key: "node/", recurse: true })).length === 2);
  check("keys up to a separator", (await consul.kv.keys({ key: "node/", separator: "/" })).join() === "node/a,node/b/");

  const watch = consul.watch({ method: consul.kv.get, options: { key: "node/a", wait: "20s" } });
  const values = [];
  watch.on("change", (found) => values.push(found?.Value));
  await until("a watch of a key", () => values.at(-1) === "2");
  await consul.kv.set("node/a", "4");
  await until("sees it change", () => values.at(-1) === "4");
  await consul.kv.del("node/a");
  await until("and go", () => values.at(-1) === undefined);
  watch.end();

  const session = await consul.session.create({ name: "node", ttl: "10s", lockdelay: "1ms" });
  const other = await consul.session.create({ name: "other", behavior: "delete" });
  check("a session takes a key", await consul.kv.set({ key: "node/lock", value: "x", acquire: session.ID }));
  check("and another does not", !(await consul.kv.set({ key: "node/lock", value: "y", acquire: other.ID })));
  check("it is renewed", (await consul.session.renew(session.ID))[0].ID === session.ID);
  check("found", (await consul.session.info(session.ID)).Name === "node");
  check("listed", (await consul.session.list()).some((one) => one.ID === other.ID));
  await consul.session.destroy(session.ID);
  check("it ends and lets go", (await consul.kv.get("node/lock")).Session === undefined);
  await consul.session.destroy(other.ID);
  const value = Buffer.from("t").toString("base64");
  const answer = await consul.transaction.create([{ KV: { Verb: "set", Key: "node/t", Value: value } }]);
  check("a transaction", answer.Results[0].KV.Key === "node/t");
  await consul.kv.del({ key: "node/", recurse: true });
  check("a tree is deleted", (await consul.kv.get({ key: "node/", recurse: true })) === undefined);
}

async function queries() {
  await consul.agent.service.register({ name: "node-geo", port: 5 });
  const { ID: query } = await consul.query.create({ name: "node-near", service: { service: "node-geo", onlypassing: true } });
  check("a prepared query", (await consul.query.execute("node-near")).Nodes[0].Service.Port === 5);
  check("read", (await consul.query.get(query)).Name === "node-near");
  await consul.query.update({ query, name: "node-far", service: { service: "node-geo" } });
  check("changed", (await consul.query.execute("node-far")).Nodes.length === 1);
  check("listed", (await consul.query.list()).some((one) => one.ID === query));
  await consul.query.destroy(query);
  check("deleted", await refused(() => consul.query.execute("node-far"), 404));
  await consul.agent.service.deregister("node-geo");
}

async function events() {
  const fired = await consul.event.fire("node-deploy", "v7");
  await until("an event is heard of", async () => (await consul.event.list("node-deploy")).some((one) => one.ID === fired.ID));
}

services()
  .then(keys)
  .then(queries)
  .then(events)
  .then(() => console.log(`${passed} passed, 0 failed`))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
