//! What a node says of itself beside who it is, and what membership passes on of it.
//!
//! Why here and not in the catalog alone: a node is probed, chosen and refused before its catalog has arrived. So the
//! record of a member may be followed by extensions, which travel with the news of it (announces, updates that say
//! alive, exchanges of full state) and cost nothing while there is no news. A reader of the first version of the wire
//! skips them, and what a reader does not know or understand it skips as well.
//!
//! ```text
//! extension   tag u8 ‖ len u8 ‖ value
//!   1         restarting: milliseconds u16 for which nothing bad shall be shown
//!   2         meta: lowest protocol u8 ‖ highest u8 ‖ roles u8 (1 server) ‖ zone (len u8 ‖ text) ‖ version (len u8 ‖ text) ‖ …
//!   3         pool: text
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use foca::{Incarnation, Member, Message, State};

use super::digest;
use super::wire::{self, Identity, Record};
use crate::model::{NodeId, Roles};

/// The versions of membership's protocol that this crate speaks. 1 is the first; 2 brought the extensions, and both
/// understand each other.
pub const PROTOCOLS: (u8, u8) = (1, 2);
/// The longest announced restart.
pub const MAX_RESTART: Duration = Duration::from_secs(15);
/// Longest zone, version and pool name on the wire, in bytes; what is longer is not sent.
const MAX_ZONE: usize = 64;
const MAX_VERSION: usize = 32;
const MAX_POOL: usize = 64;

const RESTARTING: u8 = 1;
const META: u8 = 2;
const POOL: u8 = 3;

const SERVER: u8 = 1;

/// What a node says of itself. A claim, never a right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeMeta {
    /// What it says it does.
    pub roles: Roles,
    /// Its failure domain; empty if it does not say. At most 64 bytes.
    pub zone: Arc<str>,
    /// The version of the program; at most 32 bytes.
    pub version: Arc<str>,
    /// The lowest and the highest version of membership's protocol that it speaks.
    pub protocols: (u8, u8),
}

impl Default for NodeMeta {
    fn default() -> Self {
        Self {
            roles: Roles::default(),
            zone: "".into(),
            version: "".into(),
            protocols: PROTOCOLS,
        }
    }
}

/// The extensions of a record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Extra {
    pub(crate) restarting: Option<Duration>,
    pub(crate) meta: Option<Arc<NodeMeta>>,
    pub(crate) pool: Option<Arc<str>>,
}

fn put(tag: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.push(u8::try_from(value.len()).expect("values are shorter than 128 bytes"));
    out.extend_from_slice(value);
}

fn put_text(text: &str, longest: usize, out: &mut Vec<u8>) {
    let text = if text.len() > longest { "" } else { text };
    out.push(u8::try_from(text.len()).expect("at most 64"));
    out.extend_from_slice(text.as_bytes());
}

fn text(bytes: &[u8], longest: usize) -> Option<Arc<str>> {
    let text = std::str::from_utf8(bytes).ok()?;
    (text.len() <= longest).then(|| text.into())
}

fn take_text(input: &mut &[u8], longest: usize) -> Option<Arc<str>> {
    let len = wire::take_u8(input).ok()?;
    text(wire::take(input, usize::from(len)).ok()?, longest)
}

impl Extra {
    /// The wire form: at most 180 bytes, empty when there is nothing to say.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(left) = self.restarting {
            let millis = u16::try_from(left.min(MAX_RESTART).as_millis()).unwrap_or(u16::MAX);
            put(RESTARTING, &millis.to_be_bytes(), &mut out);
        }
        if let Some(meta) = &self.meta {
            put(META, &encode_meta(meta), &mut out);
        }
        if let Some(pool) = self.pool.as_ref().filter(|pool| pool.len() <= MAX_POOL) {
            put(POOL, pool.as_bytes(), &mut out);
        }
        out
    }

    /// Reads what it can: what is cut off or not understood is skipped, for a newer version may have written it.
    pub(crate) fn decode(mut input: &[u8]) -> Self {
        let mut extra = Self::default();
        while let [tag, len, rest @ ..] = input {
            let Some((value, rest)) = rest.split_at_checked(usize::from(*len)) else {
                break;
            };
            input = rest;
            match (*tag, value) {
                (RESTARTING, [high, low, ..]) => {
                    let left = Duration::from_millis(u64::from(u16::from_be_bytes([*high, *low])));
                    extra.restarting = Some(left.min(MAX_RESTART));
                }
                (META, _) => extra.meta = meta(value).map(Arc::new),
                (POOL, _) => extra.pool = text(value, MAX_POOL),
                _ => {}
            }
        }
        extra
    }
}

