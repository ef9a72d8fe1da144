//! Which nodes have instances of which service: eight bytes for each, and no record.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::index::{Index, ServiceCell};
use crate::model::ServiceName;

/// Services have numbers, so that a slot of a log can name one.
#[derive(Default)]
pub(super) struct Services {
    numbers: HashMap<ServiceName, u32>,
    entries: Vec<Option<Service>>,
    free: Vec<u32>,
}

pub(super) struct Service {
    pub(super) name: ServiceName,
    pub(super) cell: Arc<ServiceCell>,
    /// Number of a node, hash of an instance's key in its log; of nodes that are hidden, too.
    pub(super) members: BTreeSet<(u32, u32)>,
}

impl Services {
    /// The number of a service; a new one when there is none.
    pub(super) fn number(&mut self, index: &Index, name: &str) -> Option<u32> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        let name = ServiceName::parse(name).ok()?;
        let service = Some(Service {
            cell: index.service_or_new(&name),
            name: name.clone(),
            members: BTreeSet::new(),
        });
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = service;
                number
            }
            None => {
                self.entries.push(service);
                (self.entries.len() - 1) as u32
            }
        };
        self.numbers.insert(name, number);
        Some(number)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<(u32, &Service)> {
        let number = *self.numbers.get(name)?;
        Some((number, self.get(number)?))
    }

    pub(super) fn get(&self, number: u32) -> Option<&Service> {
        self.entries.get(number as usize)?.as_ref()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Service> {
        self.entries.iter().flatten()
    }

    /// Says whether a node has instances of the service under this hash.
    pub(super) fn set(&mut self, service: u32, node: u32, hash: u32, has: bool) {
        if let Some(Some(service)) = self.entries.get_mut(service as usize) {
            match has {
                true => service.members.insert((node, hash)),
                false => service.members.remove(&(node, hash)),
            };
        }
    }

    /// Takes the number from a service that nobody has any more.
    pub(super) fn collect(&mut self, number: u32) {
        let Some(entry) = self.entries.get_mut(number as usize) else {
            return;
        };
        if entry
            .as_ref()
            .is_some_and(|service| service.members.is_empty())
            && let Some(gone) = entry.take()
        {
            self.numbers.remove(&gone.name);
            self.free.push(number);
        }
    }
}
