//! Secrets on their way in: stdin, a file, or a prompt without echo — and on their way out: a file of mode
//! 0600 or the terminal, never a pipe by accident.

use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::{Failure, output};

/// Largest value taken from stdin or a file, in bytes.
const MAX_INPUT: u64 = 32 << 20;

/// Reads a secret: `-` is stdin, `@FILE` a file, no source a prompt. Anything else would have been visible
/// in the process list and is refused.
pub fn secret(what: &str, source: Option<&str>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    match source {
        Some("-") => stdin(what),
        Some(source) => match source.strip_prefix('@') {
            Some(path) => file(what, Path::new(path)),
            None => Err(Failure::usage(format!(
                "{what} is a secret and must not stand on the command line, where other users and the \
                 shell's history see it"
            ))
            .next("give `-` for stdin or `@FILE` for a file's content")),
        },
        None if io::stdin().is_terminal() => prompt(what),
        None => stdin(what),
    }
}

/// Reads a secret that is one line: a trailing newline does not belong to it.
pub fn secret_line(what: &str, source: Option<&str>) -> Result<Zeroizing<String>, Failure> {
    let bytes = secret(what, source)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Failure::usage(format!("{what} is not UTF-8 text")))?;
    Ok(Zeroizing::new(
        text.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

/// Reads secrets of one line each: every line of `-` or `@FILE`, or as many prompts as are `wanted`.
pub fn secret_lines(
    what: &str,
    source: Option<&str>,
    wanted: usize,
) -> Result<Vec<Zeroizing<String>>, Failure> {
    if source.is_none() && io::stdin().is_terminal() {
        return (0..wanted).map(|_| secret_line(what, None)).collect();
    }
    let bytes = secret(what, source)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Failure::usage(format!("{what} is not UTF-8 text")))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(|line| Zeroizing::new(line.to_owned())).collect())
}

/// Everything on stdin.
pub fn stdin(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    bounded(what, io::stdin().lock())
}

/// A file's content.
pub fn file(what: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let file = fs::File::open(path).map_err(|error| {
        Failure::failed(format!(
            "cannot read {what} from {}: {error}",
            path.display()
        ))
    })?;
    bounded(what, file)
}

fn bounded(what: &str, source: impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::new());
    source
        .take(MAX_INPUT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::failed(format!("cannot read {what}: {error}")))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(Failure::failed(format!(
            "{what} is over {} MiB",
            MAX_INPUT >> 20
        )));
    }
    Ok(bytes)
}

/// Asks on the terminal without showing what is typed.
fn prompt(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: io::Error| Failure::failed(format!("cannot ask for {what}: {error}"));
    let quiet = Quiet::new().map_err(failed)?;
    eprint!("{what}: ");
    io::stderr().flush().map_err(failed)?;
    let mut typed = Zeroizing::new(Vec::new());
    for byte in io::stdin().lock().bytes() {
        match byte.map_err(failed)? {
            b'\r' | b'\n' => break,
            INTERRUPT | END if typed.is_empty() => {
                return Err(Failure::failed(format!("{what} was not given")));
            }
            INTERRUPT => return Err(Failure::failed(format!("{what} was not given"))),
            END => break,
            BACKSPACE | DELETE => drop(typed.pop()),
            ERASE_LINE => typed.clear(),
            byte => typed.push(byte),
        }
    }
    drop(quiet);
    eprintln!();
    Ok(typed)
}

const INTERRUPT: u8 = 3;
const END: u8 = 4;
const BACKSPACE: u8 = 8;
const ERASE_LINE: u8 = 21;
const DELETE: u8 = 127;

/// The terminal without echo, line editing or signals, until dropped: Ctrl-C must not leave it silent.
struct Quiet(Termios);

impl Quiet {
    fn new() -> io::Result<Quiet> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut quiet = before.clone();
        quiet
            .local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.0);
    }
}

/// Hands out a secret: into a new file of mode 0600, or onto the terminal. Never into a pipe by accident.
pub fn deliver(what: &str, secret: &str, out: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = out else {
        check_deliverable(what, out)?;
        return output::line(secret);
    };
    let failed = |error: io::Error| {
        Failure::failed(format!(
            "cannot write {what} to {}: {error}",
            path.display()
        ))
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .and_then(|()| writeln!(file, "{secret}"))
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    eprintln!("{what} written to {} (mode 0600)", path.display());
    Ok(())
}

/// Says before anything is made whether [`deliver`] will be able to hand it out.
pub fn check_deliverable(what: &str, out: Option<&Path>) -> Result<(), Failure> {
    match out {
        Some(path) if path.exists() => Err(Failure::failed(format!(
            "{} exists already; {what} would overwrite it",
            path.display()
        ))
        .next("give another --out FILE")),
        // By trying: what cannot be handed out must not be made.
        Some(path) => {
            let mut options = OpenOptions::new();
            let tried = options.write(true).create_new(true).mode(0o600).open(path);
            let tried = tried.and_then(|_| fs::remove_file(path));
            tried.map_err(|error| {
                Failure::failed(format!(
                    "{what} cannot be written to {}: {error}",
                    path.display()
                ))
                .next("give another --out FILE")
            })
        }
        None if !io::stdout().is_terminal() => Err(Failure::usage(format!(
            "{what} is a secret and stdout is not a terminal"
        ))
        .next("add --out FILE: it is written with mode 0600")),
        _ => Ok(()),
    }
}
