//! The barrier: what stands between plaintext and storage.
//!
//! Key hierarchy: unseal key (from shares or a key file, see [`seal`](crate::seal)) → root key →
//! keyring → data keys. The keyring holds one AES-256-GCM key per *term* and one HMAC key for names.
//! [`Barrier::rotate`] adds a term: new records use it, old ones stay readable.
//!
//! A sealed record is `format byte ‖ term (u32) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`. The associated
//! data is the storage path, so a record moved to another path does not open. Names are hidden as
//! well: storage sees `HMAC-SHA256(name key, path)`.
//!
//! Keys live in locked, zeroized memory ([`sys`](crate::sys)). Dropping the barrier drops them. While a
//! key is made or opened, copies of it pass over the stack: [`without_traces`] overwrites them.

use std::sync::atomic::{AtomicU64, Ordering};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    store::FoldKey,
    sys::{Locked, without_traces},
};

pub(crate) mod names;

const FORMAT: u8 = 1;
const HEADER: usize = 1 + 4 + NONCE_LEN;
const TAG: usize = 16;
const KEYRING: &[u8] = b"\0core/keyring";
const ROOT: &[u8] = b"\0core/root";
/// The term that marks a record as wrapped by a key of the hierarchy above the keyring.
const WRAPPED: u32 = 0;

/// A record did not open: wrong key, wrong path, or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record does not open with this key at this path")]
pub(crate) struct Unopenable;

/// 32 secret bytes in locked memory.
pub(crate) struct SecretKey(Locked<[u8; 32]>);

impl SecretKey {
    pub(crate) fn random() -> Self {
        without_traces(|| Self::new(random()))
    }

    pub(crate) fn new(mut bytes: [u8; 32]) -> Self {
        let key = Self(Locked::new(bytes));
        bytes.zeroize();
        key
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the two are the same; how long that takes says nothing about them.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let hash = |key: &Self| digest(&SHA256, key.bytes());
        hash(self).as_ref() == hash(other).as_ref()
    }

    /// Wraps the root key under this unseal key.
    pub(crate) fn wrap_root(&self, root: &Self) -> Vec<u8> {
        without_traces(|| seal_with(&aead_key(self.bytes()), WRAPPED, ROOT, root.bytes()))
    }

