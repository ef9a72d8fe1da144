//! `/v1/health/`: reads.

use std::sync::Arc;

use libmesh::{
    catalog::{InstanceView, NodeView, Select},
    model::{Health, Liveness},
};

use super::{
    Inner, Refused,
    answers::{Question, State},
    bad_request,
    blocking::Blocking,
    catalog::{self, Way, has_meta, service_name},
    coordinates::sort_near,
    decode::go_bool,
    filter::{self, Filter},
    reading, render,
};
use crate::http::{Call, Reply, Routes};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .get("/v1/health/service/*name", reading(inner, service))
        .get("/v1/health/connect/*name", reading(inner, connect))
        .get("/v1/health/ingress/*name", reading(inner, catalog::nothing))
        .get("/v1/health/checks/*name", reading(inner, checks))
        .get("/v1/health/state/*state", reading(inner, state))
        .get("/v1/health/node/:name", reading(inner, node))
}

async fn service(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    reached(inner, call, Way::Plain).await
}

async fn connect(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    reached(inner, call, Way::Connect).await
}

async fn reached(inner: Arc<Inner>, call: Call, way: Way) -> Result<Reply, Refused> {
    let name = service_name(&call)?;
    let proxies = way.proxies(name);
    let passing = match call.query.get("passing") {
        None => false,
        Some("") => true,
        Some(given) => go_bool(given).ok_or_else(|| bad_request("Invalid value for ?passing"))?,
    };
    let filter = Filter::of(&call, filter::HEALTH_ENTRY)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking
        .service(&inner, &call, name, proxies.as_deref())
        .await;
    let state = State::of_service(&inner, name, proxies.as_deref()).with_outputs(&inner);
    let question = Question::of(&call, state);
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.health_kept(index, body));
    }
    let views = catalog::services_of(&inner, name, proxies.as_deref());
    let question = question.about(&inner, &views);
    let select = match passing {
        true => Select::passing(),
        false => Select::any(),
    };
    let mut chosen: Vec<_> = way.chosen(&call, name, &views, &select).collect();
    sort_near(&inner, &call, &mut chosen, |view| view.node.record.id);
    let list: Vec<_> = chosen
        .into_iter()
        .map(|instance| render::health_entry(&inner, instance, way))
        .collect();
    let reply = blocking.health_reply(index, &filter.keep(list));
    Ok(inner.answers.keep(question, reply))
}

async fn checks(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let name = service_name(&call)?;
    let filter = Filter::of(&call, filter::CHECK)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.service(&inner, &call, name, None).await;
    let state = State::of_service(&inner, name, None).with_outputs(&inner);
    let question = Question::of(&call, state);
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let views = catalog::services_of(&inner, name, None);
    let question = question.about(&inner, &views);
    let mut chosen: Vec<_> = views
        .iter()
        .flat_map(|view| &view.instances)
        .filter(|instance| has_meta(&call, &instance.node))
        .collect();
    sort_near(&inner, &call, &mut chosen, |view| view.node.record.id);
    let list: Vec<_> = chosen
        .into_iter()
        .flat_map(|instance| own_checks(&inner, instance))
        .collect();
    let reply = blocking.reply(index, &filter.keep(list));
    Ok(inner.answers.keep(question, reply))
}

fn own_checks<'a>(
    inner: &'a Inner,
    view: &'a InstanceView,
) -> impl Iterator<Item = render::Check<'a>> {
    let own = view.checks.iter().filter(|check| check.service.is_some());
    own.map(|check| render::check(inner, &view.node, check, Some(&view.instance)))
}

async fn state(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let wanted = call.params.get("state");
    if wanted.is_empty() {
        return Err(bad_request("Missing check state"));
    }
    let filter = Filter::of(&call, filter::CHECK)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let question = Question::of(&call, State::of_all(&inner).with_outputs(&inner));
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let fits = |health: Health| wanted == "any" || wanted == render::status(health);
    let mut nodes = inner.catalog.nodes();
    sort_near(&inner, &call, &mut nodes, |node| node.record.id);
    let nodes: Vec<_> = nodes.iter().filter(|node| has_meta(&call, node)).collect();
    let instances: Vec<_> = nodes
        .iter()
        .flat_map(|node| inner.catalog.instances_on(&node.record.id))
        .collect();
    let of_nodes = nodes.iter().flat_map(|node| {
        let membership = render::member_check(node).filter(|_| fits(membership(node)));
        let own = node.checks.iter().filter(|check| fits(check.status));
        let own = own.map(|check| render::check(&inner, node, check, None));
        membership.into_iter().chain(own)
    });
    let of_instances = instances.iter().flat_map(|view| {
        let own = view.checks.iter();
        own.filter(|check| check.service.is_some() && fits(check.status))
            .map(|check| render::check(&inner, &view.node, check, Some(&view.instance)))
    });
    let list: Vec<_> = of_nodes.chain(of_instances).collect();
    let reply = blocking.reply(index, &filter.keep(list));
    Ok(inner.answers.keep(question, reply))
}

fn membership(node: &NodeView) -> Health {
    match node.liveness {
        Liveness::Alive | Liveness::Suspect => Health::Passing,
        Liveness::Down | Liveness::Left => Health::Critical,
    }
}

async fn node(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::CHECK)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let question = Question::of(&call, State::of_all(&inner).with_outputs(&inner));
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let Some(node) = catalog::one(&inner, &call) else {
        return Ok(blocking.reply(index, &[(); 0]));
    };
    let instances = inner.catalog.instances_on(&node.record.id);
    let own = node
        .checks
        .iter()
        .map(|check| render::check(&inner, &node, check, None));
    let list: Vec<_> = render::member_check(&node)
        .into_iter()
        .chain(own)
        .chain(instances.iter().flat_map(|view| own_checks(&inner, view)))
        .collect();
    let reply = blocking.reply(index, &filter.keep(list));
    Ok(inner.answers.keep(question, reply))
}