fn meta(mut value: &[u8]) -> Option<NodeMeta> {
    let input = &mut value;
    let protocols = (wire::take_u8(input).ok()?, wire::take_u8(input).ok()?);
    let roles = Roles {
        server: wire::take_u8(input).ok()? & SERVER != 0,
    };
    Some(NodeMeta {
        roles,
        protocols,
        zone: take_text(input, MAX_ZONE)?,
        version: take_text(input, MAX_VERSION)?,
    })
}

fn encode_meta(meta: &NodeMeta) -> Vec<u8> {
    let roles = if meta.roles.server { SERVER } else { 0 };
    let mut value = vec![meta.protocols.0, meta.protocols.1, roles];
    put_text(&meta.zone, MAX_ZONE, &mut value);
    put_text(&meta.version, MAX_VERSION, &mut value);
    value
}

fn mark(meta: &NodeMeta) -> u64 {
    digest::mark(&encode_meta(meta))
}

/// What is known of members beside foca's list; the codec writes it behind their records. Bounded by that list.
pub(crate) struct Notes {
    own: NodeId,
    pool: Arc<str>,
    /// The core's clock.
    pub(crate) now: Duration,
    known: BTreeMap<NodeId, Note>,
    /// What members say of themselves, by its mark: most of a pool say the same.
    said: BTreeMap<u64, Arc<NodeMeta>>,
    /// Whose meta changed since it was last asked.
    changed: BTreeSet<NodeId>,
}

struct Note {
    generation: u64,
    meta: Option<Arc<NodeMeta>>,
    /// Of `meta`, for digests.
    mark: u64,
    /// The incarnation that announced it, and until when it lasts.
    restarting: Option<(Incarnation, Duration)>,
}

