//! A wire tap for the PostgreSQL example: stands between two sidecars, passes every byte on, and keeps a copy.
//!
//! `tap record LISTEN TARGET FOLDER` relays until its input ends; `tap check FOLDER FORBIDDEN` then proves what
//! crossed: TLS 1.3 records and nothing else, and none of the texts in the file FORBIDDEN (one a line). It knows
//! nothing of Mesh and uses none of its crates, so that it cannot be fooled by them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

/// Content types of TLS records that TLS 1.3 sends: change cipher spec (for middleboxes), alert, handshake, data.
const TYPES: [u8; 4] = [20, 21, 22, 23];
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["record", listen, target, folder] => record(listen, target, folder.into()),
        ["check", folder, forbidden] => check(Path::new(folder), Path::new(forbidden)),
        _ => bail!("usage: tap record LISTEN TARGET FOLDER | tap check FOLDER FORBIDDEN"),
    }
}

fn record(listen: &str, target: &str, folder: PathBuf) -> Result<()> {
    let listener =
        TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let target = target.to_owned();
    thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let copy = |way| folder.join(format!("{number:03}.{way}"));
            if let Err(error) =
                client.and_then(|client| tap(client, &target, &copy("up"), &copy("down")))
            {
                eprintln!("tap: {error}");
            }
        }
    });
    // Ends with whoever started it.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn tap(client: TcpStream, target: &str, up: &Path, down: &Path) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    for (from, to, copy) in [
        (client.try_clone()?, server.try_clone()?, up),
        (server, client, down),
    ] {
        let copy = File::create(copy)?;
        thread::spawn(move || pass_on(from, to, copy));
    }
    Ok(())
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, mut copy: File) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return to.shutdown(Shutdown::Write);
        }
        copy.write_all(&buffer[..n])?;
        to.write_all(&buffer[..n])?;
    }
}

fn check(folder: &Path, forbidden: &Path) -> Result<()> {
    let forbidden = fs::read_to_string(forbidden)
        .with_context(|| format!("cannot read {}", forbidden.display()))?;
    let forbidden: Vec<&str> = forbidden.lines().filter(|line| !line.is_empty()).collect();
    ensure!(
        !forbidden.is_empty(),
        "nothing is forbidden: this check would prove nothing"
    );
    let (mut connections, mut bytes, mut records) = (0, 0, 0);
    let mut ways: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<_>>()?;
    ways.sort();
    for way in ways {
        let data = fs::read(&way)?;
        let name = way.display();
        for text in &forbidden {
            // The text itself is not repeated: it may be the password.
            let seen = data
                .windows(text.len())
                .any(|window| window == text.as_bytes());
            ensure!(
                !seen,
                "{name} holds one of the texts that must not cross in the clear"
            );
        }
        let (count, protected) =
            read_records(&data).with_context(|| format!("{name} is not TLS 1.3"))?;
        let server = way.extension().is_some_and(|way| way == "down");
        if server && !data.is_empty() {
            ensure!(
                chose_tls13(&data),
                "{name}: the server did not choose TLS 1.3"
            );
            ensure!(protected > 0, "{name}: nothing was sent under protection");
            connections += 1;
        }
        bytes += data.len();
        records += count;
    }
    ensure!(
        connections > 0,
        "nothing crossed: this check would prove nothing"
    );
    println!(
        "{connections} connections, {bytes} bytes, {records} records: all TLS 1.3, and nothing of ours readable in them"
    );
    Ok(())
}

/// How many records there are, and how many of them are protected. Only the first message may be a handshake in the clear.
fn read_records(mut data: &[u8]) -> Result<(usize, usize)> {
    let (mut count, mut protected) = (0, 0);
    while !data.is_empty() {
        let [kind, 3, minor, high, low, rest @ ..] = data else {
            bail!("record {count} has no TLS header")
        };
        ensure!(
            TYPES.contains(kind) && *minor <= 3,
            "record {count} has no TLS header"
        );
        ensure!(
            *kind != HANDSHAKE || count == 0,
            "record {count} is a handshake message in the clear"
        );
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        ensure!(length <= (16 << 10) + 256, "record {count} is too long");
        count += 1;
        protected += usize::from(*kind == APPLICATION_DATA);
        // The last record may have been cut by whoever closed the connection.
        data = rest.get(length..).unwrap_or_default();
    }
    Ok((count, protected))
}

/// Whether the ServerHello at the start selects TLS 1.3 (extension `supported_versions`, RFC 8446 section 4.2.1).
fn chose_tls13(data: &[u8]) -> bool {
    // Record header 5, message header 4, version 2, random 32, then the session id.
    let select = || {
        ensure!(data.first() == Some(&HANDSHAKE) && data.get(5) == Some(&2));
        let session = usize::from(*data.get(43).context("short")?);
        // Cipher suite 2, compression 1, length of the extensions 2.
        let mut rest = data.get(44 + session + 5..).context("short")?;
        while let [a, b, c, d, tail @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*c, *d]));
            let value = tail.get(..length).context("short")?;
            if u16::from_be_bytes([*a, *b]) == 43 {
                return Ok(value == [3, 4]);
            }
            rest = &tail[length..];
        }
        Ok(false)
    };
    select().unwrap_or(false)
}
