//! Everybody else's side of a node log; the rules are in [`log`](super::log).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::log::{Content, Delta, Head, Item};

/// Everybody else's side of one node's log.
#[derive(Debug, Default)]
pub struct Replica {
    at: Head,
    entries: BTreeMap<Bytes, (u64, Bytes)>,
    content: Content,
    messages: Vec<Message>,
    staged: Option<Staged>,
    suspicious: bool,
}

/// A message as it came, kept to be passed on.
#[derive(Debug, Clone)]
struct Message {
    at: Head,
    from: u64,
    raw: Bytes,
}

#[derive(Debug)]
struct Staged {
    at: Head,
    parts: Vec<Option<(Vec<Item>, Bytes)>>,
}

/// What a message did.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: its content is known, or older than what is known.
    Known,
    /// A part of a snapshot is kept until the others are there.
    Staged,
    /// There is a gap before it: ask for what comes after this.
    Pull(Head),
    /// The map changed: these keys have new bodies (`None` = gone). May be empty.
    Applied(Vec<(Bytes, Option<Bytes>)>),
}

impl Replica {
    /// Where it stands.
    pub fn head(&self) -> Head {
        self.at
    }

    /// What to ask others for: what comes after this.
    pub fn wanted_after(&self) -> Head {
        if self.suspicious {
            Head::default()
        } else {
            self.at
        }
    }

    /// Hash of the records; equal to the owner's at the same [`Head`].
    pub fn content(&self) -> u128 {
        self.content.0
    }

    /// The records, by key.
    pub fn live(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.entries.iter().map(|(key, (_, body))| (key, body))
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the messages kept.
    pub fn kept_bytes(&self) -> usize {
        let staged = self
            .staged
            .iter()
            .flat_map(|staged| staged.parts.iter().flatten())
            .map(|(_, raw)| raw.len());
        self.messages
            .iter()
            .map(|message| message.raw.len())
            .chain(staged)
            .sum()
    }

    /// Its content is not what it should be: the next snapshot replaces it, whatever its number.
    pub fn distrust(&mut self) {
        self.suspicious = true;
    }

    /// Whether `delta` would change anything; cheap, so that what is known need not be verified.
    pub fn is_news(&self, delta: &Delta) -> bool {
        let to = Head {
            epoch: delta.epoch,
            head: delta.to,
        };
        to > self.at || (self.suspicious && delta.from == 0 && to == self.at)
    }

    /// Takes a message in. `raw` is the message as it came.
    pub fn apply(&mut self, delta: Delta, raw: Bytes) -> Effect {
        if !self.is_news(&delta) {
            return Effect::Known;
        }
        if delta.from == 0 {
            return self.stage(delta, raw);
        }
        if delta.epoch != self.at.epoch || delta.from > self.at.head || self.suspicious {
            return Effect::Pull(self.wanted_after());
        }
        let known = self.at.head;
        self.at.head = delta.to;
        self.messages.push(Message {
            at: self.at,
            from: delta.from,
            raw,
        });
        let mut changes = Vec::new();
        for item in delta.items {
            if item.version <= known {
                continue;
            }
            let old = match &item.body {
                Some(body) => self
                    .entries
                    .insert(item.key.clone(), (item.version, body.clone())),
                None => self.entries.remove(&item.key),
            };
            if item.body.is_some() {
                self.content.add(&item);
            }
            let changed = old.as_ref().map(|(_, body)| body) != item.body.as_ref();
            if let Some((version, body)) = old {
                self.content.remove(&Item {
                    key: item.key.clone(),
                    version,
                    body: Some(body),
                });
            }
            if changed {
                changes.push((item.key, item.body));
            }
        }
        Effect::Applied(changes)
    }

    fn stage(&mut self, delta: Delta, raw: Bytes) -> Effect {
        let at = Head {
            epoch: delta.epoch,
            head: delta.to,
        };
        let parts = delta.parts as usize;
        let fits = |staged: &Staged| staged.at == at && staged.parts.len() == parts;
        if self.staged.as_ref().is_some_and(|staged| staged.at > at) {
            return Effect::Known;
        }
        if !self.staged.as_ref().is_some_and(fits) {
            self.staged = Some(Staged {
                at,
                parts: (0..parts).map(|_| None).collect(),
            });
        }
        let Some(staged) = &mut self.staged else {
            return Effect::Known;
        };
        let Some(part) = staged.parts.get_mut(delta.part as usize) else {
            return Effect::Known;
        };
        *part = Some((delta.items, raw));
        if staged.parts.iter().any(Option::is_none) {
            return Effect::Staged;
        }
        let parts = self
            .staged
            .take()
            .map(|staged| staged.parts)
            .unwrap_or_default();
        Effect::Applied(self.replace(at, parts.into_iter().flatten()))
    }

    fn replace(
        &mut self,
        at: Head,
        parts: impl Iterator<Item = (Vec<Item>, Bytes)>,
    ) -> Vec<(Bytes, Option<Bytes>)> {
        let mut old = std::mem::take(&mut self.entries);
        (self.at, self.suspicious) = (at, false);
        self.messages.clear();
        self.content = Content::default();
        let mut changes = Vec::new();
        for (items, raw) in parts {
            self.messages.push(Message { at, from: 0, raw });
            for item in items {
                let Some(body) = item.body.clone() else {
                    continue;
                };
                self.content.add(&item);
                if old.remove(&item.key).is_none_or(|(_, known)| known != body) {
                    changes.push((item.key.clone(), Some(body.clone())));
                }
                if let Some((version, twin)) =
                    self.entries.insert(item.key.clone(), (item.version, body))
                {
                    // A key twice in one snapshot: the later one counts.
                    self.content.remove(&Item {
                        key: item.key,
                        version,
                        body: Some(twin),
                    });
                }
            }
        }
        changes.extend(old.into_keys().map(|key| (key, None)));
        changes
    }

    /// The kept messages that bring someone at `have` here. Empty when nothing is lacking, or this replica is not
    /// fit to tell.
    pub fn messages_since(&self, have: Head) -> Vec<Bytes> {
        if have >= self.at || self.suspicious {
            return Vec::new();
        }
        let reaches = |message: &Message| {
            message.from != 0 && have.epoch == self.at.epoch && message.from <= have.head
        };
        let chained = self
            .messages
            .iter()
            .any(|message| reaches(message) && message.at.head > have.head);
        let lacking = |message: &&Message| !chained || message.at.head > have.head;
        self.messages
            .iter()
            .filter(lacking)
            .map(|message| message.raw.clone())
            .collect()
    }
}
