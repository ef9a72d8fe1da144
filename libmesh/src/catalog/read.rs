//! Reading other nodes' records as they come: is it good, and what is it indexed by.
//!
//! Nothing that a record holds can stop the catalog. Whatever is wrong with it makes it *poison*; so does a panic of
//! the code that looks at it (a bug of ours, or of a [`Verifier`](super::Verifier)): it is caught at the single record,
//! which touched nothing yet, as looking at a record changes nothing.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::index::Index;
use super::record::{self, Key, Meaning, NODE};
use super::replica::{Note, Reader};
use super::services::Services;
use super::verify::VerifiedNode;

/// Kinds of notes.
pub(super) mod kind {
    /// What the node says of itself.
    pub(in super::super) const NODE: u8 = 1;
    /// An instance; the link is its service's number.
    pub(in super::super) const INSTANCE: u8 = 2;
    /// A check that is called after its instance; the link is the hash of what it speaks for.
    pub(in super::super) const DERIVED_CHECK: u8 = 3;
    /// Any other check; the link is the same.
    pub(in super::super) const CHECK: u8 = 4;
    /// Shown to nobody.
    pub(in super::super) const POISON: u8 = 5;
}

/// Keys are ordered by a keyed hash: who chooses ids cannot choose where they collide.
#[derive(Debug, Default)]
pub(super) struct Hashes(RandomState);

impl Hashes {
    pub(super) fn of(&self, head: &[u8], last: &[u8]) -> u32 {
        let mut hasher = self.0.build_hasher();
        hasher.write(head);
        hasher.write(last);
        hasher.finish() as u32
    }

    pub(super) fn of_key(&self, key: Key<'_>) -> u32 {
        self.of(&key.encode(), &[])
    }

    /// Of what a check speaks for.
    pub(super) fn of_owner(&self, instance: Option<&str>) -> u32 {
        match instance {
            Some(id) => self.of_key(Key::Instance(id)),
            None => self.of(NODE, &[]),
        }
    }
}

/// What a batch of changes to one node's log touched.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The node's own record.
    pub(super) node: bool,
    /// Services and the hashes of their instances' keys, before and after.
    pub(super) instances: Vec<(u32, u32)>,
    /// Hashes of what checks speak for, before and after.
    pub(super) owners: Vec<u32>,
    /// Hashes of what a check speaks for and of its own key, where the one does not follow from the other.
    pub(super) checks: Vec<(u32, u32)>,
    /// How many more records are poison now.
    pub(super) poison: isize,
    /// Why the first of them is.
    pub(super) reason: Option<String>,
}

/// Reads one node's records.
pub(super) struct Reading<'a> {
    pub(super) node: &'a VerifiedNode,
    pub(super) longest: usize,
    pub(super) hashes: &'a Hashes,
    pub(super) index: &'a Index,
    pub(super) services: &'a mut Services,
    pub(super) found: Found,
}

impl Reading<'_> {
    fn forget(&mut self, hash: u32, was: Note) {
        match was.kind {
            kind::NODE => self.found.node = true,
            kind::INSTANCE => self.found.instances.push((was.link, hash)),
            kind::DERIVED_CHECK => self.found.owners.push(was.link),
            kind::CHECK => {
                self.found.owners.push(was.link);
                self.found.checks.push((was.link, hash));
            }
            kind::POISON => self.found.poison -= 1,
            _ => {}
        }
    }

    fn learn(&mut self, hash: u32, meaning: &Meaning<'_>) -> Result<Note, String> {
        let note = |kind, link| Note { kind, link };
        Ok(match *meaning {
            Meaning::Other => Note::default(),
            Meaning::Node => {
                self.found.node = true;
                note(kind::NODE, 0)
            }
            Meaning::Instance(service) => {
                let service = self.services.number(self.index, service);
                let service = service.ok_or("the service has no name")?;
                self.found.instances.push((service, hash));
                note(kind::INSTANCE, service)
            }
            Meaning::DerivedCheck(instance) => {
                let owner = self.hashes.of_owner(Some(instance));
                self.found.owners.push(owner);
                note(kind::DERIVED_CHECK, owner)
            }
            Meaning::Check(of) => {
                let owner = self.hashes.of_owner(of);
                self.found.owners.push(owner);
                self.found.checks.push((owner, hash));
                note(kind::CHECK, owner)
            }
        })
    }
}

impl Reader for Reading<'_> {
    fn hash(&self, (head, last): (&[u8], &[u8])) -> u32 {
        self.hashes.of(head, last)
    }

    fn changed(&mut self, hash: u32, key: &[u8], record: Option<&[u8]>, was: Note) -> Note {
        self.forget(hash, was);
        let Some(record) = record else {
            return Note::default();
        };
        let meaning = meaning(self.node, self.longest, key, record);
        match meaning.and_then(|meaning| self.learn(hash, &meaning)) {
            Ok(note) => note,
            Err(reason) => {
                self.found.poison += 1;
                self.found.reason.get_or_insert(reason);
                Note {
                    kind: kind::POISON,
                    link: 0,
                }
            }
        }
    }
}

/// What a record is indexed by.
///
/// # Errors
/// Why it is poison.
pub(super) fn meaning<'a>(
    node: &VerifiedNode,
    longest: usize,
    key: &'a [u8],
    record: &'a [u8],
) -> Result<Meaning<'a>, String> {
    if record.len() > longest {
        return Err(format!(
            "it has {} bytes, the most is {longest}",
            record.len()
        ));
    }
    guarded(|| Key::decode(key).and_then(|key| record::check(Some(node), key, record)))
}

/// Runs what looks at a record; a panic is an error like others.
pub(super) fn guarded<T>(look: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Looking changes nothing, so nothing is left half done.
    catch_unwind(AssertUnwindSafe(look))
        .unwrap_or_else(|_| Err("the code that reads it failed (please report this)".to_owned()))
}