impl Notes {
    /// A node without `meta` says nothing of itself.
    pub(crate) fn new(own: NodeId, pool: Arc<str>, meta: Option<NodeMeta>) -> Self {
        let note = Note {
            generation: 0,
            mark: meta.as_ref().map_or(0, mark),
            meta: meta.map(Arc::new),
            restarting: None,
        };
        Self {
            own,
            pool,
            now: Duration::ZERO,
            known: BTreeMap::from([(own, note)]),
            said: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Whose meta changed since this was last called.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn pool(&self) -> &Arc<str> {
        &self.pool
    }

    pub(crate) fn meta(&self, node: NodeId) -> Option<Arc<NodeMeta>> {
        self.known.get(&node)?.meta.clone()
    }

    /// This node is about to restart.
    pub(crate) fn restart_until(&mut self, until: Duration) {
        if let Some(own) = self.known.get_mut(&self.own) {
            own.restarting = Some((0, until));
        }
    }

    /// Takes note of what a record brought; until when the node restarts, if that is new.
    pub(crate) fn learn(&mut self, record: &Record) -> Option<Duration> {
        let (id, extra) = (record.member.id(), &record.extra);
        let nothing = extra.meta.is_none() && extra.restarting.is_none();
        if nothing || id.node == self.own || record.member.state() != State::Alive {
            return None;
        }
        let fresh = || Note {
            generation: id.generation,
            meta: None,
            mark: 0,
            restarting: None,
        };
        let note = self.known.entry(id.node).or_insert_with(fresh);
        if note.generation > id.generation {
            return None;
        }
        if note.generation < id.generation {
            *note = fresh();
        }
        if let Some(meta) = &extra.meta
            && note.meta.as_ref() != Some(meta)
        {
            let before = (note.mark, note.meta.take());
            note.mark = mark(meta);
            let same = self.said.get(&note.mark).filter(|said| *said == meta);
            note.meta = Some(Arc::clone(same.unwrap_or(meta)));
            if same.is_none() {
                self.said.insert(note.mark, Arc::clone(meta));
            }
            // One that says something else with every packet must not fill this.
            if let (mark, Some(before)) = before
                && Arc::strong_count(&before) == 2
            {
                self.said.remove(&mark);
            }
            self.changed.insert(id.node);
        }
        let incarnation = record.member.incarnation();
        // Told again by others later, it is the same restart and no longer one.
        let left = extra
            .restarting
            .filter(|_| note.restarting.is_none_or(|(told, _)| told < incarnation))?;
        note.restarting = Some((incarnation, self.now + left));
        Some(self.now + left)
    }

    /// Forgets those that `is_member` does not know.
    pub(crate) fn retain(&mut self, is_member: impl Fn(NodeId) -> bool) {
        let own = self.own;
        self.known
            .retain(|node, _| *node == own || is_member(*node));
        self.said.retain(|_, meta| Arc::strong_count(meta) > 1);
    }

    /// What goes with news of a member.
    pub(crate) fn of(&self, member: &Member<Identity>) -> Extra {
        let Some(note) = self.known.get(&member.id().node) else {
            return Extra::default();
        };
        let is_own = member.id().node == self.own;
        if member.state() != State::Alive || !is_own && note.generation != member.id().generation {
            return Extra::default();
        }
        Extra {
            meta: note.meta.clone(),
            restarting: self.left(note),
            pool: None,
        }
    }

    /// What goes with a packet of ours: the pool where a packet may introduce a node, all that we say of ourselves where
    /// it is meant to.
    pub(crate) fn on_packet(&self, message: &Message<Identity>) -> Extra {
        let own = self.known.get(&self.own);
        let introduces = matches!(
            message,
            Message::Announce | Message::Feed | Message::Gossip | Message::TurnUndead
        );
        Extra {
            restarting: own.and_then(|own| self.left(own)),
            meta: own
                .filter(|_| matches!(message, Message::Announce | Message::Feed))
                .and_then(|own| own.meta.clone()),
            pool: (introduces && !self.pool.is_empty()).then(|| Arc::clone(&self.pool)),
        }
    }

    /// What a digest counts of what a member says of itself; 0 if that is not known.
    pub(crate) fn mark(&self, member: &Member<Identity>) -> u64 {
        let id = member.id();
        let note = self.known.get(&id.node);
        let current = |note: &&Note| id.node == self.own || note.generation == id.generation;
        note.filter(current).map_or(0, |note| note.mark)
    }

    fn left(&self, note: &Note) -> Option<Duration> {
        let (_, until) = note.restarting?;
        until.checked_sub(self.now).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Extra {
        Extra {
            restarting: Some(Duration::from_millis(1234)),
            meta: Some(Arc::new(NodeMeta {
                roles: Roles { server: true },
                zone: "z".repeat(MAX_ZONE).into(),
                version: "v".repeat(MAX_VERSION).into(),
                protocols: (1, 9),
            })),
            pool: Some("p".repeat(MAX_POOL).into()),
        }
    }

    #[test]
    fn extensions_round_trip_and_fit_a_record() {
        let bytes = full().encode();
        assert!(bytes.len() <= 180, "{}", bytes.len());
        assert_eq!(Extra::decode(&bytes), full());
        assert!(Extra::default().encode().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_skipped() {
        let mut bytes = vec![200, 3, 1, 2, 3];
        bytes.extend(full().encode());
        bytes.extend([201, 0, 7]);
        assert_eq!(Extra::decode(&bytes), full());
        for cut in 0..bytes.len() {
            Extra::decode(&bytes[..cut]);
        }
        assert_eq!(Extra::decode(&[POOL, 2, 0xff, 0xfe]), Extra::default());
    }

    #[test]
    fn what_members_say_alike_is_kept_once() {
        let mut notes = Notes::new(NodeId([0; 16]), "dc1".into(), None);
        let mut says = |node: u8, generation, zone: &str| {
            let id = Identity {
                node: NodeId([node; 16]),
                addr: "192.0.2.2:1".parse().unwrap(),
                generation,
            };
            let meta = NodeMeta {
                zone: zone.into(),
                ..NodeMeta::default()
            };
            notes.learn(&Record {
                member: Member::new(id, 0, State::Alive),
                extra: Extra {
                    meta: Some(Arc::new(meta)),
                    ..Extra::default()
                },
            });
        };
        (1..=9).for_each(|node| says(node, 1, "a"));
        for zone in ["x", "y", "b"] {
            says(9, 1, zone);
        }
        assert_eq!(notes.said.len(), 2);
        let said = |node| notes.meta(NodeId([node; 16])).unwrap();
        assert!(Arc::ptr_eq(&said(1), &said(8)));
        assert_eq!(&*said(9).zone, "b");
        notes.retain(|node| node != NodeId([9; 16]));
        assert_eq!(notes.said.len(), 1, "nobody says b any more");
    }

    #[test]
    fn a_restart_lasts_fifteen_seconds_at_most_and_is_told_once() {
        let id = Identity {
            node: NodeId([2; 16]),
            addr: "192.0.2.2:1".parse().unwrap(),
            generation: 7,
        };
        let mut notes = Notes::new(NodeId([1; 16]), "dc1".into(), None);
        let record = |incarnation| Record {
            member: Member::new(id, incarnation, State::Alive),
            extra: Extra::decode(&[RESTARTING, 2, 0xff, 0xff]),
        };
        assert_eq!(notes.learn(&record(1)), Some(MAX_RESTART));
        notes.now = Duration::from_secs(10);
        assert_eq!(notes.learn(&record(1)), None, "the same, told later");
        let left = notes.of(&record(1).member).restarting;
        assert_eq!(
            left,
            Some(Duration::from_secs(5)),
            "others get what is left"
        );
        notes.now = Duration::from_secs(16);
        assert_eq!(notes.of(&record(1).member).restarting, None);
        assert_eq!(notes.learn(&record(2)), Some(Duration::from_secs(31)));
    }
}
