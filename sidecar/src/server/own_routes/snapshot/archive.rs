//! A snapshot as clients of Consul expect one: a tar archive, packed with gzip, of `meta.json`, `state.bin` and the sums of
//! both in `SHA256SUMS`. `state.bin` is our own snapshot, sealed as ever.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read, Seek, Write},
    path::Path,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use ring::digest::{Context, Digest, SHA256, digest};
use serde_json::json;
use vault_kv::Vault;

use super::said;
use crate::server::records::hex;

const BLOCK: usize = 512;
/// What an archive that is looked at may hold unpacked, in bytes.
const UNPACKED_MAX: u64 = 1 << 30;

/// Writes an archive. Its `state.bin` is kept in `scratch` meanwhile, under no name: the length of a file comes first in a
/// tar archive.
pub fn write(vault: &Vault, scratch: &Path, out: &mut impl Write) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let state = tempfile::tempfile_in(scratch).map_err(failed)?;
    let mut state = Summed {
        inner: state,
        sums: Context::new(&SHA256),
        length: 0,
    };
    let info = vault.save_snapshot(&mut state).map_err(said)?;
    let meta = json!({
        "Version": 1,
        "ID": format!("{}-{}", info.head.index, info.created),
        "Index": info.head.index,
        "Term": 0,
        "Size": state.length,
        "Cluster": info.cluster_id,
    });
    let meta = meta.to_string().into_bytes();
    let sums = format!(
        "{}  meta.json\n{}  state.bin\n",
        hex(digest(&SHA256, &meta).as_ref()),
        hex(state.sums.finish().as_ref())
    );
    let mut packed = GzEncoder::new(out, Compression::fast());
    let written = (|| {
        entry(
            &mut packed,
            "meta.json",
            meta.len() as u64,
            &*meta,
            info.created,
        )?;
        state.inner.rewind()?;
        entry(
            &mut packed,
            "state.bin",
            state.length,
            state.inner,
            info.created,
        )?;
        entry(
            &mut packed,
            "SHA256SUMS",
            sums.len() as u64,
            sums.as_bytes(),
            info.created,
        )?;
        packed.write_all(&[0; 2 * BLOCK])?;
        packed.finish()
    })();
    written.map(drop).map_err(failed)
}

/// A file that knows the sum of what was written to it.
struct Summed<W> {
    inner: W,
    sums: Context,
    length: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sums.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// One file, after the `ustar` format of POSIX.
fn entry(
    out: &mut impl Write,
    name: &str,
    length: u64,
    content: impl Read,
    time: i64,
) -> io::Result<()> {
    let mut header = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, &format!("{:011o}\0", time.max(0)));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&header)?;
    let copied = io::copy(&mut content.take(length), out)?;
    if copied != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rest = (BLOCK - (length % BLOCK as u64) as usize) % BLOCK;
    out.write_all(&[0; BLOCK][..rest])
}

/// Looks whether an archive is whole: its files are there, and are what the sums say. The error has Consul's words.
pub fn check(packed: &[u8]) -> Result<(), String> {
    // A header of gzip has ten bytes.
    if packed.len() < 10 {
        return Err(unpacked(io::ErrorKind::UnexpectedEof.into()));
    }
    check_files(BufReader::new(GzDecoder::new(packed).take(UNPACKED_MAX)))
}

#[allow(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn unpacked(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "failed to decompress snapshot: unexpected EOF".to_owned(),
        _ => format!("failed to decompress snapshot: {error}"),
    }
}

/// The same for what was packed.
pub fn check_files(mut input: impl Read) -> Result<(), String> {
    let mut sums = BTreeMap::new();
    let mut said = None;
    while let Some((name, length)) = next(&mut input).map_err(unpacked)? {
        let length = length
            .ok_or("failed to read snapshot: failed reading snapshot: a length is no number")?;
        match name.as_str() {
            "SHA256SUMS" => {
                let mut text = String::new();
                let mut content = (&mut input).take(length.min(4096));
                content.read_to_string(&mut text).map_err(unpacked)?;
                said = Some(text);
            }
            "meta.json" | "state.bin" => {
                sums.insert(name, sum_of(&mut input, length).map_err(unpacked)?);
            }
            other => {
                return Err(format!(
                    "failed to read snapshot: unexpected file {other:?} in snapshot"
                ));
            }
        }
        let rest = (BLOCK as u64 - length % BLOCK as u64) % BLOCK as u64;
        io::copy(&mut (&mut input).take(rest), &mut io::sink()).map_err(unpacked)?;
    }
    // What follows is of no interest, but gzip's own sum is at the very end.
    io::copy(&mut input, &mut io::sink()).map_err(unpacked)?;
    let said = said.ok_or("failed to read snapshot: failed verifying: there is no SHA256SUMS")?;
    for name in ["meta.json", "state.bin"] {
        let sum = sums
            .get(name)
            .ok_or_else(|| format!("failed to read snapshot: there is no {name}"))?;
        let line = format!("{}  {name}", hex(sum.as_ref()));
        if !said.lines().any(|said| said == line) {
            return Err(format!(
                "failed to read snapshot: hash check failed for {name:?}"
            ));
        }
    }
    Ok(())
}

/// Name and length of the next file; the length is `None` if it is no number.
fn next(input: &mut impl Read) -> io::Result<Option<(String, Option<u64>)>> {
    let mut header = [0; BLOCK];
    input.read_exact(&mut header)?;
    if header.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let text = |bytes: &[u8]| {
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
    };
    let length = u64::from_str_radix(&text(&header[124..136]), 8).ok();
    Ok(Some((text(&header[..100]), length)))
}

fn sum_of(input: &mut impl Read, length: u64) -> io::Result<Digest> {
    let mut sums = Summed {
        inner: io::sink(),
        sums: Context::new(&SHA256),
        length: 0,
    };
    io::copy(&mut input.take(length), &mut sums)?;
    match sums.length == length {
        true => Ok(sums.sums.finish()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A small archive, packed and not, for tests and fuzzing. The sum that it has of `state.bin` is that of `summed`.
pub fn sample(state: &[u8], summed: &[u8]) -> io::Result<[Vec<u8>; 2]> {
    let meta = b"{}";
    let sums = format!(
        "{}  meta.json\n{}  state.bin\n",
        hex(digest(&SHA256, meta).as_ref()),
        hex(digest(&SHA256, summed).as_ref())
    );
    let mut files = Vec::new();
    for (name, content) in [
        ("meta.json", &meta[..]),
        ("state.bin", state),
        ("SHA256SUMS", sums.as_bytes()),
    ] {
        entry(&mut files, name, content.len() as u64, content, 1)?;
    }
    files.extend([0; 2 * BLOCK]);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&files)?;
    Ok([packed.finish()?, files])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(state: &[u8], summed: &[u8]) -> Vec<u8> {
        let [packed, _] = sample(state, summed).unwrap();
        packed
    }

    #[test]
    fn only_a_whole_archive_is_good() {
        let state = vec![7; 1300];
        let good = archive(&state, &state);
        assert_eq!(check(&good), Ok(()));
        let bad = check(&archive(&state, b"other")).unwrap_err();
        assert!(bad.contains("hash check failed for \"state.bin\""), "{bad}");
        assert_eq!(
            check(b"garbage").unwrap_err(),
            "failed to decompress snapshot: unexpected EOF"
        );
        for cut in 0..good.len() - 1 {
            assert!(check(&good[..cut]).is_err(), "cut at {cut}");
        }
    }
}
