//! What the public interface must not show.

use std::{fs, path::Path};

/// Names of types of rustls, foca, hyper and the crates between, as they would stand in a signature.
const FOREIGN: [&str; 17] = [
    "rustls::",
    "foca::",
    "hyper::",
    "hyper_util::",
    "http_body_util::",
    "x509_parser::",
    "rcgen::",
    " ring::",
    "ServerConfig",
    "ClientConfig",
    "CertifiedKey",
    "CertificateDer",
    "TlsStream",
    "TlsAcceptor",
    "TlsConnector",
    "HeaderMap",
    "Incoming",
];

/// Signatures and fields that are public (to whoever can name their module) and name a foreign type.
fn leaks(file: &Path, found: &mut Vec<String>) {
    let source = fs::read_to_string(file).unwrap();
    let mut signature = String::new();
    for line in source.lines().map(str::trim) {
        if line.starts_with("pub ") || !signature.is_empty() {
            signature.push_str(line);
        }
        // A signature goes on over lines until its body, a field or constant until its end.
        if signature.ends_with(['{', ';', ','])
            && signature.matches('(').count() <= signature.matches(')').count()
        {
            if FOREIGN.iter().any(|name| signature.contains(name)) {
                found.push(format!("{}: {signature}", file.display()));
            }
            signature.clear();
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            leaks(&path, found);
        }
    }
}

#[test]
fn no_signature_names_a_type_of_the_crates_underneath() {
    let mut found = Vec::new();
    walk(
        &Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src"),
        &mut found,
    );
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_leak_would_be_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.rs");
    let source = "pub fn config(\n    &self,\n    alpn: &[u8],\n) -> Arc<ServerConfig> {\n}\npub(crate) fn x(a: rustls::Error) {\n}\n";
    fs::write(&file, source).unwrap();
    let mut found = Vec::new();
    walk(folder.path(), &mut found);
    assert_eq!(found.len(), 1, "{found:#?}");
}