    /// The root key, if this is the right unseal key.
    pub(crate) fn unwrap_root(&self, wrapped: &[u8]) -> Result<Self, Unopenable> {
        without_traces(|| {
            let plain = open_with(&aead_key(self.bytes()), WRAPPED, ROOT, wrapped.to_vec())?;
            Ok(Self::new(
                plain.as_slice().try_into().map_err(|_| Unopenable)?,
            ))
        })
    }
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Keyring {
    names: [u8; 32],
    terms: Vec<KeyringTerm>,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct KeyringTerm {
    term: u32,
    key: [u8; 32],
}

struct Term {
    term: u32,
    key: Locked<LessSafeKey>,
}

/// The opened keyring.
pub(crate) struct Barrier {
    root: SecretKey,
    names: Locked<hmac::Key>,
    /// Ascending; the last one seals.
    terms: Vec<Term>,
    /// Records sealed with the newest term since this keyring was opened or made.
    sealed: AtomicU64,
}

impl Barrier {
    /// A new keyring with one term; returns it with its wrapped form for storage.
    pub(crate) fn create(root: SecretKey) -> (Self, Vec<u8>) {
        without_traces(|| {
            let keyring = Keyring {
                names: random(),
                terms: vec![KeyringTerm {
                    term: 1,
                    key: random(),
                }],
            };
            let wrapped = wrap(&root, &keyring);
            (Self::from_keyring(root, &keyring), wrapped)
        })
    }

    /// Opens a stored keyring.
    pub(crate) fn open_keyring(root: SecretKey, wrapped: &[u8]) -> Result<Self, Unopenable> {
        without_traces(|| {
            let keyring = unwrap(&root, wrapped)?;
            Ok(Self::from_keyring(root, &keyring))
        })
    }

    /// This keyring, stored as `wrapped`, with one term more; returns it with its wrapped form.
    pub(crate) fn rotated(&self, wrapped: &[u8]) -> Result<(Self, Vec<u8>), Unopenable> {
        without_traces(|| {
            let mut keyring = unwrap(&self.root, wrapped)?;
            let term = self.term().checked_add(1).ok_or(Unopenable)?;
            keyring.terms.push(KeyringTerm {
                term,
                key: random(),
            });
            let root = SecretKey::new(*self.root.bytes());
            let wrapped = wrap(&root, &keyring);
            Ok((Self::from_keyring(root, &keyring), wrapped))
        })
    }

    /// This keyring, stored as `wrapped`, under another root key; returns it with its wrapped form.
    pub(crate) fn rerooted(
        &self,
        root: SecretKey,
        wrapped: &[u8],
    ) -> Result<(Self, Vec<u8>), Unopenable> {
        without_traces(|| {
            let keyring = unwrap(&self.root, wrapped)?;
            let wrapped = wrap(&root, &keyring);
            let rerooted = Self::from_keyring(root, &keyring);
            let sealed = self.sealed.load(Ordering::Relaxed);
            rerooted.sealed.store(sealed, Ordering::Relaxed);
            Ok((rerooted, wrapped))
        })
    }

    /// Keys of zeros, for fuzzing; returns it with its wrapped form.
    pub(crate) fn fixed(root: SecretKey) -> (Self, Vec<u8>) {
        let keyring = zeros();
        let wrapped = wrap(&root, &keyring);
        (Self::from_keyring(root, &keyring), wrapped)
    }

    fn from_keyring(root: SecretKey, keyring: &Keyring) -> Self {
        Self {
            root,
            names: Locked::new(hmac::Key::new(hmac::HMAC_SHA256, &keyring.names)),
            terms: keyring
                .terms
                .iter()
                .map(|entry| Term {
                    term: entry.term,
                    key: Locked::new(aead_key(&entry.key)),
                })
                .collect(),
            sealed: AtomicU64::new(0),
        }
    }

    /// The root key wrapped under another unseal key.
    pub(crate) fn rewrap_root(&self, unseal: &SecretKey) -> Vec<u8> {
        unseal.wrap_root(&self.root)
    }

    /// The term that seals.
    pub(crate) fn term(&self) -> u32 {
        self.newest().term
    }

    /// Records sealed with that term since this keyring was opened or made.
    pub(crate) fn sealed(&self) -> u64 {
        self.sealed.load(Ordering::Relaxed)
    }

    /// Root key, name key and data keys, for those who look for them where they should not be.
    #[cfg(test)]
    pub(crate) fn each_key(&self, wrapped: &[u8], mut visit: impl FnMut(&str, &[u8])) {
        without_traces(|| {
            let keyring = unwrap(&self.root, wrapped).expect("it is this barrier's keyring");
            visit("the root key", self.root.bytes());
            visit("the name key", &keyring.names);
            for term in &keyring.terms {
                visit("a data key", &term.key);
            }
        });
    }

    fn newest(&self) -> &Term {
        let Some(newest) = self.terms.last() else {
            unreachable!("a barrier is only built with at least one term")
        };
        newest
    }

    /// The storage key of a logical path.
    pub(crate) fn fold_key(&self, path: &str) -> FoldKey {
        let mut key = [0; 32];
        key.copy_from_slice(hmac::sign(&self.names, path.as_bytes()).as_ref());
        FoldKey(key)
    }

    /// Seals `plain` for `path` and appends the record to `out`.
    pub(crate) fn seal(
        &self,
        random: &mut Randomness,
        path: &[u8],
        plain: &[u8],
        out: &mut Vec<u8>,
    ) {
        let newest = self.newest();
        self.sealed.fetch_add(1, Ordering::Relaxed);
        seal_into(&newest.key, newest.term, random.take(), path, plain, out);
    }

    /// Opens a record of `path`.
    pub(crate) fn open(
        &self,
        path: &[u8],
        record: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, Unopenable> {
        let term = term_of(&record)?;
        let at = self
            .terms
            .binary_search_by_key(&term, |entry| entry.term)
            .map_err(|_| Unopenable)?;
        open_with(&self.terms[at].key, term, path, record)
    }
}

fn zeros() -> Keyring {
    Keyring {
        names: [0; 32],
        terms: vec![KeyringTerm {
            term: 1,
            key: [0; 32],
        }],
    }
}

/// Whether these bytes are a keyring as it is inside of its wrapping; for fuzzing.
pub(crate) fn is_keyring(plain: &[u8]) -> bool {
    decode(plain).is_ok()
}

/// A keyring as it is inside of its wrapping, of zeros; for fuzzing.
pub(crate) fn keyring_inside() -> Vec<u8> {
    postcard::to_stdvec(&zeros()).expect("plain data always encodes")
}

/// Length of the record that seals `plain` bytes.
pub(crate) const fn sealed_length(plain: usize) -> usize {
    HEADER + plain + TAG
}

fn wrap(root: &SecretKey, keyring: &Keyring) -> Vec<u8> {
    // As large as it can get: a growing vector would leave copies of keys behind.
    let mut plain = Zeroizing::new(vec![0; 32 + 10 + keyring.terms.len() * (5 + 32)]);
    let plain = postcard::to_slice(keyring, &mut plain).expect("there is room for every key");
    seal_with(&aead_key(root.bytes()), WRAPPED, KEYRING, plain)
}

fn unwrap(root: &SecretKey, wrapped: &[u8]) -> Result<Keyring, Unopenable> {
    let plain = open_with(&aead_key(root.bytes()), WRAPPED, KEYRING, wrapped.to_vec())?;
    decode(&plain)
}

/// A keyring has at least one term, and its terms ascend.
fn decode(plain: &[u8]) -> Result<Keyring, Unopenable> {
    let (keyring, rest): (Keyring, _) = postcard::take_from_bytes(plain).map_err(|_| Unopenable)?;
    let ascending = keyring.terms.is_sorted_by(|a, b| a.term < b.term);
    let usable = !keyring.terms.is_empty() && keyring.terms[0].term > WRAPPED;
    if rest.is_empty() && ascending && usable {
        Ok(keyring)
    } else {
        Err(Unopenable)
    }
}

fn aead_key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("32 bytes are an AES-256 key"))
}

fn seal_with(key: &LessSafeKey, term: u32, path: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(sealed_length(plain.len()));
    seal_into(key, term, random(), path, plain, &mut out);
    out
}

fn seal_into(
    key: &LessSafeKey,
    term: u32,
    nonce: [u8; NONCE_LEN],
    path: &[u8],
    plain: &[u8],
    out: &mut Vec<u8>,
) {
    // Once, before any plaintext is in it: a growing vector would leave a copy behind.
    out.reserve(sealed_length(plain.len()));
    out.push(FORMAT);
    out.extend_from_slice(&term.to_be_bytes());
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plain);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(path),
            &mut out[start..],
        )
        .expect("AES-GCM takes up to 64 GiB");
    out.extend_from_slice(tag.as_ref());
}

