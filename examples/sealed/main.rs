//! A sealed store inside of a program, without HTTP server: made, unsealed, used, sealed.
//!
//! `cargo run -p examples --bin sealed -- DIRECTORY`. The first run makes the store and its key file and writes a
//! value; every later one reads it. In earnest the key file lies elsewhere: see `vault_kv::manual`.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use vault_kv::{Caller, InitOptions, Meta, Remote, StoreConfig, Vault, VaultConfig, Via};
use zeroize::Zeroizing;

/// Copies of secrets in buffers that nobody wipes are cleared as they are freed.
#[global_allocator]
static ALLOCATOR: vault_kv::ClearingAllocator = vault_kv::ClearingAllocator;

#[tokio::main]
async fn main() -> Result<()> {
    vault_kv::clear_freed_memory();
    vault_kv::harden_process()?;
    let dir = std::env::args_os().nth(1).context("which directory?")?;
    run(Path::new(&dir)).await
}

async fn run(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let key_file = dir.join("unseal.key");
    let mut config = VaultConfig::new(StoreConfig::Dir(dir.join("store")));
    config.static_key = Some(key_file.clone());
    config.head_file = Some(dir.join("head"));
    let vault = Vault::open(config)?;

    if vault.seal_status()?.initialized {
        vault.unseal_static().await?;
    } else {
        let mut key = Zeroizing::new([0u8; 32]);
        fs::File::open("/dev/urandom")
            .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut key[..]))?;
        let options = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&key_file);
        options?.write_all(&key[..])?;
        let one = InitOptions {
            shares: 1,
            threshold: 1,
        };
        let made = vault.init(one).await?;
        println!("made a store; who did what is in its ledger");

        // Plain keys, typed. Who and why go into the ledger, values never do in the clear.
        let meta = Meta {
            actor: "example".to_owned(),
            operation: "remember".to_owned(),
            keys: vec!["greeting".to_owned()],
            ..Meta::default()
        };
        let value = Zeroizing::new(b"hello".to_vec());
        vault
            .kv("app")
            .put(meta, "greeting", value, 0, None)
            .await?;

        // Versioned secrets with tokens and policies: the Vault interface, as a function.
        let request = http::Request::post("/v1/secret/data/db")
            .header("x-vault-token", made.root_token.as_str())
            .body(r#"{"data": {"password": "correct horse"}}"#.into())?;
        let caller = Caller::anonymous(Remote::Unix, Via::Embedded);
        let answer = vault.handle(request, caller).await;
        anyhow::ensure!(answer.status().is_success(), "{}", answer.status());
    }

    let greeting = vault.kv("app").get("greeting")?.context("it was written")?;
    println!("greeting: {}", String::from_utf8_lossy(&greeting.value));
    for item in vault.ledger().history(3, None)? {
        println!(
            "{} {} {:?}",
            item.index, item.meta.operation, item.meta.keys
        );
    }
    println!(
        "{} entries, and the chain holds",
        vault.ledger().verify()?.entries
    );
    vault.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_run_finds_what_the_first_wrote() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path()).await.unwrap();
        run(dir.path()).await.unwrap();
    }
}
