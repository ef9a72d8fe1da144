//! Everybody else's side of a node log; the rules are in [`log`](super::log).
//!
//! A replica keeps the signed messages that made it, to pass them on, and nothing else of its records: a *slot* of 16
//! bytes says in which message, and where in it, a key's record is. Slots are ordered by a hash of the key; the hash is
//! short, so every look-up compares the key itself, too. What a record means is its [`Reader`]'s business, which is
//! told of every key that changed and leaves a [`Note`] in the slot.

use bytes::Bytes;

use super::log::{Content, Head};
use super::wire::{Frame, ItemRef, Message};

/// Everybody else's side of one node's log.
#[derive(Debug, Default)]
pub struct Replica {
    at: Head,
    slots: Vec<Slot>,
    content: Content,
    messages: Vec<Kept>,
    kept: usize,
    staged: Option<Staged>,
    suspicious: bool,
}

/// A message as it came, kept to be passed on.
#[derive(Debug)]
struct Kept {
    at: Head,
    from: u64,
    frame: Frame,
}

/// Where a record is.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    message: u32,
    /// Offset in the message (24 bits), and the note's kind above it.
    place: u32,
    link: u32,
}

const PLACE_BITS: u32 = 24;
/// In place of a message's number: the key is gone, the slot goes at the end of the batch.
const GONE: u32 = u32::MAX;

/// What a [`Reader`] wants to know again of a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Note {
    /// A number below 256 that means something to the reader.
    pub kind: u8,
    /// Another one.
    pub link: u32,
}

/// Reads the records of a log as they change.
pub trait Reader {
    /// Hash of a key, given in two pieces. Should be keyed: it orders what others choose.
    fn hash(&self, key: (&[u8], &[u8])) -> u32;

    /// The key has a new record; `None` = it is gone. `was` is the note that was left for the old one (the default
    /// when there was none). Returns the note for the new one.
    fn changed(&mut self, hash: u32, key: &[u8], record: Option<&[u8]>, was: Note) -> Note;
}

#[derive(Debug)]
struct Staged {
    at: Head,
    parts: Vec<Option<Message>>,
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
    /// The map is now as of the message; the reader was told of so many changes, maybe none.
    Applied(usize),
}

impl Slot {
    fn new(hash: u32, message: usize, offset: u32) -> Self {
        Self {
            hash,
            message: message as u32,
            place: offset,
            link: 0,
        }
    }

    fn offset(self) -> usize {
        (self.place & ((1 << PLACE_BITS) - 1)) as usize
    }

    fn note(self) -> Note {
        Note {
            kind: (self.place >> PLACE_BITS) as u8,
            link: self.link,
        }
    }

    fn with(self, note: Note) -> Self {
        Self {
            place: self.offset() as u32 | u32::from(note.kind) << PLACE_BITS,
            link: note.link,
            ..self
        }
    }
}

fn item<'a>(messages: &'a [Kept], slot: Slot) -> (&'a Frame, ItemRef<'a>) {
    let frame = &messages[slot.message as usize].frame;
    let item = frame
        .item(slot.offset())
        .expect("every item was looked at when its message was taken apart");
    (frame, item)
}

/// Buffers for one record each, used again and again.
#[derive(Default)]
struct Scratch {
    key: Vec<u8>,
    new: Vec<u8>,
    old: Vec<u8>,
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

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of the messages kept.
    pub fn kept_bytes(&self) -> usize {
        let staged = self
            .staged
            .iter()
            .flat_map(|staged| staged.parts.iter().flatten());
        let staged: usize = staged.map(|message| message.frame.raw.len()).sum();
        self.kept + staged
    }

    /// Its content is not what it should be: the next snapshot replaces it, whatever its number.
    pub fn distrust(&mut self) {
        self.suspicious = true;
    }

    /// Forgets the parts of a snapshot that is not complete.
    pub fn forget_staged(&mut self) {
        self.staged = None;
    }