fn term_of(record: &[u8]) -> Result<u32, Unopenable> {
    if record.len() < HEADER + TAG || record[0] != FORMAT {
        return Err(Unopenable);
    }
    Ok(u32::from_be_bytes([
        record[1], record[2], record[3], record[4],
    ]))
}

fn open_with(
    key: &LessSafeKey,
    term: u32,
    path: &[u8],
    record: Vec<u8>,
) -> Result<Zeroizing<Vec<u8>>, Unopenable> {
    let mut record = Zeroizing::new(record);
    if term_of(&record)? != term {
        return Err(Unopenable);
    }
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&record[5..HEADER]);
    let length = key
        .open_within(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(path),
            &mut record,
            HEADER..,
        )
        .map_err(|_| Unopenable)?
        .len();
    record.truncate(length);
    Ok(record)
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

fn fill(bytes: &mut [u8]) {
    SystemRandom::new()
        .fill(bytes)
        .expect("the kernel gives random bytes");
}

/// Bytes of one record's nonce.
pub(crate) const NONCE: usize = NONCE_LEN;

/// Random bytes for the nonces and salts of one change, from one call of the kernel. None are kept for the
/// next change: two copies of a machine would then use the same nonces.
pub(crate) struct Randomness {
    bytes: Vec<u8>,
    used: usize,
}

