//! `/v1/discovery-chain`: what the config entries make of the calls to a service, as this agent follows them.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderValue, Method, StatusCode};
use libmesh::{bundle::ConfigBundle, model::ServiceName};
use serde_json::{Map, Value, json};

use super::{
    Inner, Refused, bad_request, blocking::Blocking, decode::Fields, decode::go_format, handler,
    server_error, stored,
};
use crate::{
    http::{Call, Reply, Routes, json as json_reply},
    routing::{self, Chain, Resolved, WHOLE},
};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    let path = "/v1/discovery-chain/:service";
    Routes::new().get(path, handler(inner, compiled)).on(
        Method::POST,
        path,
        handler(inner, compiled),
    )
}

async fn compiled(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let service = ServiceName::parse(call.params.get("service"))
        .map_err(|error| bad_request(format!("Invalid service: {error}")))?;
    if !call.body().is_empty() {
        let mut fields = Fields::parse(call.body())?;
        fields.unsupported(&[
            "OverrideConnectTimeout",
            "OverrideProtocol",
            "OverrideMeshGateway",
        ])?;
        fields.finish()?;
    }
    let Some(bundles) = &inner.bundles else {
        return Err(server_error("there is no configuration of the mesh here"));
    };
    if let Some(wait) = blocking.wait_beyond(bundles.index()) {
        let mut changes = bundles.watch();
        let newer = async {
            let _ = changes.wait_for(|_| bundles.index() > blocking.index).await;
            0
        };
        blocking.until(&call, wait, newer).await;
    }
    let bundle = bundles.current();
    let table = bundle
        .as_ref()
        .map(|bundle| routing::of_bundle(bundle))
        .unwrap_or_default();
    let chain = table.chain(service.as_str()).map_err(server_error)?;
    let shown = show(&inner, &chain, &service, bundle.as_deref());
    let mut reply = json_reply(StatusCode::OK, &json!({"Chain": shown}));
    stored::decorate(&mut reply, bundles.index());
    let leader = HeaderValue::from_static("leader");
    let headers = reply.headers_mut();
    headers.insert("x-consul-effective-consistency", leader);
    Ok(reply)
}

fn show(
    inner: &Inner,
    chain: &Chain,
    service: &ServiceName,
    bundle: Option<&ConfigBundle>,
) -> Value {
    let datacenter = inner.about.datacenter.as_str();
    let domain = bundle.map_or("", |bundle| bundle.trust_domain.as_str());
    let (mut nodes, mut targets) = (Map::new(), Map::new());
    for branch in &chain.branches {
        let target = &branch.target;
        for one in std::iter::once(target).chain(&target.failover) {
            let id = one.id(datacenter);
            let shown = show_target(one, &id, datacenter, domain);
            targets.insert(id, shown);
        }
        let node = resolver(target, datacenter);
        nodes.insert(node_name(target, datacenter), node);
    }
    let start = match chain.is_split {
        false => chain
            .branches
            .first()
            .map(|branch| node_name(&branch.target, datacenter))
            .unwrap_or_default(),
        true => {
            let name = format!("{}.default.default", chain.service);
            let splits = chain.branches.iter().map(|branch| {
                let weight = f64::from(branch.weight) * 100.0 / f64::from(WHOLE);
                json!({"Weight": weight, "NextNode": node_name(&branch.target, datacenter)})
            });
            let splits: Vec<_> = splits.collect();
            let start = format!("splitter:{name}");
            let node = json!({"Type": "splitter", "Name": name, "Splits": splits});
            nodes.insert(start.clone(), node);
            start
        }
    };
    let given: BTreeMap<_, _> = bundle.map(ConfigBundle::virtual_ips).unwrap_or_default();
    let virtual_ips: Vec<_> = given.get(service).into_iter().collect();
    json!({
        "ServiceName": chain.service,
        "Namespace": "default",
        "Partition": "default",
        "Datacenter": datacenter,
        "Protocol": chain.protocol,
        "StartNode": start,
        "Nodes": nodes,
        "Targets": targets,
        "AutoVirtualIPs": virtual_ips,
        "ManualVirtualIPs": [],
    })
}

fn node_name(target: &Resolved, datacenter: &str) -> String {
    format!("resolver:{}", target.id(datacenter))
}

fn resolver(target: &Resolved, datacenter: &str) -> Value {
    let mut resolver = json!({
        "ConnectTimeout": go_format(target.connect_timeout),
        "Target": target.id(datacenter),
    });
    if target.is_default {
        resolver["Default"] = json!(true);
    }
    if !target.failover.is_empty() {
        let others = target.failover.iter().map(|other| other.id(datacenter));
        resolver["Failover"] = json!({"Targets": others.collect::<Vec<_>>()});
    }
    json!({"Type": "resolver", "Name": target.id(datacenter), "Resolver": resolver})
}

fn show_target(target: &Resolved, id: &str, datacenter: &str, domain: &str) -> Value {
    let mut subset = Map::new();
    if !target.subset.filter.is_empty() {
        subset.insert("Filter".to_owned(), json!(target.subset.filter));
    }
    if target.subset.only_passing {
        subset.insert("OnlyPassing".to_owned(), json!(true));
    }
    let dot = if target.subset_name.is_empty() {
        ""
    } else {
        "."
    };
    let name = format!(
        "{}{dot}{}.default.{datacenter}.internal.{domain}",
        target.subset_name, target.service
    );
    let mut shown = json!({
        "ConnectTimeout": go_format(target.connect_timeout),
        "ID": id,
        "Service": target.service,
        "Namespace": "default",
        "Partition": "default",
        "Datacenter": datacenter,
        "MeshGateway": {},
        "Subset": subset,
        "TransparentProxy": {},
        "SNI": name,
        "Name": name,
    });
    if !target.subset_name.is_empty() {
        shown["ServiceSubset"] = json!(target.subset_name);
    }
    shown
}