    /// Whether the message would change anything; cheap, so that what is known need not be verified.
    pub fn is_news(&self, message: &Message) -> bool {
        let to = message.to;
        to > self.at || (self.suspicious && message.from == 0 && to == self.at)
    }

    /// How many records there would be with `message` applied, at most.
    pub fn records_with(&self, message: &Message) -> usize {
        if message.from != 0 {
            let items = message.frame.items();
            let (gone, more) = items.fold((0, 0), |(gone, more), (_, item)| match item.is_gone() {
                true => (gone + 1, more),
                false => (gone, more + 1),
            });
            return (self.records() + more).saturating_sub(gone);
        }
        let staged = self.staged.iter().filter(|staged| staged.at == message.to);
        let others = staged.flat_map(|staged| &staged.parts).enumerate();
        let others = others.filter(|(part, _)| *part != message.part as usize);
        let others = others.filter_map(|(_, part)| part.as_ref());
        others.map(|part| part.items).sum::<usize>() + message.items
    }

    /// Takes a message in.
    pub fn apply(&mut self, message: Message, reader: &mut impl Reader) -> Effect {
        if !self.is_news(&message) {
            return Effect::Known;
        }
        if message.from == 0 {
            return self.stage(message, reader);
        }
        if message.to.epoch != self.at.epoch || message.from > self.at.head || self.suspicious {
            return Effect::Pull(self.wanted_after());
        }
        Effect::Applied(self.follow(message, reader))
    }

    /// Applies a delta.
    fn follow(&mut self, message: Message, reader: &mut impl Reader) -> usize {
        let known = self.at.head;
        self.at.head = message.to.head;
        let number = self.messages.len();
        self.keep(message);
        let news = slots_of(&self.messages, number, reader, |item| item.version > known);
        let mut scratch = Scratch::default();
        let mut changes = 0;
        let mut added = Vec::new();
        let mut gone = false;
        for slot in news {
            let (frame, new) = item(&self.messages, slot);
            let place = self.find(slot.hash, |known| known.key.equals(new.key));
            let there = frame.record(&new, &mut scratch.new);
            new.key.write(&mut scratch.key);
            let mut was = Note::default();
            let mut same = !there;
            if let Some(place) = place {
                let old = self.slots[place];
                was = old.note();
                let (old_frame, old_item) = item(&self.messages, old);
                old_frame.record(&old_item, &mut scratch.old);
                self.content
                    .remove(&scratch.key, old_item.version, &scratch.old);
                same = there && scratch.old == scratch.new;
            }
            if there {
                self.content.add(&scratch.key, new.version, &scratch.new);
            }
            let mut note = was;
            if !same {
                changes += 1;
                let record = there.then_some(&scratch.new[..]);
                note = reader.changed(slot.hash, &scratch.key, record, was);
            }
            match place {
                Some(place) if there => self.slots[place] = slot.with(note),
                // Removed below, all at once.
                Some(place) => {
                    self.slots[place].message = GONE;
                    gone = true;
                }
                None if there => added.push(slot.with(note)),
                None => {}
            }
        }
        if gone {
            self.slots.retain(|slot| slot.message != GONE);
        }
        self.insert(added);
        changes
    }

    fn insert(&mut self, added: Vec<Slot>) {
        if added.len() > 4 {
            let mut merged = Vec::with_capacity(self.slots.len() + added.len());
            let mut old = std::mem::take(&mut self.slots).into_iter().peekable();
            for slot in added {
                while let Some(before) = old.next_if(|old| old.hash <= slot.hash) {
                    merged.push(before);
                }
                merged.push(slot);
            }
            merged.extend(old);
            self.slots = merged;
            return;
        }
        for slot in added {
            if self.slots.len() == self.slots.capacity() {
                self.slots.reserve_exact(self.slots.len() / 8 + 4);
            }
            let at = self.slots.partition_point(|known| known.hash <= slot.hash);
            self.slots.insert(at, slot);
        }
    }

