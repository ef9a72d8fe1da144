//! Looks for secrets in this process's own memory (Linux): for the tests that say there are none.
//!
//! What is looked for is kept XORed with a mask, so that the search does not find itself.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

const MASK: u8 = 0xa5;
/// What is looked at at once, whether there is anything but zeros.
const PAGE: usize = 4096;

struct Needle {
    name: String,
    masked: Vec<u8>,
}

/// Where something was found.
#[derive(Debug)]
pub struct Found {
    /// What.
    pub name: String,
    /// The line of `/proc/self/smaps`.
    pub mapping: String,
    /// The mapping is locked and left out of dumps.
    pub protected: bool,
}

/// What to look for.
#[derive(Default)]
pub struct Needles(Vec<Needle>);

impl Needles {
    /// Both halves of a key: one alone in a register or on the stack is too much, too.
    pub fn key(&mut self, name: &str, key: &[u8]) {
        for half in key.chunks(16).filter(|half| half.len() == 16) {
            self.add(name, half);
        }
    }

    /// At least 16 bytes.
    ///
    /// # Panics
    /// When they are fewer: they would be found by chance.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        assert!(
            secret.len() >= 16,
            "{name} is too short to be told from chance"
        );
        self.0.push(Needle {
            name: name.to_owned(),
            masked: secret.iter().map(|byte| byte ^ MASK).collect(),
        });
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Every place in writable memory.
    ///
    /// # Panics
    /// When `/proc` does not tell.
    pub fn find(&self) -> Vec<Found> {
        // Two bytes: one alone is in memory everywhere, and a key may begin with the zero that most of it is.
        let mut begins = vec![Vec::new(); 1 << 16];
        let mut longest = 0;
        for needle in &self.0 {
            let begin = [needle.masked[0] ^ MASK, needle.masked[1] ^ MASK];
            begins[usize::from(u16::from_ne_bytes(begin))].push(needle);
            longest = needle.masked.len().max(longest);
        }
        let memory = File::open("/proc/self/mem").expect("a process may read its own memory");
        let mut found = Vec::new();
        let mut bytes = Vec::new();
        for mapping in mappings() {
            bytes.resize(mapping.length, 0);
            // Gone meanwhile, or a page that cannot be read: the kernel's own.
            let Ok(read) = memory.read_at(&mut bytes, mapping.start) else {
                continue;
            };
            let bytes = &bytes[..read];
            let mut at = 0;
            while at + 1 < read {
                // Nothing but its end can be the beginning of a needle.
                if bytes[at..].starts_with(&[0; PAGE]) {
                    at += PAGE - longest.min(PAGE - 1);
                    continue;
                }
                let end = read.min(at + PAGE);
                while at < end && at + 1 < read {
                    let begin = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
                    for needle in &begins[usize::from(begin)] {
                        let there = bytes[at..].iter().zip(&needle.masked);
                        if read - at >= needle.masked.len()
                            && there.clone().all(|(a, b)| a ^ b == MASK)
                        {
                            found.push(Found {
                                name: needle.name.clone(),
                                mapping: mapping.line.clone(),
                                protected: mapping.protected,
                            });
                        }
                    }
                    at += 1;
                }
            }
        }
        found
    }
}

struct Mapping {
    line: String,
    start: u64,
    length: usize,
    protected: bool,
}

/// Every writable mapping, from `/proc/self/smaps`.
fn mappings() -> Vec<Mapping> {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("a process may read its own maps");
    let mut all: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |wanted| flags.split_whitespace().any(|flag| flag == wanted);
            if let Some(last) = all.last_mut() {
                last.protected = has("lo") && has("dd");
            }
        }
        let Some((range, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let hex = |text| u64::from_str_radix(text, 16);
        let (Ok(start), Ok(end)) = (hex(start), hex(end)) else {
            continue;
        };
        all.push(Mapping {
            line: line.to_owned(),
            start,
            length: match rest.starts_with("rw") {
                true => usize::try_from(end - start).unwrap_or(0),
                false => 0,
            },
            protected: false,
        });
    }
    all.retain(|mapping| mapping.length > 0);
    all
}
