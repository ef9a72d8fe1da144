//! The interface in front of a catalog of one node, as clients see it.

use std::{net::Ipv4Addr, time::Duration};

use http::Response;
use libmesh::{
    identity::SpiffeId,
    model::{Liveness, NodeRecord, Roles},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::*;
use crate::{
    forward::Api,
    http::{Remote, query::encode},
};

mod answers;
mod blocking;
mod checks;
mod requests;
mod services;

/// Says what it was asked.
struct Echo;

impl Forward for Echo {
    fn forward(
        &self,
        _: Api,
        request: Request<Bytes>,
        _: Option<SpiffeId>,
    ) -> BoxFuture<Response<Bytes>> {
        let asked = format!("{} {}", request.method(), request.uri());
        Box::pin(async move { Response::new(Bytes::from(asked)) })
    }
}

pub fn api() -> ConsulApi {
    api_with(|_| {})
}

fn api_with(change: impl FnOnce(&mut About)) -> ConsulApi {
    let id = NodeId([7; 16]);
    let node = NodeName::parse("n1").unwrap();
    let catalog = Catalog::new(id);
    let record = NodeRecord {
        roles: Roles { server: true },
        version: "0.1.0".into(),
        ..NodeRecord::new(id, node.clone(), Ipv4Addr::new(127, 0, 0, 9).into(), 8301)
    };
    catalog.local().put_node(record).unwrap();
    catalog.set_liveness(id, Liveness::Alive);
    let mut about = About {
        node,
        id,
        datacenter: Datacenter::default(),
        server: true,
        advertise: ([127, 0, 0, 9], 8301).into(),
        dns: None,
        default_allow: true,
        exec_checks: false,
        acls: false,
        like_consul: false,
    };
    change(&mut about);
    let checks = Scheduler::new(catalog.local());
    ConsulApi::new(Parts {
        about,
        catalog,
        checks,
        bundles: None,
        authority: None,
        forward: Arc::new(Echo),
        queries: Queries::default(),
    })
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    fn index(&self) -> u64 {
        self.headers["x-consul-index"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }
}

async fn ask(api: &ConsulApi, method: &str, path: &str, body: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Bytes::copy_from_slice(body.as_bytes()))
        .unwrap();
    let conn = ConnInfo::new(Remote::Tcp(([127, 0, 0, 1], 9).into()));
    let reply = api.clone().handle(request, Arc::new(conn)).await;
    let (head, body) = reply.into_parts();
    let body = body.into_bytes().unwrap();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8(body.to_vec()).unwrap(),
    }
}

async fn get(api: &ConsulApi, path: &str) -> Answer {
    ask(api, "GET", path, "").await
}

async fn register(api: &ConsulApi, body: Value) {
    let path = "/v1/agent/service/register";
    let answer = ask(api, "PUT", path, &body.to_string()).await;
    assert_eq!((answer.status, &*answer.text), (200, ""));
}
