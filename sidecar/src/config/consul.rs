//! Consul's own agent configuration, so that a directory of it moves over as it is.
//!
//! Files become one document, as Consul merges them (tables merge, lists join, of everything else the later file
//! wins). Every key of Consul's is known: what has a counterpart becomes one of our sections, laid below the TOML
//! files; definitions of services and checks stay as they are and are read by what reads registrations over HTTP;
//! what means nothing here is named once; what would be dangerous to leave out, and what Consul does not know, is
//! refused. Messages name the file and the key, and quote no value that may be a secret.

mod definitions;
mod keys;
mod schema;
mod source;
mod translate;

use std::path::PathBuf;

use super::tree::{Place, Problem, Table};

pub use definitions::Definition;

/// What was found besides our own sections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsulConfig {
    /// `service`, `services`; the id is the instance's.
    pub services: Vec<Definition>,
    /// `check`, `checks`; the id is the check's.
    pub checks: Vec<Definition>,
    /// Keys that mean nothing here, sorted.
    pub meaningless: Vec<String>,
}

/// Reads files; what they say as our own sections, and the rest.
pub(super) fn read(files: &[PathBuf], problems: &mut Vec<Problem>) -> (Table, ConsulConfig) {
    let mut found = schema::Found::default();
    let mut document = Table::default();
    for file in files {
        let place = file.display().to_string();
        let read = source::read(file).map_err(|message| Problem {
            place: Place::named(&place),
            message,
        });
        match read {
            Ok(fields) => found.document(&place, fields, &mut document, problems),
            Err(problem) => problems.push(problem),
        }
    }
    let sections = translate::sections(document, &mut found.meaningless, problems);
    let mut rest = definitions::sort(found.definitions, problems);
    rest.meaningless = found.meaningless.into_iter().collect();
    (sections, rest)
}

#[cfg(test)]
mod tests;
