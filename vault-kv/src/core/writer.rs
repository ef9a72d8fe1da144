//! The one thread that writes: gathers waiting changes, makes entries of them, has them made durable
//! together, and only then shows and acknowledges them.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Change, Error, META, Op, Shared, salted};
use crate::{
    barrier::{
        Barrier,
        names::{NameIndex, Stamp},
        sealed_length,
    },
    store::{Entry, EntryOp, FoldKey, Head, MAX_ENTRY, OpKind, Part, Store},
};

/// Changes in one group at most; so many that the disk, not this number, limits.
const GROUP: usize = 1024;
/// Bytes of values in one group at most.
const GROUP_BYTES: usize = 8 << 20;

/// A change and where its outcome goes.
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) reply: oneshot::Sender<Result<u64, Error>>,
}

/// Starts the writer. It ends when the last [`Core`](super::Core) is gone.
pub(super) fn start(shared: Arc<Shared>, epoch: u64) -> mpsc::Sender<Job> {
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || {
            while let Ok(first) = queue.recv() {
                let mut group = vec![first];
                let mut bytes = size(&group[0].change);
                while group.len() < GROUP && bytes < GROUP_BYTES {
                    let Ok(job) = queue.try_recv() else { break };
                    bytes += size(&job.change);
                    group.push(job);
                }
                write(&shared, epoch, group);
            }
        })
        .expect("the system starts one more thread");
    jobs
}

fn size(change: &Change) -> usize {
    change
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { value, .. } => value.len(),
            Op::Control { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        })
        .sum()
}

/// The entry that makes a ledger of nothing, all or none of it.
///
/// # Errors
/// It is too large, or storage fails.
pub(crate) fn first_entry(
    store: &dyn Store,
    barrier: &Barrier,
    change: &Change,
) -> Result<Entry, Error> {
    let mut group = Group {
        store,
        names: &NameIndex::new(0),
        barrier,
        epoch: 1,
        head: Head::default(),
        entries: Vec::new(),
        stamps: HashMap::new(),
    };
    group.add(change)?;
    let first = group.entries.pop();
    Ok(first.expect("a change with operations makes an entry"))
}

/// What a group has done so far; later changes of the group build on it.
struct Group<'a> {
    store: &'a dyn Store,
    names: &'a NameIndex,
    barrier: &'a Barrier,
    epoch: u64,
    head: Head,
    entries: Vec<Entry>,
    stamps: HashMap<String, Option<Stamp>>,
}

fn write(shared: &Shared, epoch: u64, jobs: Vec<Job>) {
    let expected = shared.store.head();
    let mut waiting = Vec::with_capacity(jobs.len());
    let (entries, stamps) = {
        let state = shared.state.read();
        let Some(unsealed) = state.as_ref() else {
            for job in jobs {
                answer(job.reply, Err(Error::Sealed));
            }
            return;
        };
        let mut group = Group {
            store: &*shared.store,
            names: &unsealed.names,
            barrier: &unsealed.barrier,
            epoch,
            head: expected,
            entries: Vec::with_capacity(jobs.len()),
            stamps: HashMap::new(),
        };
        for Job { change, reply } in jobs {
            match group.add(&change) {
                Ok(index) => waiting.push((reply, index)),
                Err(error) => answer(reply, Err(error)),
            }
        }
        (group.entries, group.stamps)
    };

    if !entries.is_empty()
        && let Err(error) = shared.store.commit(&expected, &entries)
    {
        let error = Error::from(error);
        for (reply, _) in waiting {
            answer(reply, Err(error.clone()));
        }
        return;
    }
    if let Some(unsealed) = shared.state.write().as_mut() {
        let newest = entries.last().map_or(expected.index, |entry| entry.index);
        for (name, stamp) in &stamps {
            match stamp {
                Some(stamp) => unsealed.names.put(name, *stamp),
                None => unsealed.names.delete(name, newest),
            }
        }
    }
    for name in stamps.keys() {
        shared.waiters.wake(name);
    }
    for (reply, index) in waiting {
        answer(reply, Ok(index));
    }
}

