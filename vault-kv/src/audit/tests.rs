use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::*;

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

fn sink(path: impl Into<PathBuf>) -> AuditSink {
    AuditSink {
        name: "file".into(),
        path: path.into(),
    }
}

#[tokio::test]
async fn lines_are_appended_to_a_private_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    for n in 0..2 {
        let audit = Audit::open(&[sink(&path)]).unwrap();
        audit.write(|| line(&json!({ "n": n }))).await.unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"n\":0}\n{\"n\":1}\n");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Audit::open(&[sink(&path)]).err().unwrap();
    assert!(error.to_string().contains("chmod 600"), "{error}");
    assert!(matches!(
        Audit::open(&[sink(dir.path().join("no/such/dir/x"))]),
        Err(AuditError::Open { .. })
    ));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_failing_sink_fails_the_request_unless_another_takes_the_line() {
    let full = sink("/dev/full");
    let audit = Audit::open(std::slice::from_ref(&full)).unwrap();
    let error = audit.write(|| line(&json!({}))).await.unwrap_err();
    assert_eq!(error.status().as_u16(), 503);
    assert!(error.to_string().contains("No space left"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(&[full, sink(dir.path().join("a"))]).unwrap();
    audit.write(|| line(&json!({}))).await.unwrap();
}

/// A pipe that nobody reads blocks Vault for ever.
#[tokio::test]
async fn a_sink_that_does_not_drain_never_hangs_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // Held open for reading and never read.
    let _reader = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let audit = Audit::open(&[sink(&path)]).unwrap();
    let long = line(&json!({ "x": "y".repeat(8192) }));
    let fill = async {
        for _ in 0..1000 {
            if let Err(error) = audit.write(|| long.clone()).await {
                return error;
            }
        }
        panic!("a pipe that is not read must fill up");
    };
    let error = timeout(PATIENCE * 5, fill).await.unwrap();
    assert_eq!(error.status().as_u16(), 503);
}

#[tokio::test]
async fn a_renamed_file_is_followed_by_a_new_one_at_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
    let audit = Audit::open(&[sink(&path)]).unwrap();
    audit.write(|| line(&json!({ "n": 1 }))).await.unwrap();
    fs::rename(&path, &old).unwrap();
    audit.write(|| line(&json!({ "n": 2 }))).await.unwrap();
    audit.reopen().await.unwrap();
    audit.write(|| line(&json!({ "n": 3 }))).await.unwrap();
    assert_eq!(fs::read_to_string(&old).unwrap(), "{\"n\":1}\n{\"n\":2}\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"n\":3}\n");

    // What cannot be opened is named, and the file that is open goes on.
    fs::rename(&path, dir.path().join("audit.log.2")).unwrap();
    fs::create_dir(&path).unwrap();
    let error = audit.reopen().await.unwrap_err();
    assert!(matches!(error, AuditError::Reopen { .. }), "{error}");
    audit.write(|| line(&json!({ "n": 4 }))).await.unwrap();
    let second = fs::read_to_string(dir.path().join("audit.log.2")).unwrap();
    assert_eq!(second, "{\"n\":3}\n{\"n\":4}\n");
}

#[test]
fn values_are_hashed_and_keys_stay() {
    let hasher = Hasher::new(b"salt");
    let value = json!({"password": "hunter2", "n": 7, "list": ["hunter2", true, null], "deep": {"k": "hunter2"}});
    let out = serde_json::to_value(hasher.hashed(&value, &[])).unwrap();
    let text = out.to_string();
    assert!(!text.contains("hunter2"));
    let hash = hasher.text("hunter2");
    assert_eq!(hash.len(), "hmac-sha256:".len() + 64);
    assert_eq!(
        out,
        json!({"password": hash, "n": 7, "list": [hash, true, null], "deep": {"k": hash}})
    );
    assert_ne!(Hasher::new(b"other").text("hunter2"), hash);
}
