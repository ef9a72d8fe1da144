//! The one thread that writes: gathers waiting changes, makes entries of them, has them made durable
//! together, and only then shows and acknowledges them.

use std::{
    collections::HashMap,
    hash::BuildHasherDefault,
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::oneshot;

use super::{
    Change, Error, Shared,
    prepare::{Prepared, PreparedOp},
};
use crate::{
    barrier::{
        Barrier,
        names::{NameIndex, Stamp},
    },
    store::{Entry, EntryOp, FoldKey, Head, KeyHasher, MAX_ENTRY, OpKind, Store},
};

/// Changes in one group at most; so many that the disk, not this number, limits.
const GROUP: usize = 1024;
/// Bytes of values in one group at most.
const GROUP_BYTES: usize = 8 << 20;

/// A change and where its outcome goes.
pub(super) struct Job {
    pub(super) change: Prepared,
    pub(super) reply: oneshot::Sender<Result<u64, Error>>,
}

/// What the writer is given.
pub(super) enum Work {
    /// One change; it goes with others that wait.
    Job(Job),
    /// Decides about a change while nobody else makes one.
    Alone(Decide),
}

/// Makes a change, or none.
pub(super) type Decide = Box<dyn FnOnce(&Shared) -> Option<Job> + Send>;

type Answer = (oneshot::Sender<Result<u64, Error>>, Result<u64, Error>);

/// Starts the writer. It ends when the last [`Core`](super::Core) is gone.
pub(super) fn start(shared: Arc<Shared>, epoch: u64) -> mpsc::Sender<Work> {
    let (work, queue) = mpsc::channel();
    thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || {
            // While it waits for work it keeps nothing open: the store closes with its last handle.
            let shared = {
                let weak = Arc::downgrade(&shared);
                drop(shared);
                weak
            };
            let mut next = None;
            while let Some(first) = next.take().or_else(|| queue.recv().ok()) {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let group = match first {
                    Work::Job(first) => {
                        let group;
                        (group, next) = gather(first, &queue);
                        group
                    }
                    Work::Alone(decide) => decide(&shared).into_iter().collect(),
                };
                let answers = write(&shared, epoch, group);
                // Whoever hears that it is done may close the store at once, and open it again.
                drop(shared);
                answers.into_iter().for_each(answer);
            }
        })
        .expect("the system starts one more thread");
    work
}

/// What goes together with `first`, and what comes after that.
fn gather(first: Job, queue: &mpsc::Receiver<Work>) -> (Vec<Job>, Option<Work>) {
    let mut bytes = first.change.bytes;
    let mut group = vec![first];
    while group.len() < GROUP && bytes < GROUP_BYTES {
        match queue.try_recv() {
            Ok(Work::Job(job)) => {
                bytes += job.change.bytes;
                group.push(job);
            }
            Ok(alone) => return (group, Some(alone)),
            Err(_) => break,
        }
    }
    (group, None)
}

/// The entry that makes a ledger of nothing, all or none of it.
///
/// # Errors
/// It is too large, or storage fails.
pub(crate) fn first_entry(
    store: &dyn Store,
    barrier: &Barrier,
    change: Change,
) -> Result<Entry, Error> {
    entry_after(store, barrier, Head::default(), change)
}

/// An entry of a change to a store without names.
pub(crate) fn entry_after(
    store: &dyn Store,
    barrier: &Barrier,
    head: Head,
    change: Change,
) -> Result<Entry, Error> {
    let mut group = Group {
        store,
        names: &NameIndex::new(0),
        epoch: head.epoch + 1,
        head,
        entries: Vec::new(),
        stamps: Stamps::default(),
    };
    group.add(Prepared::new(barrier, change))?;
    let first = group.entries.pop();
    Ok(first.expect("a change with operations makes an entry"))
}

/// What a group has done so far; later changes of the group build on it.
struct Group<'a> {
    store: &'a dyn Store,
    names: &'a NameIndex,
    epoch: u64,
    head: Head,
    entries: Vec<Entry>,
    /// By fold key, which is a hash already.
    stamps: Stamps,
}

type Stamps = HashMap<FoldKey, (String, Option<Stamp>), BuildHasherDefault<KeyHasher>>;