    fn keep(&mut self, message: Message) {
        self.kept += message.frame.raw.len();
        self.messages.push(Kept {
            at: message.to,
            from: message.from,
            frame: message.frame,
        });
    }

    fn stage(&mut self, message: Message, reader: &mut impl Reader) -> Effect {
        let (at, parts) = (message.to, message.parts as usize);
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
        let Some(part) = staged.parts.get_mut(message.part as usize) else {
            return Effect::Known;
        };
        *part = Some(message);
        if staged.parts.iter().any(Option::is_none) {
            return Effect::Staged;
        }
        let parts = self.staged.take().map(|staged| staged.parts);
        let parts = parts.unwrap_or_default().into_iter().flatten();
        Effect::Applied(self.replace(at, parts, reader))
    }

    /// Applies a whole snapshot.
    fn replace(
        &mut self,
        at: Head,
        parts: impl Iterator<Item = Message>,
        reader: &mut impl Reader,
    ) -> usize {
        let old = Self {
            slots: std::mem::take(&mut self.slots),
            messages: std::mem::take(&mut self.messages),
            ..Self::default()
        };
        (self.at, self.suspicious, self.kept) = (at, false, 0);
        self.content = Content::default();
        let mut slots = Vec::new();
        for (number, part) in parts.enumerate() {
            self.keep(part);
            slots.extend(slots_of(&self.messages, number, reader, |item| {
                !item.is_gone()
            }));
        }
        let mut slots = only_last(&self.messages, slots);
        let mut taken = vec![false; old.slots.len()];
        let mut scratch = Scratch::default();
        let mut changes = 0;
        for slot in &mut slots {
            let (frame, new) = item(&self.messages, *slot);
            frame.record(&new, &mut scratch.new);
            new.key.write(&mut scratch.key);
            self.content.add(&scratch.key, new.version, &scratch.new);
            let mut was = Note::default();
            if let Some(place) = old.find(slot.hash, |known| known.key.equals(new.key)) {
                taken[place] = true;
                was = old.slots[place].note();
                let (old_frame, old_item) = item(&old.messages, old.slots[place]);
                old_frame.record(&old_item, &mut scratch.old);
                if scratch.old == scratch.new {
                    *slot = slot.with(was);
                    continue;
                }
            }
            changes += 1;
            *slot = slot.with(reader.changed(slot.hash, &scratch.key, Some(&scratch.new), was));
        }
        slots.shrink_to_fit();
        self.slots = slots;
        for (slot, _) in old.slots.iter().zip(taken).filter(|(_, taken)| !taken) {
            let (_, gone) = item(&old.messages, *slot);
            gone.key.write(&mut scratch.key);
            changes += 1;
            reader.changed(slot.hash, &scratch.key, None, slot.note());
        }
        changes
    }

    /// Tells the reader of every record again, as if it had just come; for when it would read them differently now.
    pub fn read_again(&mut self, reader: &mut impl Reader) {
        let mut scratch = Scratch::default();
        for at in 0..self.slots.len() {
            let slot = self.slots[at];
            let (frame, item) = item(&self.messages, slot);
            frame.record(&item, &mut scratch.new);
            item.key.write(&mut scratch.key);
            let note = reader.changed(slot.hash, &scratch.key, Some(&scratch.new), slot.note());
            self.slots[at] = slot.with(note);
        }
    }

