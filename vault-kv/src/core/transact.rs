//! Changes that depend on what is there: read, decide, and write only if what was read still stands.
//!
//! First on the caller's thread, beside all others: what was looked at is expected to be unchanged when the change is
//! put in order, and if it is not, the decision is made again. A decision that was overtaken a few times, or that
//! looks at more than single records, is made by the writing thread, where nothing comes between: no decision waits for
//! ever. It holds up the other writers for as long as it takes, and its entry shares its `fdatasync` with nobody.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Change, Core, Error, Job, Meta, Op, Shared, Value, Work};

/// How often a decision is overtaken before it is made where nothing can overtake it.
const TRIES: usize = 3;

/// What a decision sees.
pub(crate) struct View<'a> {
    shared: &'a Shared,
    /// Records that were looked at, with the index that they had.
    seen: BTreeMap<String, Option<u64>>,
    alone: bool,
}

impl View<'_> {
    /// A record.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub(crate) fn read(&mut self, path: &str) -> Result<Option<Value>, Error> {
        // Not by the names first: those are told of a change a moment after readers can see it, and nobody must find
        // a key missing here that he has read already.
        let value = self.shared.read(path)?;
        if !self.alone {
            let index = value.as_ref().map(|value| value.modified);
            self.seen.entry(path.to_owned()).or_insert(index);
        }
        Ok(value)
    }

    /// Every name that starts with `prefix`, in order. What a decision that is not made alone sees of it may be old.
    ///
    /// # Errors
    /// Sealed.
    pub(crate) fn scan(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.shared.scan(prefix)
    }

    /// The index at which a record was made. Of one that was looked at; otherwise as old as [`View::scan`].
    ///
    /// # Errors
    /// Sealed.
    pub(crate) fn created(&self, path: &str) -> Result<Option<u64>, Error> {
        self.shared
            .with_names(|names| names.get(path).map(|stamp| stamp.created))
    }

    fn still_stands(&self) -> Result<bool, Error> {
        self.shared.with_names(|names| {
            self.seen
                .iter()
                .all(|(path, index)| names.get(path).map(|stamp| stamp.modified) == *index)
        })
    }
}

impl Core {
    /// Carries out what `decide` decides, as if nothing else happened meanwhile; its result, and the index of the entry if
    /// there is one. `alone`: it looks at more than single records. It may be called several times, and must not
    /// take long when alone.
    ///
    /// # Errors
    /// Those of `decide`, and as [`Core::commit`].
    pub(crate) async fn transact<T, F>(
        &self,
        meta: Meta,
        alone: bool,
        decide: F,
    ) -> Result<(T, Option<u64>), Error>
    where
        T: Send + 'static,
        F: Fn(&mut View<'_>) -> Result<(T, Vec<Op>), Error> + Send + 'static,
    {
        let tries = if alone { 0 } else { TRIES };
        for _ in 0..tries {
            let (decided, change) = {
                let mut view = View {
                    shared: &self.shared,
                    seen: BTreeMap::new(),
                    alone: false,
                };
                let (decided, ops) = decide(&mut view)?;
                if ops.is_empty() {
                    if view.still_stands()? {
                        return Ok((decided, None));
                    }
                    continue;
                }
                let expect = view.seen.into_iter().collect();
                let meta = meta.clone();
                (decided, Change { meta, ops, expect })
            };
            match self.commit(change).await {
                Ok(index) => return Ok((decided, Some(index))),
                // Somebody was faster: look again.
                Err(Error::CasMismatch) => {}
                Err(error) => return Err(error),
            }
        }
        let (tell, told) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let decide = move |shared: &Shared| match decide_alone(shared, meta, &decide) {
            Ok((decided, change)) => {
                // The caller may have gone away; it happens all the same.
                let _ = tell.send(Ok((decided, change.is_some())));
                change.map(|change| Job { change, reply })
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                None
            }
        };
        self.jobs
            .send(Work::Alone(Box::new(decide)))
            .map_err(|_| Error::Sealed)?;
        let (decided, writes) = told.await.map_err(|_| Error::Sealed)??;
        if !writes {
            return Ok((decided, None));
        }
        let index = answer.await.map_err(|_| Error::Sealed)??;
        Ok((decided, Some(index)))
    }
}

type Decided<T> = (T, Option<super::Prepared>);

fn decide_alone<T>(
    shared: &Shared,
    meta: Meta,
    decide: &impl Fn(&mut View<'_>) -> Result<(T, Vec<Op>), Error>,
) -> Result<Decided<T>, Error> {
    let mut view = View {
        shared,
        seen: BTreeMap::new(),
        alone: true,
    };
    let (decided, ops) = decide(&mut view)?;
    if ops.is_empty() {
        return Ok((decided, None));
    }
    let expect = Vec::new();
    let change = shared.prepare(Change { meta, ops, expect })?;
    Ok((decided, Some(change)))
}