/// The caller may have gone away; what it asked for has happened all the same.
fn answer(reply: oneshot::Sender<Result<u64, Error>>, outcome: Result<u64, Error>) {
    let _ = reply.send(outcome);
}

impl Group<'_> {
    /// Adds the entry of one change; the index it is acknowledged with.
    fn add(&mut self, change: &Change) -> Result<u64, Error> {
        for (name, expected) in &change.expect {
            if self.stamp(name).map(|stamp| stamp.modified) != *expected {
                return Err(Error::CasMismatch);
            }
        }
        let index = self.head.index + 1;
        let mut ops = Vec::with_capacity(change.ops.len());
        let mut stamps = Vec::with_capacity(change.ops.len());
        for op in &change.ops {
            match op {
                Op::Put { path, value } => {
                    let before = self.stamp(path);
                    let created = before.map_or(index, |stamp| stamp.created);
                    let key = self.barrier.fold_key(path);
                    let part = named_part(self.barrier, &key, path, value);
                    let previous = before.map_or(0, |stamp| stamp.modified);
                    ops.push(EntryOp::new(
                        OpKind::Put,
                        key,
                        created,
                        previous,
                        Some(part),
                    ));
                    let stamp = Stamp {
                        created,
                        modified: index,
                    };
                    stamps.push((path.clone(), Some(stamp)));
                }
                Op::Delete { path } => {
                    let Some(before) = self.stamp(path) else {
                        continue;
                    };
                    let key = self.barrier.fold_key(path);
                    ops.push(EntryOp::new(
                        OpKind::Delete,
                        key,
                        before.created,
                        before.modified,
                        None,
                    ));
                    stamps.push((path.clone(), None));
                }
                Op::Control { name, value } => {
                    let key = FoldKey::control(name);
                    let before = self.store.control(&key)?;
                    let created = before.as_ref().map_or(index, |record| record.created);
                    let previous = before.map_or(0, |record| record.modified);
                    let part = Some(control_part(value));
                    ops.push(EntryOp::new(OpKind::Control, key, created, previous, part));
                }
            }
        }
        if ops.is_empty() {
            return Ok(self.head.index);
        }
        let meta = meta_part(self.barrier, &change.meta);
        let entry = Entry::new(index, self.epoch, self.head.hash, meta, ops);
        if entry.encoded_length() > MAX_ENTRY {
            return Err(Error::TooLarge(entry.encoded_length()));
        }
        self.head = Head {
            index,
            epoch: self.epoch,
            hash: entry.hash(),
        };
        self.entries.push(entry);
        self.stamps.extend(stamps);
        Ok(index)
    }

    fn stamp(&self, name: &str) -> Option<Stamp> {
        match self.stamps.get(name) {
            Some(stamp) => *stamp,
            None => self.names.get(name),
        }
    }
}

/// `salt ‖ u32 length ‖ sealed name ‖ sealed value`. The name is sealed for its fold key, the value for
/// its name: neither opens anywhere else.
fn named_part(barrier: &Barrier, key: &FoldKey, name: &str, value: &[u8]) -> Part {
    let name_length = sealed_length(name.len());
    let mut out = salted(4 + name_length + sealed_length(value.len()));
    let length = u32::try_from(name_length).expect("names are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    barrier.seal(&key.0, name.as_bytes(), &mut out);
    barrier.seal(name.as_bytes(), value, &mut out);
    Part::new(Bytes::from(out))
}

/// A control record's bytes behind fresh salt.
fn control_part(bytes: &[u8]) -> Part {
    let mut out = salted(bytes.len());
    out.extend_from_slice(bytes);
    Part::new(Bytes::from(out))
}

/// The sealed meta of an entry.
fn meta_part(barrier: &Barrier, meta: &super::Meta) -> Part {
    let plain = postcard::to_stdvec(meta).expect("plain data always encodes");
    let mut out = salted(sealed_length(plain.len()));
    barrier.seal(META, &plain, &mut out);
    Part::new(Bytes::from(out))
}
