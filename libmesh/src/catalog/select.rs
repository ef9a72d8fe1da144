//! Which instances of a service to use, and in which order.
//!
//! One rule for the balancer, DNS, the Consul interface and [`Mesh::resolve`](crate::mesh::Mesh::resolve); what they
//! want differs, what the words mean does not.

use std::sync::Arc;

use rand::seq::SliceRandom;

use super::view::{InstanceView, ServiceView};
use crate::model::{Health, Liveness, NodeRecord};

/// How healthy an instance must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fitness {
    /// Every check passes, membership's among them (as Consul's `passing`).
    Passing,
    /// Passing or warning.
    #[default]
    Usable,
    /// However it is.
    Any,
}

/// What to do with an instance whose node does not answer lately, or that is shown only because so much went down at
/// once (see [`InstanceView::is_doubtful`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Doubtful {
    /// Used when there is nothing better.
    #[default]
    LastResort,
    /// As good as any other.
    Include,
    /// Left out.
    Exclude,
}

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// In the same zone.
    Zone,
    /// In the same region.
    Region,
    /// Elsewhere.
    Far,
}

/// A choice among the instances of a service. The default: usable ones in the order of nodes and ids, doubtful ones
/// only when there is nothing better.
///
/// ```
/// # use libmesh::catalog::{Doubtful, Select};
/// let select = Select::passing().subset("v2").doubtful(Doubtful::Exclude).limit(3);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "a choice does nothing before it is made on a service"]
pub struct Select {
    fitness: Fitness,
    doubtful: Doubtful,
    subsets: Vec<Arc<str>>,
    near: Option<Arc<NodeRecord>>,
    limit: Option<usize>,
}

impl Select {
    /// Passing and warning instances.
    pub fn usable() -> Self {
        Self::default()
    }

    /// Only those of which every check passes.
    pub fn passing() -> Self {
        Self {
            fitness: Fitness::Passing,
            ..Self::default()
        }
    }

    /// All that are shown, critical ones too.
    pub fn any() -> Self {
        Self {
            fitness: Fitness::Any,
            doubtful: Doubtful::Include,
            ..Self::default()
        }
    }

    /// What to do with doubtful ones.
    pub fn doubtful(self, doubtful: Doubtful) -> Self {
        Self { doubtful, ..self }
    }

    /// Only those with this tag or version; letter case does not count. Of several subsets an instance must be in each.
    pub fn subset(mut self, subset: &str) -> Self {
        self.subsets.push(subset.into());
        self
    }

    /// The nearest to `node` first: its zone, its region, the rest. Never leaves any out.
    pub fn near(self, node: Arc<NodeRecord>) -> Self {
        Self {
            near: Some(node),
            ..self
        }
    }

    /// At most so many: the nearest, and of those that are equally near a random choice.
    pub fn limit(self, limit: usize) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// Whether an instance fits, whatever others there are. [`Doubtful::LastResort`] lets doubtful ones pass here.
    pub fn admits(&self, instance: &InstanceView) -> bool {
        let fit = match self.fitness {
            Fitness::Passing => {
                instance.health == Health::Passing && instance.node.liveness.is_present()
            }
            Fitness::Usable => instance.health.is_usable(),
            Fitness::Any => true,
        };
        fit && (self.doubtful != Doubtful::Exclude || !instance.is_doubtful())
            && self
                .subsets
                .iter()
                .all(|subset| instance.instance.matches(subset))
    }
}

impl ServiceView {
    /// The instances that `select` chooses, in its order. Copies nothing.
    pub fn select(&self, select: &Select) -> Vec<&Arc<InstanceView>> {
        let fits = |instance: &&Arc<InstanceView>| select.admits(instance);
        let mut chosen: Vec<_> = self.instances.iter().filter(fits).collect();
        if select.doubtful == Doubtful::LastResort
            && chosen.iter().any(|instance| !instance.is_doubtful())
        {
            chosen.retain(|instance| !instance.is_doubtful());
        }
        let too_many = select.limit.filter(|limit| chosen.len() > *limit);
        if too_many.is_some() {
            chosen.shuffle(&mut rand::rng());
        }
        if let Some(node) = &select.near {
            chosen.sort_by_key(|instance| instance.distance(node));
        }
        if let Some(limit) = too_many {
            chosen.truncate(limit);
        }
        chosen
    }
}

impl InstanceView {
    /// Whether it may well be gone: its node is suspect, or down with so many others that the network is the more
    /// likely cause.
    pub fn is_doubtful(&self) -> bool {
        self.stale || self.node.liveness != Liveness::Alive
    }

    /// Its share of the traffic at its health; `None` while it is unfit for any.
    pub fn weight(&self) -> Option<u16> {
        match self.health {
            Health::Passing => Some(self.instance.weights.passing),
            Health::Warning => Some(self.instance.weights.warning),
            Health::Critical | Health::Maintenance => None,
        }
    }

    /// Where it stands: the zone of its own locality, else that of its node.
    pub fn zone(&self) -> &str {
        let own = self.instance.locality.as_ref();
        own.filter(|own| !own.zone.is_empty())
            .map_or(self.node.record.zone(), |own| &own.zone)
    }

    /// The region of its own locality, else that of its node.
    pub fn region(&self) -> &str {
        let own = self.instance.locality.as_ref();
        own.filter(|own| !own.region.is_empty())
            .map_or(self.node.record.region(), |own| &own.region)
    }