impl Randomness {
    /// As many bytes as will be taken; if more are, they come one by one.
    pub(crate) fn of(length: usize) -> Self {
        let mut bytes = vec![0; length];
        fill(&mut bytes);
        Self { bytes, used: 0 }
    }

    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some(taken) = self.bytes[self.used..].first_chunk() else {
            return random();
        };
        self.used += N;
        *taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn barrier() -> (Barrier, Vec<u8>) {
        Barrier::create(SecretKey::new([7; 32]))
    }

    fn sealed(barrier: &Barrier, path: &str, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        barrier.seal(&mut Randomness::of(NONCE), path.as_bytes(), plain, &mut out);
        out
    }

    #[test]
    fn a_record_opens_at_its_own_path_only() {
        let (barrier, _) = barrier();
        let record = sealed(&barrier, "a/b", b"value");
        assert_eq!(record.len(), sealed_length(5));
        assert_eq!(&barrier.open(b"a/b", record.clone()).unwrap()[..], b"value");
        assert_eq!(barrier.open(b"a/c", record).unwrap_err(), Unopenable);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (barrier, _) = barrier();
        let record = sealed(&barrier, "p", b"v");
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(barrier.open(b"p", damaged).is_err(), "bit {bit}");
        }
        for length in 0..record.len() {
            assert!(barrier.open(b"p", record[..length].to_vec()).is_err());
        }
    }

    #[test]
    fn a_keyring_with_a_newer_term_opens_old_records_and_names() {
        let (old, wrapped) = barrier();
        let record = sealed(&old, "p", b"v");
        let (rotated, wrapped) = old.rotated(&wrapped).unwrap();
        assert_eq!((rotated.term(), rotated.sealed()), (2, 0));
        let root = SecretKey::new(*old.root.bytes());
        let new = Barrier::open_keyring(root, &wrapped).unwrap();
        assert_eq!(&new.open(b"p", record).unwrap()[..], b"v");
        assert_eq!(new.fold_key("p"), old.fold_key("p"));
        assert!(old.open(b"p", sealed(&new, "p", b"v")).is_err());
    }

    #[test]
    fn under_another_root_key_the_same_terms_open() {
        let (old, wrapped) = barrier();
        let record = sealed(&old, "p", b"v");
        let (new, rewrapped) = old.rerooted(SecretKey::random(), &wrapped).unwrap();
        assert_eq!(&new.open(b"p", record).unwrap()[..], b"v");
        assert_eq!((new.term(), new.sealed()), (1, 1));
        let old_root = SecretKey::new(*old.root.bytes());
        assert!(Barrier::open_keyring(old_root, &rewrapped).is_err());
    }

    #[test]
    fn a_keyring_without_ascending_terms_is_refused() {
        let keyring = |terms: &[u32]| {
            let term = |term: &u32| KeyringTerm {
                term: *term,
                key: [1; 32],
            };
            let terms = terms.iter().map(term).collect();
            postcard::to_stdvec(&Keyring {
                names: [2; 32],
                terms,
            })
            .unwrap()
        };
        assert!(decode(&keyring(&[1, 2, 7])).is_ok());
        for wrong in [&[][..], &[0], &[2, 1], &[1, 1]] {
            assert!(decode(&keyring(wrong)).is_err(), "{wrong:?}");
        }
        let mut longer = keyring(&[1]);
        longer.push(0);
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn wrong_keys_open_nothing() {
        let (_, wrapped) = barrier();
        assert!(Barrier::open_keyring(SecretKey::new([8; 32]), &wrapped).is_err());
        let root = SecretKey::random();
        let unseal = SecretKey::random();
        let wrapped = unseal.wrap_root(&root);
        assert_eq!(unseal.unwrap_root(&wrapped).unwrap().bytes(), root.bytes());
        assert!(SecretKey::random().unwrap_root(&wrapped).is_err());
    }

    #[test]
    fn two_stores_hide_the_same_name_differently() {
        assert_ne!(
            barrier().0.fold_key("token/a"),
            barrier().0.fold_key("token/a")
        );
    }
}