    /// Position of a key's slot.
    fn find(&self, hash: u32, is: impl Fn(&ItemRef<'_>) -> bool) -> Option<usize> {
        let first = self.slots.partition_point(|slot| slot.hash < hash);
        let same = self.slots[first..]
            .iter()
            .take_while(|slot| slot.hash == hash);
        let mut same = same.enumerate();
        let found =
            same.find(|(_, slot)| slot.message != GONE && is(&item(&self.messages, **slot).1));
        found.map(|(at, _)| first + at)
    }

    /// The notes of the keys with this hash: seldom more than one.
    pub fn notes(&self, hash: u32) -> impl Iterator<Item = Note> {
        let first = self.slots.partition_point(|slot| slot.hash < hash);
        let same = self.slots[first..]
            .iter()
            .take_while(move |slot| slot.hash == hash);
        same.map(|slot| slot.note())
    }

    /// All notes, with the hashes of their keys.
    pub fn all_notes(&self) -> impl Iterator<Item = (u32, Note)> {
        self.slots.iter().map(|slot| (slot.hash, slot.note()))
    }

    /// Shows the records whose keys have this hash, with their notes.
    pub fn with_hash(&self, hash: u32, mut show: impl FnMut(Note, &[u8], &[u8])) {
        let first = self.slots.partition_point(|slot| slot.hash < hash);
        let same = self.slots[first..]
            .iter()
            .take_while(|slot| slot.hash == hash);
        self.show(same, &mut show);
    }

    /// Shows all records whose note is as wanted.
    pub fn each(&self, wanted: impl Fn(Note) -> bool, mut show: impl FnMut(Note, &[u8], &[u8])) {
        self.show(
            self.slots.iter().filter(|slot| wanted(slot.note())),
            &mut show,
        );
    }

    fn show<'a>(
        &'a self,
        slots: impl Iterator<Item = &'a Slot>,
        show: &mut impl FnMut(Note, &[u8], &[u8]),
    ) {
        let mut scratch = Scratch::default();
        for slot in slots {
            let (frame, item) = item(&self.messages, *slot);
            frame.record(&item, &mut scratch.new);
            item.key.write(&mut scratch.key);
            show(slot.note(), &scratch.key, &scratch.new);
        }
    }

    /// The kept messages that bring someone at `have` here. Empty when nothing is lacking, or this replica is not
    /// fit to tell.
    pub fn messages_since(&self, have: Head) -> Vec<Bytes> {
        if have >= self.at || self.suspicious {
            return Vec::new();
        }
        let reaches = |message: &Kept| {
            message.from != 0 && have.epoch == self.at.epoch && message.from <= have.head
        };
        let chained = self
            .messages
            .iter()
            .any(|message| reaches(message) && message.at.head > have.head);
        let lacking = |message: &&Kept| !chained || message.at.head > have.head;
        self.messages
            .iter()
            .filter(lacking)
            .map(|message| message.frame.raw.clone())
            .collect()
    }
}

/// Slots of the wanted items of a message, ordered by hash, each key once.
fn slots_of(
    messages: &[Kept],
    number: usize,
    reader: &impl Reader,
    wanted: impl Fn(&ItemRef<'_>) -> bool,
) -> Vec<Slot> {
    let items = messages[number].frame.items();
    let items = items.filter(|(_, item)| wanted(item));
    let slots = items.map(|(offset, item)| {
        let hash = reader.hash((item.key.head, item.key.last));
        Slot::new(hash, number, offset)
    });
    only_last(messages, slots.collect())
}

/// Orders slots by hash. A key that is there twice (no honest owner says so) counts as said last.
fn only_last(messages: &[Kept], mut slots: Vec<Slot>) -> Vec<Slot> {
    slots.sort_by_key(|slot| slot.hash);
    if slots.is_sorted_by(|a, b| a.hash < b.hash) {
        return slots;
    }
    let mut kept: Vec<Slot> = Vec::with_capacity(slots.len());
    for group in slots.chunk_by(|a, b| a.hash == b.hash) {
        let first = kept.len();
        for slot in group.iter().rev() {
            let key = item(messages, *slot).1.key;
            let twin = |later: &Slot| item(messages, *later).1.key.equals(key);
            if !kept[first..].iter().any(twin) {
                kept.push(*slot);
            }
        }
    }
    kept
}
