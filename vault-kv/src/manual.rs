//! The manual of the sealed store: what it promises, how keys hang together, how it is opened unattended.
//!
//! # A store in ten lines
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use vault_kv::{InitOptions, Meta, StoreConfig, Vault, VaultConfig};
//! use zeroize::Zeroizing;
//!
//! let vault = Vault::open(VaultConfig::new(StoreConfig::Memory))?;
//! let made = vault.init(InitOptions { shares: 3, threshold: 2 }).await?;
//! for share in &made.keys[..2] {
//!     vault.submit_share(share.clone()).await?;
//! }
//! let kv = vault.kv("app");
//! let value = Zeroizing::new(b"secret".to_vec());
//! kv.put(Meta::default(), "db/password", value, 0, None).await?;
//! assert_eq!(&kv.get("db/password")?.unwrap().value[..], b"secret");
//! vault.close().await;
//! assert!(kv.get("db/password").is_err());
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! [`Vault::kv`](crate::Vault::kv) is the typed way to plain keys ([`keys`] has transactions, locks and watches), [`Vault::ca`](crate::Vault::ca) to certificates, [`Vault::ledger`](crate::Vault::ledger) to the history;
//! [`Vault::handle`](crate::Vault::handle) is the whole Vault interface (tokens, policies, versioned secrets) as a function from request
//! to response, for programs that have an HTTP server, or want none. The example `sealed` of this crate shows both.
//!
//! # Threat model
//!
//! **Promised.**
//! * *Whoever has the disk, a backup or a snapshot, and neither a threshold of shares nor the key file, learns no
//!   value, no token, no key and no name.* They learn how many records there are, how large, and when they changed.
//! * *Nothing stored can be changed, moved to another name or taken out of the middle without notice*: records are
//!   authenticated together with their path, entries are chained by hashes. [`verify`](crate::verify) needs no key.
//! * *A store that was put back to an older state does not unseal*, as long as one head that is later is remembered
//!   somewhere: beside the log, in [`VaultConfig::head_file`](crate::VaultConfig::head_file), by whoever the embedding
//!   program asks ([`Vault::seen`](crate::Vault::seen)). See [`VaultError::RolledBack`](crate::VaultError::RolledBack).
//! * *After [`seal`](crate::Vault::seal) the keys are gone from memory*: the unseal, root, data and authority keys,
//!   shares and tokens. A test reads all writable memory of its own process and looks for them. It takes the
//!   [`ClearingAllocator`](crate::ClearingAllocator); without it, copies stay in freed buffers until they are reused.
//! * *While unsealed*, long-lived keys lie in pages that are locked into RAM and left out of core dumps.
//! * *Every answered request is in the audit log first*, if there is one; the log has no values.
//! * *No person alone opens the store*, makes new shares or a root token, when the threshold is two or more; and
//!   nobody without a right cancels what others started.
//!
//! **Not promised.**
//! * Anything against somebody who controls the running process or its kernel: root on that machine, a debugger,
//!   a malicious hypervisor. Values pass through memory in the clear while they are read and written.
//! * Detecting a rollback of everything at once: of the store, of the file outside of it *and* of everybody
//!   who remembers.
//! * Secrecy of old data after shares or a key file were lost to somebody who also has an old copy of the
//!   store: a rekey makes new keys for what the store holds *now*; it cannot reach backups.
//! * Availability against somebody who can delete files or exhaust the disk. What was acknowledged and is
//!   still there is read; a full disk is a clear error, and nothing is half written.
//! * Hiding the number, size and timing of records.
//!
//! # Key hierarchy
//!
//! ```text
//! shares (people) ──combine──┐
//!                            ├─► unseal key ──wraps──► root key ──wraps──► keyring
//! key file (unattended) ─────┘                                              ├─ name key: hides names (HMAC-SHA-256)
//!                                                                           └─ terms: AES-256-GCM, the newest seals
//! ```
//!
//! * **Shares** are Shamir's over GF(2^8), 33 bytes, of one random 32-byte unseal key; a wrong one is noticed only
//!   when the threshold is reached, and then all are forgotten. Which of them was wrong cannot be told.
//! * **Rotate** (`sys/rotate`) adds a term; old terms go on opening what they sealed. It happens by itself at 90 % of
//!   2^32 records, or at an age (`sys/rotate/config`).
//! * **Rekey** (`sys/rekey`) makes a new unseal key *and* a new root key, and wraps the keyring anew: one entry of the
//!   ledger, so that a crash leaves the old shares valid or the new ones.
//! * Wrapped keys and the numbers of shares are *control records*: the only ones that are readable while sealed.
//!
//! # Storage format
//!
//! A sealed record is `format byte ‖ term (u32) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`, its associated data the path
//! that it lies at. Records reach the disk as entries of the ledger: an append-only log, hash-chained, durable before
//! it is acknowledged, folded into a searchable view that can be made anew from it at any time. The folder of a store
//! has `log/` (the truth), `fold/` (the view), `lock`, and `head`: index and hash of the newest entry at the last
//! seal, in the clear. All of it, byte by byte: [`storage`].
//!
//! # Unsealing unattended
//!
//! [`VaultConfig::static_key`](crate::VaultConfig::static_key) names a file that holds the unseal key: 32 raw bytes,
//! 64 hexadecimal digits, or base64. [`Vault::init`](crate::Vault::init) makes a store for it, and
//! [`Vault::unseal_static`](crate::Vault::unseal_static) opens it. The file must be readable by its owner only (mode
//! 0600), or it is refused with the command that puts that right. Under systemd, `LoadCredential=` (or
//! `LoadCredentialEncrypted=`, which binds it to the machine's TPM) hands it over: the path `credential:NAME` is the
//! file of that name in `$CREDENTIALS_DIRECTORY`. systemd keeps credentials for the service alone, in memory that is not
//! swapped, and sets their mode itself, so it is not looked at.
//!
//! Whoever has that file and the store has everything. It belongs on another medium than the store and its backups.
//!
//! # What is locked, what is cleared, and what that costs
//!
//! Locked memory needs `RLIMIT_MEMLOCK` (`LimitMEMLOCK=` in systemd): a page a key, some tens of pages in all. Without
//! it the store says so once and goes on. [`harden_process`](crate::harden_process) keeps the process out of core
//! dumps, and away from debuggers of the same user.

#[doc = include_str!("manual/keys.md")]
pub mod keys {}

#[doc = include_str!("manual/storage.md")]
pub mod storage {}
