//! Verification of a log without any key and without the lock: it also runs beside a server.

use std::{ops::ControlFlow, path::Path};

use super::{
    Entry, StoreError,
    segment::{self, Chain},
};

/// Walks the log of the store in `dir` from its first entry; `check` says what else does not hold.
///
/// An unfinished write at the end, as a crash or a running server leaves it, is left out of account.
///
/// # Errors
/// [`StoreError::Corrupt`] with the first entry that does not hold, [`StoreError::Io`].
pub(crate) fn verify_dir(
    dir: &Path,
    mut check: impl FnMut(&Entry) -> Result<(), &'static str>,
) -> Result<(), StoreError> {
    let log = dir.join("log");
    let spans = segment::spans(&log)?;
    segment::walk(&spans, &mut Chain::start(), |found| {
        match check(&found.entry) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(what) => Err(StoreError::Corrupt {
                index: found.entry.index,
                segment: segment::segment_path(&log, found.first),
                offset: found.offset,
                what,
            }),
        }
    })?;
    Ok(())
}
