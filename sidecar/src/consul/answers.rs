//! Answers of catalog and health, kept as the bytes that are sent.
//!
//! What a question is answered with is made once for each revision of what it is about (a service, or everything), and shared by
//! all who ask the same: a thousand who wait for one service are told of a change with one answer. A kept answer is good as
//! long as the revision stands that was read before it was made. What checks of this node printed is shown too, and changes
//! without a revision: an answer that has some is good as long as besides none of them printed something else.
//!
//! A question is its path with those parameters that change the answer, in the order they came. Which ones do not is listed in
//! [`IRRELEVANT`]; anything else counts, known or not. Whoever adds a way for an answer to differ between two that ask the
//! same way, at the same revision, must not keep it: as with [`ELSEWHERE`].
//!
//! Costs: one that is kept, a hash of the question and a lock held for a lookup, whatever its size. All together take at most
//! [`ROOM`] bytes, one at most [`LARGEST`]; those that nobody asked for lately go first, and with [`Answers::sweep`] all
//! that nobody asked for since the last one.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use libmesh::catalog::ServiceView;
use parking_lot::Mutex;

use super::Inner;
use crate::http::{Call, Reply};

/// Bytes of all kept answers and their questions.
const ROOM: usize = 16 << 20;
/// The largest that is kept, in bytes.
const LARGEST: usize = 4 << 20;
/// What an entry takes beside question and answer.
const OVERHEAD: usize = 128;

/// Parameters that say when and how to answer, or who asks, but not what.
const IRRELEVANT: [&str; 12] = [
    "index",
    "wait",
    "stale",
    "consistent",
    "cached",
    "hash",
    "token",
    "pretty",
    "dc",
    "datacenter",
    "ns",
    "partition",
];
/// Parameters whose answer depends on what has no revision.
const ELSEWHERE: [&str; 1] = ["near"];

/// The kept answers of one interface.
#[derive(Default)]
pub struct Answers(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    answers: HashMap<Box<str>, Entry>,
    bytes: usize,
}

struct Entry {
    state: State,
    body: Bytes,
    /// Asked for since the last sweep.
    used: bool,
}

/// A state of what an answer is made of.
#[derive(Debug, Clone, Copy)]
pub struct State {
    revision: u64,
    /// For answers that show what checks of this node printed.
    said: Option<u64>,
}

/// A question, asked at some state.
pub struct Question {
    /// `None`: its answer is not to be kept.
    text: Option<Box<str>>,
    state: State,
}

impl State {
    /// That of a service, and of the one beside it. To be read before they are.
    pub fn of_service(inner: &Inner, name: &str, beside: Option<&str>) -> Self {
        let revision = |name| inner.catalog.service_revision(name);
        // Whichever changes gets a revision that neither had.
        Self::at(revision(name).max(beside.map_or(0, revision)))
    }

    /// That of the whole catalog. To be read before the catalog is.
    pub fn of_all(inner: &Inner) -> Self {
        Self::at(inner.catalog.revision())
    }

    /// Whether what was made at this state is right at `now`.
    fn holds_at(self, now: Self) -> bool {
        self.revision == now.revision && (self.said.is_none() || self.said == now.said)
    }

    fn at(revision: u64) -> Self {
        Self {
            revision,
            said: None,
        }
    }

    /// The same, with what checks of this node printed.
    pub fn with_outputs(self, inner: &Inner) -> Self {
        Self {
            said: Some(inner.checks.said()),
            ..self
        }
    }
}

impl Question {
    /// What a call asks, at this state.
    pub fn of(call: &Call, state: State) -> Self {
        let keeps = !call
            .query
            .pairs()
            .any(|(name, _)| ELSEWHERE.contains(&name));
        let text = keeps.then(|| {
            let path = call.request.uri().path();
            let mut text = String::with_capacity(path.len() + 32);
            text.push_str(path);
            for (name, value) in call.query.pairs() {
                if !IRRELEVANT.contains(&name) {
                    // Names and values are decoded, and may hold anything: lengths keep them apart.
                    let lengths = [name.len(), value.len()].map(|length| length.to_string());
                    for part in ["\0", &lengths[0], ":", name, &lengths[1], ":", value] {
                        text.push_str(part);
                    }
                }
            }
            text.into_boxed_str()
        });
        Self { text, state }
    }

    /// The same; what checks of this node printed is in the answer only if one of these instances runs here and has some.
    pub fn about(mut self, inner: &Inner, views: &[Arc<ServiceView>]) -> Self {
        let mut instances = views.iter().flat_map(|view| &view.instances);
        let shown =
            instances.any(|it| it.node.record.id == inner.about.id && !it.checks.is_empty());
        self.state.said = self.state.said.filter(|_| shown);
        self
    }
}

impl Answers {
    /// The kept answer, if it still holds.
    pub fn find(&self, question: &Question) -> Option<Bytes> {
        let mut kept = self.0.lock();
        let entry = kept.answers.get_mut(question.text.as_deref()?)?;
        entry.state.holds_at(question.state).then(|| {
            entry.used = true;
            entry.body.clone()
        })
    }

    /// Keeps the body of a reply that was made after the question's state was read.
    pub fn keep(&self, question: Question, reply: Reply) -> Reply {
        let (head, body) = reply.into_parts();
        let Some(body) = body.into_bytes() else {
            unreachable!("answers of the catalog are whole")
        };
        if let Some(text) = question.text
            && head.status.is_success()
            && body.len() <= LARGEST
        {
            self.0.lock().put(text, question.state, body.clone());
        }
        Reply::from_parts(head, body.into())
    }

    /// Forgets what nobody asked for since the last call.
    pub fn sweep(&self) {
        self.0.lock().sweep();
    }
}

impl Kept {
    fn put(&mut self, text: Box<str>, state: State, body: Bytes) {
        self.remove(&text);
        let size = size(&text, &body);
        if self.bytes + size > ROOM {
            self.sweep();
        }
        if self.bytes + size > ROOM {
            *self = Self::default();
        }
        self.bytes += size;
        let entry = Entry {
            state,
            body,
            used: true,
        };
        self.answers.insert(text, entry);
    }

    fn remove(&mut self, text: &str) {
        if let Some((text, entry)) = self.answers.remove_entry(text) {
            self.bytes -= size(&text, &entry.body);
        }
    }

    fn sweep(&mut self) {
        let bytes = &mut self.bytes;
        self.answers.retain(|text, entry| {
            let used = std::mem::take(&mut entry.used);
            if !used {
                *bytes -= size(text, &entry.body);
            }
            used
        });
        self.answers.shrink_to_fit();
    }
}

fn size(text: &str, body: &Bytes) -> usize {
    text.len() + body.len() + OVERHEAD
}
