//! The steps of the demo, in order. Each asks the running mesh and fails when the answer is not what
//! it promises.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{
    calls::{Calls, eventually, get},
    cluster::{Cluster, Ports, target},
    screen::{command, found, output, seconds, step},
};

const SECRET: &str = "secret/web/db";
const DENIED: i32 = 77;

/// What a sidecar's admin listener says of itself.
#[derive(Deserialize)]
struct SidecarIdentity {
    spiffe_id: String,
    serial: String,
    not_after: String,
}

#[derive(Deserialize)]
struct Connections {
    recent: Vec<Connection>,
}

#[derive(Deserialize)]
struct Connection {
    local: String,
    peer: Option<String>,
}

/// Walks through all steps and then sets `held`; without `once` it stays until it is dropped.
pub(super) async fn walk(
    cluster: &mut Cluster,
    once: bool,
    held: &AtomicBool,
) -> anyhow::Result<()> {
    let started = Instant::now();
    println!(
        "Mesh: three nodes, a sealed store, two versions of a service and a consumer, all on this machine."
    );

    let run = run(cluster).await;
    if let Err(error) = run {
        // A process that ended early is the better explanation.
        cluster.check_running()?;
        return Err(error);
    }
    held.store(true, Ordering::Relaxed);
    println!("\nEvery step held ({}).", seconds(Instant::now() - started));
    if once {
        return Ok(());
    }
    println!("\nEverything stays up until Ctrl-C:");
    for (name, ports) in nodes(cluster) {
        println!(
            "  {name}: Consul API http://{}   DNS {}   gossip {}",
            ports.http, ports.dns, ports.gossip
        );
    }
    println!("  Vault API: http://{}", cluster.node1.vault);
    println!("  web through the mesh: curl http://{}/", cluster.upstream);
    println!(
        "  logs, configuration, tokens: {}",
        cluster.path("").display()
    );
    std::future::pending().await
}

async fn run(cluster: &mut Cluster) -> anyhow::Result<()> {
    let root = members(cluster).await?;
    services(cluster).await?;
    dns(cluster).await?;
    call(cluster, &root).await?;
    intention(cluster, &root).await?;
    secret(cluster, &root).await?;
    renewal(cluster).await?;
    service_killed(cluster).await?;
    agent_killed(cluster).await?;
    server_restarted(cluster, &root).await?;
    sealed(cluster, &root).await?;
    ledger(cluster, &root).await
}

