//! `mesh operator snapshot`

use std::{
    fs::{self, File},
    io::{self, BufReader, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use clap::Subcommand;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use vault_kv::{Inspected, SnapshotError, SnapshotInfo};

use super::hex;
use crate::cli::{Failure, Global};

/// The longest wait for the next piece: the server reads its whole log before the first one.
const PATIENCE: Duration = Duration::from_secs(600);

/// Save the whole store in one file, look at such a file, make a store of it. It is sealed as the store is: it is unsealed
/// with the same shares or key file, and with nothing else.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Save the store of a running server, with its history. Needs the right `read` on `mesh/snapshot`.
    Save {
        /// Written with mode 0600, and there only when it is whole and was checked.
        file: PathBuf,
        /// Put it in the place of a file that is there.
        #[arg(long)]
        force: bool,
    },
    /// Check a snapshot and show what is in it. Needs neither server nor key. Exit code 1: it is damaged.
    Inspect {
        /// The snapshot.
        file: PathBuf,
    },
    /// Make a store of a snapshot, for a server that is stopped or new. Needs neither server nor key. Exit code 1: the
    /// snapshot is damaged or another cluster's, or the directory is not empty; nothing was changed then.
    Restore {
        /// The snapshot.
        file: PathBuf,
        /// The directory that the store is to have (`server.store`, else `store` in `node.data_dir`): empty, or not
        /// there yet.
        #[arg(long, value_name = "STORE")]
        dir: PathBuf,
        /// Only if it is of this cluster, as `inspect` shows it.
        #[arg(long, value_name = "ID")]
        cluster: Option<String>,
    },
}

impl Snapshot {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Snapshot::Save { file, force } => save(global, &file, force).await,
            Snapshot::Inspect { file } => {
                let inspected = inspect(open(&file)?).map_err(|error| unusable(&file, error))?;
                show(global, &file, &inspected)
            }
            Snapshot::Restore { file, dir, cluster } => {
                restore(global, &file, &dir, cluster.as_deref())
            }
        }
    }
}

async fn save(global: &Global, path: &Path, force: bool) -> Result<(), Failure> {
    check_place(path, force)?;
    let what = "cannot save a snapshot";
    let cannot =
        |error: io::Error| Failure::failed(format!("{what} as {}: {error}", path.display()));
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(".mesh-snapshot-")
        .permissions(fs::Permissions::from_mode(0o600));
    let mut file = builder.tempfile_in(folder).map_err(cannot)?;
    let client = global.addresses.vault()?.patient(PATIENCE);
    let answer = client
        .download("/v1/mesh/snapshot", |piece| {
            let written = file.write_all(piece);
            written.map_err(|error| {
                let text = format!("{what} as {}: {error}", path.display());
                io::Error::new(error.kind(), text)
            })
        })
        .await?;
    answer.ok(what)?;
    let inspected = checked(&mut file).map_err(|error| match error {
        SnapshotError::Io(error) => cannot(error),
        error => Failure::failed(format!(
            "{what}: what came from the server does not hold: {error}"
        )),
    })?;
    put_in_place(file, path, force).map_err(cannot)?;
    // The name as well is to outlive a power cut.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(cannot)?;
    show(global, path, &inspected)
}

/// Says before anything is asked for whether the file may come to be there.
fn check_place(path: &Path, force: bool) -> Result<(), Failure> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::failed(format!(
            "cannot look at {}: {error}",
            path.display()
        ))),
        Ok(there) if !there.is_file() => Err(Failure::usage(format!(
            "{} is not a file that a snapshot could replace",
            path.display()
        ))),
        Ok(_) if !force => Err(occupied(path)),
        Ok(_) => Ok(()),
    }
}

fn occupied(path: &Path) -> Failure {
    let message = format!("{} exists already", path.display());
    Failure::failed(message).next("give another FILE, or --force to replace it")
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Durable, and found good from the first byte to the last.
fn checked(file: &mut NamedTempFile) -> Result<Inspected, SnapshotError> {
    file.as_file().sync_all()?;
    file.rewind()?;
    inspect(file.as_file().try_clone()?)
}

fn put_in_place(file: NamedTempFile, path: &Path, force: bool) -> io::Result<()> {
    let placed = match force {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    placed.map(drop).map_err(|failed| failed.error)
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path)
        .map_err(|error| Failure::failed(format!("cannot open {}: {error}", path.display())))
}

fn inspect(file: File) -> Result<Inspected, SnapshotError> {
    vault_kv::inspect_snapshot(BufReader::with_capacity(1 << 20, file))
}

fn restore(global: &Global, path: &Path, dir: &Path, cluster: Option<&str>) -> Result<(), Failure> {
    let input = BufReader::with_capacity(1 << 20, open(path)?);
    let info = vault_kv::restore_snapshot(input, dir, cluster);
    let info = info.map_err(|error| match error {
        SnapshotError::NotEmpty { .. } | SnapshotError::Store(_) => {
            Failure::failed(format!("cannot restore {}: {error}", path.display()))
        }
        error => unusable(path, error),
    })?;
    let mut shown = described(&info);
    shown.insert(0, ("store", json!(dir.display().to_string())));
    print(global, shown)?;
    eprintln!(
        "the store is sealed, as the one was that was saved\n  \
         next: start the server on it, as the user that owns {0} (chown -R it otherwise)\n  \
         next: mesh operator unseal, with the shares or the key file of the store that was saved; with \
         --accept-rollback if the server, or a node of its mesh, remembers later entries than {1}",
        dir.display(),
        info.head.index,
    );
    Ok(())
}

fn unusable(path: &Path, error: SnapshotError) -> Failure {
    let error = anyhow::Error::from(error);
    Failure::failed(format!("{}: {error:#}", path.display()))
}

fn show(global: &Global, path: &Path, inspected: &Inspected) -> Result<(), Failure> {
    let mut shown = described(&inspected.info);
    shown.insert(0, ("snapshot", json!(path.display().to_string())));
    shown.extend([
        ("entries", json!(inspected.entries)),
        ("records", json!(inspected.records)),
        ("redacted_parts", json!(inspected.redacted)),
        ("bytes", json!(inspected.bytes)),
    ]);
    print(global, shown)
}

fn described(info: &SnapshotInfo) -> Vec<(&'static str, Value)> {
    let created = Duration::from_secs(u64::try_from(info.created).unwrap_or(0));
    let created = humantime::format_rfc3339_seconds(UNIX_EPOCH + created);
    vec![
        ("cluster_id", json!(info.cluster_id)),
        ("created", json!(created.to_string())),
        ("head_index", json!(info.head.index)),
        ("head_hash", json!(hex(&info.head.hash))),
    ]
}

fn print(global: &Global, shown: Vec<(&'static str, Value)>) -> Result<(), Failure> {
    super::facts(global, "SNAPSHOT", shown)
}