    /// How far it is from a node.
    pub fn distance(&self, from: &NodeRecord) -> Distance {
        if self.zone() == from.zone() {
            Distance::Zone
        } else if self.region() == from.region() {
            Distance::Region
        } else {
            Distance::Far
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::catalog::testing::TestNode;
    use crate::model::{CheckRecord, Instance, Locality, Weights};

    /// A catalog that sees one instance of `web` on each of these nodes (name, zone, region).
    fn catalog(places: &[(&str, &str, &str)]) -> (Vec<TestNode>, Catalog) {
        let mut nodes = Vec::new();
        for (at, (name, zone, region)) in places.iter().enumerate() {
            let mut node = TestNode::new(name, [10, 0, 0, at as u8 + 1].into());
            node.record.locality = Locality::new(region, zone).unwrap();
            node.publish().unwrap();
            let mut instance = Instance::new("web".parse().unwrap(), 80).unwrap();
            instance.version = Some(format!("v{at}").into());
            instance.tags = vec!["all".into()];
            node.local().put_service(instance).unwrap();
            nodes.push(node);
        }
        let catalog = nodes[0].catalog.clone();
        for node in &nodes[1..] {
            node.send_to(&catalog);
        }
        (nodes, catalog)
    }

    fn check(node: &TestNode, catalog: &Catalog, status: Health) {
        let check = CheckRecord {
            id: "check".into(),
            name: "check".into(),
            service: Some("web".parse().unwrap()),
            status,
            kind: "ttl".into(),
            notes: "".into(),
            create_stamp: 0,
            modify_stamp: 0,
        };
        node.local().put_check(check).unwrap();
        if node.id() != catalog.own() {
            node.send_to(catalog);
        }
    }

    fn names(catalog: &Catalog, select: &Select) -> Vec<String> {
        let view = catalog.service("web").unwrap();
        let chosen = view.select(select);
        chosen
            .iter()
            .map(|it| it.node.record.name.to_string())
            .collect()
    }

    #[test]
    fn health_decides_who_is_fit() {
        let (nodes, catalog) = catalog(&[("a", "z", "r"), ("b", "z", "r"), ("c", "z", "r")]);
        check(&nodes[1], &catalog, Health::Warning);
        check(&nodes[2], &catalog, Health::Critical);
        assert_eq!(names(&catalog, &Select::passing()), ["a"]);
        assert_eq!(names(&catalog, &Select::usable()), ["a", "b"]);
        assert_eq!(names(&catalog, &Select::any()), ["a", "b", "c"]);
    }

    #[test]
    fn doubtful_ones_are_the_last_resort_unless_told_otherwise() {
        let (nodes, catalog) = catalog(&[("a", "z", "r"), ("b", "z", "r")]);
        catalog.set_liveness(nodes[1].id(), Liveness::Suspect);
        assert_eq!(names(&catalog, &Select::usable()), ["a"]);
        assert_eq!(
            names(&catalog, &Select::usable().doubtful(Doubtful::Include)),
            ["a", "b"]
        );
        check(&nodes[0], &catalog, Health::Critical);
        assert_eq!(
            names(&catalog, &Select::usable()),
            ["b"],
            "better than nobody"
        );
        let none: [&str; 0] = [];
        assert_eq!(
            names(&catalog, &Select::usable().doubtful(Doubtful::Exclude)),
            none
        );
    }

    #[test]
    fn subsets_are_tags_or_versions() {
        let (_nodes, catalog) = catalog(&[("a", "z", "r"), ("b", "z", "r")]);
        assert_eq!(names(&catalog, &Select::usable().subset("V1")), ["b"]);
        assert_eq!(
            names(&catalog, &Select::usable().subset("all").subset("v0")),
            ["a"]
        );
        assert!(names(&catalog, &Select::usable().subset("v0").subset("v1")).is_empty());
    }

    #[test]
    fn the_nearest_come_first_and_stay_under_a_limit() {
        let places = [
            ("a", "z9", "r9"),
            ("b", "z2", "r1"),
            ("c", "z1", "r1"),
            ("d", "z1", "r1"),
        ];
        let (nodes, catalog) = catalog(&places);
        let from = Arc::new(nodes[2].record.clone());
        let near = Select::usable().near(from);
        assert_eq!(names(&catalog, &near), ["c", "d", "b", "a"]);
        for _ in 0..20 {
            let mut two = names(&catalog, &near.clone().limit(2));
            two.sort();
            assert_eq!(two, ["c", "d"]);
            assert_eq!(names(&catalog, &near.clone().limit(3))[2], "b");
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            seen.extend(names(&catalog, &Select::usable().limit(1)));
        }
        assert_eq!(seen.len(), 4, "without a place all are equally near");
    }

    #[test]
    fn weights_follow_health() {
        let (nodes, catalog) = catalog(&[("a", "z", "r")]);
        let mut instance = Instance::new("web".parse().unwrap(), 80).unwrap();
        instance.weights = Weights {
            passing: 10,
            warning: 2,
        };
        nodes[0].local().put_service(instance).unwrap();
        let weight = || catalog.service("web").unwrap().instances[0].weight();
        assert_eq!(weight(), Some(10));
        check(&nodes[0], &catalog, Health::Warning);
        assert_eq!(weight(), Some(2));
        check(&nodes[0], &catalog, Health::Critical);
        assert_eq!(weight(), None);
    }
}
