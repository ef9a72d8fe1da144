//! Decoders of outside bytes, for fuzzing and for the test that replays what it began with.

use crate::{consul::events, server::own_routes::snapshot::archive};

/// What an agent tells another of user events. Whether it is such a message.
pub fn event_message(bytes: &[u8]) -> bool {
    events::understands(bytes)
}

/// A snapshot as Consul's clients have it. Whether it is whole.
pub fn snapshot_archive(bytes: &[u8]) -> bool {
    archive::check(bytes).is_ok()
}

/// The same before it is packed.
pub fn snapshot_files(bytes: &[u8]) -> bool {
    archive::check_files(bytes).is_ok()
}

/// The first corpora, by target and name.
#[allow(clippy::missing_panics_doc, reason = "it writes to memory")]
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let [event, gone] = events::samples();
    let [packed, files] = archive::sample(b"state", b"state").expect("writing to memory");
    vec![
        ("event_message", "event", event),
        ("event_message", "gone", gone),
        ("snapshot_archive", "packed", packed),
        ("snapshot_archive", "files", files),
    ]
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Every seed as it is, cut off after every byte, and with every byte changed: nothing may panic.
    #[tokio::test]
    async fn the_corpora_panic_nowhere() {
        let corpus = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
            .join("../fuzz/corpus");
        type Target = fn(&[u8]) -> bool;
        let targets: [(&str, Target); 2] = [
            ("event_message", super::event_message),
            ("snapshot_archive", |bytes| {
                super::snapshot_archive(bytes) | super::snapshot_files(bytes)
            }),
        ];
        for (name, target) in targets {
            for seed in fs::read_dir(corpus.join(name)).unwrap() {
                let path = seed.unwrap().path();
                let seed = fs::read(&path).unwrap();
                assert!(target(&seed), "{}", path.display());
                for at in 0..seed.len() {
                    target(&seed[..at]);
                    let mut changed = seed.clone();
                    changed[at] ^= 0xff;
                    target(&changed);
                }
            }
        }
    }
}