fn nodes(cluster: &Cluster) -> [(&'static str, Ports); 3] {
    [
        ("node1", cluster.node1),
        ("node2", cluster.node2),
        ("node3", cluster.node3),
    ]
}

async fn members(cluster: &mut Cluster) -> anyhow::Result<String> {
    step(
        1,
        "Three nodes, one of them the server with the sealed store",
        "The server was initialised and unsealed; the agents joined with single-use tokens and got their certificates.",
    );
    let root = cluster.start_server().await?;
    for (name, publish) in [("node2", "web,shop"), ("node3", "web")] {
        command(&format!(
            "mesh join-token create --publish {publish} --uses 1 --ttl 10m"
        ));
        cluster.start_agent(name, publish, &root).await?;
    }
    let http = format!("http://{}", cluster.node3.http);
    command("mesh members");
    let table = eventually("three nodes alive", Duration::from_secs(10), || async {
        let table = cluster
            .mesh_ok(&["members"], &[("MESH_HTTP_ADDR", &http)], "")
            .await?;
        Ok((table.matches("alive").count() == 3).then_some(table))
    })
    .await?;
    output(&table);
    found("node3 knows all three");
    Ok(root)
}

async fn services(cluster: &mut Cluster) -> anyhow::Result<()> {
    step(
        2,
        "Two versions of `web` and a consumer `shop`, each behind a sidecar",
        "A sidecar makes its key locally, gets a short-lived certificate through its agent and registers its service.",
    );
    cluster.start_services()?;
    let http = format!("http://{}", cluster.node1.http);
    command("mesh services");
    let table = eventually(
        "both versions of web passing",
        Duration::from_secs(10),
        || async {
            let table = cluster
                .mesh_ok(&["services"], &[("MESH_HTTP_ADDR", &http)], "")
                .await?;
            let addresses = web_addresses(cluster.node1, "web").await?;
            Ok((addresses == 2).then_some(table))
        },
    )
    .await?;
    output(&table);
    found("what was registered on node2 and node3 is known on node1");
    Ok(())
}

/// The number of instances that the DNS server of a node names for `<name>.service.mesh`.
async fn web_addresses(node: Ports, name: &str) -> anyhow::Result<usize> {
    let answer = ::dns::client::query(
        node.dns,
        &format!("{name}.service.mesh"),
        "SRV",
        Duration::from_secs(1),
    )
    .await?;
    Ok(answer.lines.len())
}

async fn dns(cluster: &Cluster) -> anyhow::Result<()> {
    step(
        3,
        "DNS, for programs that nobody may change",
        "Every agent answers for the whole mesh, over a real UDP query.",
    );
    let server = cluster.node3.dns;
    for (name, kind) in [
        ("web.service.mesh", "A"),
        ("web.service.mesh", "SRV"),
        ("v2.web.service.mesh", "SRV"),
        ("node1.node.mesh", "A"),
    ] {
        command(&format!(
            "dig @{} -p {} +noall +answer {name} {kind}",
            server.ip(),
            server.port()
        ));
        let answer = ::dns::client::query(server, name, kind, Duration::from_secs(1)).await?;
        ensure!(
            !answer.lines.is_empty(),
            "{name} {kind}: {} and no record",
            answer.code
        );
        output(&answer.lines.join("\n"));
    }
    found("A and SRV of both versions, of one version by its tag, and of a node");
    Ok(())
}

async fn admin<T: for<'de> Deserialize<'de>>(
    addr: std::net::SocketAddr,
    path: &str,
) -> anyhow::Result<T> {
    let text = get(&target(addr), path).await?;
    serde_json::from_str(&text).with_context(|| format!("{path} of the sidecar on {addr}"))
}

async fn call(cluster: &Cluster, root: &str) -> anyhow::Result<()> {
    step(
        4,
        "A call through the sidecars",
        "shop speaks plain HTTP to its own loopback; between the sidecars it is TLS 1.3 with a certificate at both ends.",
    );
    let http = format!("http://{}", cluster.node2.http);
    let env = [("MESH_HTTP_ADDR", http.as_str()), ("MESH_TOKEN", root)];
    command("mesh intention allow shop web");
    cluster
        .mesh_ok(&["intention", "allow", "shop", "web"], &env, "")
        .await?;
    command(&format!("curl http://{}/", cluster.upstream));
    let upstream = target(cluster.upstream);
    let mut versions = std::collections::BTreeSet::new();
    eventually(
        "an answer of both versions",
        Duration::from_secs(10),
        || {
            let answer = get(&upstream, "/");
            async { answer.await.map(Some) }
        },
    )
    .await?;
    // One that refused (its node hears of the intention a moment later) or was slow at its first call is tried again
    // when that is forgotten.
    let since = Instant::now();
    while versions.len() < 2 && Instant::now() - since < Duration::from_secs(60) {
        versions.insert(get(&upstream, "/").await?);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(
        versions.len() == 2,
        "a minute of calls reached only {versions:?} of two versions"
    );
    output(&versions.iter().map(String::as_str).collect::<String>());
    let connections: Connections = admin(cluster.shop_admin, "/connections").await?;
    let connection = connections
        .recent
        .iter()
        .find(|connection| connection.peer.is_some())
        .context("the sidecar of shop names no peer")?;
    let peer = connection.peer.as_deref().unwrap_or_default();
    ensure!(
        connection.local.ends_with("/svc/shop") && peer.ends_with("/svc/web"),
        "unexpected identities: {} → {peer}",
        connection.local
    );
    found(&format!("caller  {}", connection.local));
    found(&format!("callee  {peer}"));
    Ok(())
}

async fn intention(cluster: &Cluster, root: &str) -> anyhow::Result<()> {
    step(
        5,
        "The same call, refused once the intention is gone",
        "Calls are denied by default; a change reaches both ends at once and closes what is open.",
    );
    let http = format!("http://{}", cluster.node2.http);
    let env = [("MESH_HTTP_ADDR", http.as_str()), ("MESH_TOKEN", root)];
    let upstream = target(cluster.upstream);
    command("mesh intention remove shop web");
    cluster
        .mesh_ok(&["intention", "remove", "shop", "web"], &env, "")
        .await?;
    let began = Instant::now();
    eventually("the refusal", Duration::from_secs(5), || async {
        Ok(get(&upstream, "/").await.err().map(|_| ()))
    })
    .await?;
    found(&format!(
        "refused {} later",
        seconds(Instant::now() - began)
    ));
    command("mesh intention allow shop web");
    cluster
        .mesh_ok(&["intention", "allow", "shop", "web"], &env, "")
        .await?;
    eventually(
        "the call after allowing it again",
        Duration::from_secs(5),
        || async { Ok(get(&upstream, "/").await.ok()) },
    )
    .await?;
    found("allowed again, and it works");
    Ok(())
}

async fn secret(cluster: &Cluster, root: &str) -> anyhow::Result<()> {
    step(
        6,
        "A secret, read by who the caller is",
        "web needs no token: its identity is the login. shop has an identity too, but no right to this secret.",
    );
    let vault = format!("http://{}", cluster.node1.vault);
    let operator = [("MESH_VAULT_ADDR", vault.as_str()), ("MESH_TOKEN", root)];
    command(&format!(
        "mesh secret put {SECRET} password=-   < password.txt"
    ));
    cluster
        .mesh_ok(
            &["secret", "put", SECRET, "password=-"],
            &operator,
            "correct horse battery staple",
        )
        .await?;
    command(&format!("mesh secret grant web {SECRET}"));
    cluster
        .mesh_ok(&["secret", "grant", "web", SECRET], &operator, "")
        .await?;

    let read = ["secret", "get", SECRET, "--field", "password"];
    let socket = cluster.socket("node2");
    let web = cluster.attach_token("node2", "web");
    let shop = cluster.attach_token("node2", "shop");
    command(&format!(
        "mesh secret get {SECRET} --field password     # as web"
    ));
    let value = cluster
        .mesh_ok(
            &read,
            &[("MESH_SOCKET", &socket), ("MESH_ATTACH_TOKEN_FILE", &web)],
            "",
        )
        .await?;
    ensure!(
        value.trim() == "correct horse battery staple",
        "web read something else than was written"
    );
    found("web reads it (the value is not shown here)");
    command(&format!(
        "mesh secret get {SECRET} --field password     # as shop"
    ));
    let refused = cluster
        .mesh(
            &read,
            &[("MESH_SOCKET", &socket), ("MESH_ATTACH_TOKEN_FILE", &shop)],
            "",
        )
        .await?;
    ensure!(
        refused.code == DENIED,
        "shop ended with exit code {} instead of {DENIED}",
        refused.code
    );
    output(&refused.stderr);
    found("shop is refused (exit code 77)");
    Ok(())
}

async fn renewal(cluster: &Cluster) -> anyhow::Result<()> {
    step(
        7,
        "20-second certificates, renewed under running calls",
        "Half-way through its life a certificate is replaced; no connection notices.",
    );
    let calls = Calls::start(target(cluster.upstream));
    let before: SidecarIdentity = admin(cluster.web_v2_admin, "/identity").await?;
    command(&format!("curl http://{}/identity", cluster.web_v2_admin));
    output(&format!(
        "{}\nserial {} until {}",
        before.spiffe_id, before.serial, before.not_after
    ));
    let after = eventually("the renewal", Duration::from_secs(25), || async {
        let now: SidecarIdentity = admin(cluster.web_v2_admin, "/identity").await?;
        Ok((now.serial != before.serial).then_some(now))
    })
    .await?;
    output(&format!(
        "serial {} until {}",
        after.serial, after.not_after
    ));
    let made = calls.finish()?;
    found(&format!(
        "a new serial; {made} calls in the meantime, none failed"
    ));
    Ok(())
}

async fn service_killed(cluster: &mut Cluster) -> anyhow::Result<()> {
    step(
        8,
        "A service process killed with SIGKILL",
        "Its health check fails, and it leaves DNS on every node.",
    );
    let pid = cluster.pid("web-v2").context("web-v2 does not run")?;
    command(&format!("kill -9 {pid}      # version 2 of web"));
    cluster.stop("web-v2", Signal::SIGKILL).await?;
    let began = Instant::now();
    let node = cluster.node1;
    eventually("web v2 gone from DNS", Duration::from_secs(10), || async {
        Ok((web_addresses(node, "web").await? == 1).then_some(()))
    })
    .await?;
    found(&format!(
        "gone from DNS after {}",
        seconds(Instant::now() - began)
    ));
    cluster.start_app("v2")?;
    let began = Instant::now();
    eventually("web v2 back in DNS", Duration::from_secs(10), || async {
        Ok((web_addresses(node, "web").await? == 2).then_some(()))
    })
    .await?;
    found(&format!(
        "started again: back in DNS after {}",
        seconds(Instant::now() - began)
    ));
    Ok(())
}

async fn agent_killed(cluster: &mut Cluster) -> anyhow::Result<()> {
    step(
        9,
        "A whole agent killed with SIGKILL",
        "Nobody says goodbye: the others find out by gossip and hide everything that ran there.",
    );
    let pid = cluster.pid("node3").context("node3 does not run")?;
    command(&format!("kill -9 {pid}      # the agent of node3"));
    cluster.stop("node3", Signal::SIGKILL).await?;
    let began = Instant::now();
    let node = cluster.node1;
    eventually("node3 gone from DNS", Duration::from_secs(15), || async {
        Ok((web_addresses(node, "web").await? == 1).then_some(()))
    })
    .await?;
    let gone = Instant::now() - began;
    let http = format!("http://{}", node.http);
    command("mesh members");
    let table = eventually("node3 failed", Duration::from_secs(15), || async {
        let table = cluster
            .mesh_ok(&["members"], &[("MESH_HTTP_ADDR", &http)], "")
            .await?;
        Ok(table.contains("failed").then_some(table))
    })
    .await?;
    output(&table);
    found(&format!(
        "its services left DNS after {}, membership says failed after {}",
        seconds(gone),
        seconds(Instant::now() - began)
    ));
    Ok(())
}

async fn server_restarted(cluster: &mut Cluster, root: &str) -> anyhow::Result<()> {
    step(
        10,
        "The server killed and started again",
        "Nothing that was acknowledged is lost, and calls never pass through the server.",
    );
    let calls = Calls::start(target(cluster.upstream));
    let pid = cluster.pid("node1").context("node1 does not run")?;
    command(&format!(
        "kill -9 {pid} && mesh server --config {} &",
        cluster.path("node1.toml").display()
    ));
    cluster.stop("node1", Signal::SIGKILL).await?;
    let began = Instant::now();
    cluster.start_node("node1", "server")?;
    let vault = format!("http://{}", cluster.node1.vault);
    let operator = [("MESH_VAULT_ADDR", vault.as_str()), ("MESH_TOKEN", root)];
    let value = eventually(
        "the secret readable again",
        Duration::from_secs(15),
        || async {
            let read = cluster
                .mesh(
                    &["secret", "get", SECRET, "--field", "password"],
                    &operator,
                    "",
                )
                .await?;
            Ok((read.code == 0).then_some(read.stdout))
        },
    )
    .await?;
    ensure!(
        value.trim() == "correct horse battery staple",
        "the secret changed over the restart"
    );
    let back = Instant::now() - began;
    let made = calls.finish()?;
    found(&format!(
        "unsealed and answering after {}; {made} calls in the meantime, none failed",
        seconds(back)
    ));
    Ok(())
}

async fn sealed(cluster: &Cluster, root: &str) -> anyhow::Result<()> {
    step(
        11,
        "The store sealed",
        "Keys leave memory; secrets and new certificates stop. Discovery and calls go on.",
    );
    let vault = format!("http://{}", cluster.node1.vault);
    let operator = [("MESH_VAULT_ADDR", vault.as_str()), ("MESH_TOKEN", root)];
    command("mesh operator seal");
    cluster
        .mesh_ok(&["operator", "seal"], &operator, "")
        .await?;
    let status = cluster.mesh(&["operator", "status"], &operator, "").await?;
    ensure!(
        status.code == 2,
        "`mesh operator status` ended with exit code {} instead of 2 (sealed)",
        status.code
    );
    output(&status.stdout);
    let calls = Calls::start(target(cluster.upstream));
    let refused = cluster
        .mesh(&["secret", "get", SECRET], &operator, "")
        .await?;
    ensure!(refused.code != 0, "a sealed store gave a secret away");
    ensure!(
        web_addresses(cluster.node2, "web").await? == 1,
        "DNS stopped answering"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let made = calls.finish()?;
    let mut until = Vec::new();
    for addr in [cluster.shop_admin, cluster.web_v1_admin] {
        let identity: SidecarIdentity = admin(addr, "/identity").await?;
        until.push(identity.not_after);
    }
    let first = until.iter().min().context("no certificate")?;
    found(&format!(
        "secrets refused; DNS answers; {made} calls, none failed"
    ));
    found(&format!(
        "calls can go on like this until {first}, when the first certificate ends"
    ));
    command("mesh operator unseal --static");
    cluster
        .mesh_ok(&["operator", "unseal", "--static"], &operator, "")
        .await?;
    Ok(())
}

async fn ledger(cluster: &Cluster, root: &str) -> anyhow::Result<()> {
    step(
        12,
        "The ledger: who changed what, and when",
        "Every durable change is one entry of a hash chain; the chain is verified from the first to the last.",
    );
    let vault = format!("http://{}", cluster.node1.vault);
    let operator = [("MESH_VAULT_ADDR", vault.as_str()), ("MESH_TOKEN", root)];
    command("mesh operator verify");
    let verified = cluster
        .mesh_ok(&["operator", "verify"], &operator, "")
        .await?;
    output(&verified);
    command("mesh operator history --last 10");
    let history = cluster
        .mesh_ok(&["operator", "history", "--last", "10"], &operator, "")
        .await?;
    output(&history);
    if !history.contains("secret/") && !history.contains("intention") {
        bail!("the history names none of the changes that this demo made");
    }
    found("verified, and the last ten entries listed");
    Ok(())
}
