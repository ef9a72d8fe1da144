//! Ten hosts as network namespaces, with real agents. What the bars say in seconds is measured by `mesh-bench netns`;
//! here only where it ends counts.

use std::collections::BTreeSet;

use http::Method;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::node::{Agent, Mesh};

#[path = "../../../bench/src/netns/lab.rs"]
mod lab;

use lab::Lab;

const HOSTS: usize = 10;

fn name(host: usize) -> String {
    format!("h{host}")
}

/// Whether exactly `wanted` are shown alive.
fn shows(wanted: &BTreeSet<String>) -> impl Fn(&Value) -> bool {
    move |members: &Value| {
        let members = members.as_array().unwrap();
        let alive: BTreeSet<_> = members
            .iter()
            .filter(|member| member["Status"] == 1)
            .map(|member| member["Name"].as_str().unwrap().to_owned())
            .collect();
        alive == *wanted
    }
}

async fn all_show(agents: &[Agent], wanted: &BTreeSet<String>) {
    for agent in agents {
        agent.until("/v1/agent/members", shows(wanted)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_hosts_survive_a_partition_loss_deafness_and_a_pause() {
    let lab = match Lab::new(HOSTS) {
        Ok(lab) => lab,
        Err(why) => {
            println!("!!! SKIPPED: network namespaces need root and iproute2: {why}");
            return;
        }
    };
    let mesh = Mesh::new();
    let seeds = format!("join = {{ seeds = [\"{}:8301\"] }}\n", lab.address(0));
    let mut agents = Vec::new();
    for host in 0..lab.len() {
        let agent = mesh.agent_on(&lab.on(host), &name(host), lab.address(host), &seeds);
        let body = r#"{"Name": "web", "Port": 80}"#;
        agent.put("/v1/agent/service/register", body).await;
        agents.push(agent);
    }
    let all: BTreeSet<_> = (0..HOSTS).map(name).collect();
    all_show(&agents, &all).await;

    // Half against half: each sees itself and answers.
    lab.split(|host| host >= HOSTS / 2).unwrap();
    let (left, right) = agents.split_at(HOSTS / 2);
    for (half, hosts) in [(left, 0..HOSTS / 2), (right, HOSTS / 2..HOSTS)] {
        let half_names: BTreeSet<_> = hosts.map(name).collect();
        all_show(half, &half_names).await;
        for agent in half {
            let (status, body) = agent.ask(Method::GET, "/v1/health/service/web", "").await;
            assert_eq!(status, 200);
            assert!(half_names.iter().all(|name| body.contains(name)), "{body}");
        }
    }
    lab.heal().unwrap();
    all_show(&agents, &all).await;

    // Under loss and deafness a death is still found, and nobody else dies with it.
    match lab.lose(20) {
        Ok(()) => lab.deafen(1, 2).unwrap(),
        Err(why) => println!("!!! SKIPPED: loss and deafness need nftables: {why}"),
    }
    agents.pop().unwrap().signal(Signal::SIGKILL);
    let rest: BTreeSet<_> = (0..HOSTS - 1).map(name).collect();
    all_show(&agents, &rest).await;
    lab.hear_all().unwrap();

    // Who stood still is with the others again.
    agents[4].signal(Signal::SIGSTOP);
    agents.remove(7).signal(Signal::SIGKILL);
    let rest: BTreeSet<_> = (0..HOSTS - 1).filter(|host| *host != 7).map(name).collect();
    let awake = agents[0].until("/v1/agent/members", |members| !alive(members, 7));
    awake.await;
    agents[4].signal(Signal::SIGCONT);
    all_show(&agents, &rest).await;
}

fn alive(members: &Value, host: usize) -> bool {
    let members = members.as_array().unwrap();
    members
        .iter()
        .any(|member| member["Name"] == name(host).as_str() && member["Status"] == 1)
}