/// Makes a group durable and shows it; what each waiter is to hear.
fn write(shared: &Shared, epoch: u64, jobs: Vec<Job>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(jobs.len());
    let expected = shared.store.head();
    let mut waiting = Vec::with_capacity(jobs.len());
    let (entries, stamps) = {
        let state = shared.state.read();
        let Some(unsealed) = state.as_ref() else {
            answers.extend(jobs.into_iter().map(|job| (job.reply, Err(Error::Sealed))));
            return answers;
        };
        let mut group = Group {
            store: &*shared.store,
            names: &unsealed.names,
            epoch,
            head: expected,
            entries: Vec::with_capacity(jobs.len()),
            stamps: Stamps::default(),
        };
        for Job { change, reply } in jobs {
            match group.add(change) {
                Ok(index) => waiting.push((reply, index)),
                Err(error) => answers.push((reply, Err(error))),
            }
        }
        (group.entries, group.stamps)
    };

    let head = entries.last().map_or(expected, Entry::head);
    let newest = head.index;
    if !entries.is_empty()
        && let Err(error) = shared.store.commit(&expected, entries)
    {
        let error = Error::from(error);
        for (reply, _) in waiting {
            answers.push((reply, Err(error.clone())));
        }
        return answers;
    }
    if let Some(unsealed) = shared.state.write().as_mut() {
        for (name, stamp) in stamps.values() {
            match stamp {
                Some(stamp) => unsealed.names.put(name, *stamp),
                None => unsealed.names.delete(name, newest),
            }
            shared.marks.changed(name, newest);
        }
        unsealed.head = head;
        unsealed.unkept += stamps.len() as u64;
    }
    shared.keeper.look_soon(stamps.len() as u64);
    let changes = stamps.values().map(|(name, stamp)| {
        let index = stamp.map_or(newest, |stamp| stamp.modified);
        (&**name, index)
    });
    shared.waiters.wake(changes);
    let done = waiting.into_iter().map(|(reply, index)| (reply, Ok(index)));
    answers.extend(done);
    answers
}

/// The caller may have gone away; what it asked for has happened all the same.
fn answer((reply, outcome): Answer) {
    let _ = reply.send(outcome);
}

impl Group<'_> {
    /// Adds the entry of one change; the index it is acknowledged with.
    fn add(&mut self, change: Prepared) -> Result<u64, Error> {
        for (key, name, expected) in &change.expect {
            if self.stamp(key, name).map(|stamp| stamp.modified) != *expected {
                return Err(Error::CasMismatch);
            }
        }
        let index = self.head.index + 1;
        let mut ops = Vec::with_capacity(change.ops.len());
        let mut stamps = Vec::with_capacity(change.ops.len());
        for op in change.ops {
            let PreparedOp {
                kind,
                path,
                key,
                part,
            } = op;
            let before = match kind {
                OpKind::Control => self.store.control(&key)?.map(|record| Stamp {
                    created: record.created,
                    modified: record.modified,
                }),
                _ => self.stamp(&key, &path),
            };
            if kind == OpKind::Delete && before.is_none() {
                continue;
            }
            let stamp = Stamp {
                created: before.map_or(index, |stamp| stamp.created),
                modified: index,
            };
            let previous = before.map_or(0, |stamp| stamp.modified);
            ops.push(EntryOp::new(kind, key, stamp.created, previous, part));
            match kind {
                OpKind::Put => stamps.push((key, (path, Some(stamp)))),
                OpKind::Delete => stamps.push((key, (path, None))),
                OpKind::Control => {}
            }
        }
        if ops.is_empty() {
            return Ok(self.head.index);
        }
        let entry = Entry::new(index, self.epoch, self.head.hash, change.meta, ops);
        if entry.encoded_length() > MAX_ENTRY {
            return Err(Error::TooLarge(entry.encoded_length()));
        }
        self.head = entry.head();
        self.entries.push(entry);
        self.stamps.extend(stamps);
        Ok(index)
    }

    fn stamp(&self, key: &FoldKey, name: &str) -> Option<Stamp> {
        match self.stamps.get(key) {
            Some((_, stamp)) => *stamp,
            None => self.names.get(name),
        }
    }
}
