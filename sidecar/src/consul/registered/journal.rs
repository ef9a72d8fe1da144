//! The file of registrations: a JSON value on each line, what was registered and what was taken away, in order.
//!
//! Lines are added at the end. When those that were added are as long as what was there before (and 64 KiB at least, 8 MiB at
//! most), everything is written anew, as at the first change after a start and after a failure: in a file beside it, which
//! then takes its place. So a line costs what it is long, and once more for that. A last line without an end was being
//! written when the power went, and was acknowledged to nobody.
//!
//! A file of earlier versions is one value with everything in it; it is read as such.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use libmesh::files;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Requests, ServiceRequest};

/// So much may be added before everything is written anew, in bytes: at least, and at most.
const ADDED: (u64, u64) = (64 << 10, 8 << 20);

/// What a line says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// An instance was registered so.
    Service(Registration<ServiceRequest>),
    /// A check was registered so.
    Check(Registration<Box<RawValue>>),
    /// An instance is gone.
    NoService(String),
    /// A check is gone.
    NoCheck(String),
}

#[derive(Serialize, Deserialize)]
pub struct Registration<T> {
    id: String,
    request: T,
}

impl Line {
    pub fn service(id: String, request: ServiceRequest) -> Self {
        Self::Service(Registration { id, request })
    }

    pub fn check(id: String, request: Box<RawValue>) -> Self {
        Self::Check(Registration { id, request })
    }
}

impl Requests {
    /// Takes a line in; whether it changed anything. `of` tells which instance a check was registered with.
    pub fn take(&mut self, line: Line, of: &mut HashMap<String, String>) -> bool {
        match line {
            Line::Service(Registration { id, request }) => {
                let known = self.services.get(&id);
                let same = known.is_some_and(|known| {
                    known.body.get() == request.body.get() && known.checks == request.checks
                });
                let replaced = request
                    .checks
                    .iter()
                    .any(|check| self.checks.contains_key(check));
                if same && !replaced {
                    return false;
                }
                for check in known.iter().flat_map(|known| &known.checks) {
                    of.remove(check);
                }
                for check in &request.checks {
                    self.checks.remove(check);
                    of.insert(check.clone(), id.clone());
                }
                self.services.insert(id, request);
                true
            }
            Line::Check(Registration { id, request }) => {
                let known = self.checks.get(&id);
                if known.is_some_and(|known| known.get() == request.get()) {
                    return false;
                }
                self.checks.insert(id, request);
                true
            }
            Line::NoService(id) => {
                let Some(gone) = self.services.remove(&id) else {
                    return false;
                };
                for check in gone.checks {
                    of.remove(&check);
                }
                true
            }
            Line::NoCheck(id) => {
                let alone = self.checks.remove(&id).is_some();
                let service = of.remove(&id).and_then(|of| self.services.get_mut(&of));
                service.is_some_and(|service| service.checks.remove(&id)) || alone
            }
        }
    }

    /// All of it as lines.
    pub fn lines(&self) -> Vec<u8> {
        let services = self.services.iter();
        let services = services.map(|(id, request)| Line::service(id.clone(), request.clone()));
        let checks = self.checks.iter();
        let checks = checks.map(|(id, request)| Line::check(id.clone(), request.clone()));
        let mut text = Vec::new();
        for line in services.chain(checks) {
            serde_json::to_writer(&mut text, &line).expect("requests were read as JSON");
            text.push(b'\n');
        }
        text
    }
}

/// What the lines of a file come to.
pub fn read(text: &[u8]) -> io::Result<Requests> {
    let mut requests = Requests {
        services: BTreeMap::new(),
        checks: BTreeMap::new(),
    };
    let mut of = HashMap::new();
    for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            _ if !line.ends_with(b"\n") && number > 0 => {}
            Ok(line) => {
                requests.take(line, &mut of);
            }
            Err(error) if number > 0 => return Err(error.into()),
            Err(error) => match serde_json::from_slice::<Requests>(line) {
                Ok(all) => {
                    for (id, request) in all.services {
                        requests.take(Line::service(id, request), &mut of);
                    }
                    requests.checks = all.checks;
                }
                // The first line that was ever added was being written.
                Err(_) if error.is_eof() && !line.ends_with(b"\n") => {}
                Err(_) => return Err(error.into()),
            },
        }
    }
    Ok(requests)
}

/// Writes the file.
#[derive(Default)]
pub struct Journal {
    path: PathBuf,
    /// Open at its end; `None`: everything is written anew.
    file: Option<File>,
    /// How long it was when it was written anew, and how much was added since.
    size: u64,
    added: u64,
}

impl Journal {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            ..Self::default()
        }
    }

    /// Makes durable what `text` gives: everything (when it is asked for that), or the lines that wait.
    pub fn write(&mut self, text: impl FnOnce(bool) -> Vec<u8>) -> io::Result<()> {
        let full = self.added > self.size.clamp(ADDED.0, ADDED.1);
        let file = self.file.take().filter(|_| !full);
        let text = text(file.is_none());
        // Should anything fail, there is no file from here on: the lines are taken, and come with everything next time.
        let file = match file {
            Some(mut file) => {
                file.write_all(&text)?;
                file.sync_data()?;
                self.added += text.len() as u64;
                file
            }
            None => {
                files::write_private(&self.path, &text)?;
                (self.size, self.added) = (text.len() as u64, 0);
                OpenOptions::new().append(true).open(&self.path)?
            }
        };
        self.file = Some(file);
        Ok(())
    }
}
