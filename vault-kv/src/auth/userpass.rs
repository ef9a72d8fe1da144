//! `userpass`: people with a name and a password.
//!
//! Passwords are kept as Argon2id with 19 MiB, two passes and a salt of their own (RFC 9106, OWASP's least). That costs some
//! 20 ms of a processor on purpose, so logins run beside the other work and never more of them at once than there are
//! processors. An unknown user costs the same.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::params::{TokenParams, is_within};
use super::{Login, item_name};
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation, Remote};

const SALT: usize = 16;
const HASH: usize = 32;
/// KiB, passes, lanes.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// Longest password in bytes: hashing starts with reading all of it.
const LONGEST: usize = 4096;

/// Hashes that are made at once.
static AT_ONCE: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));

/// A password as it is kept.
#[derive(Clone, Serialize, Deserialize)]
struct Hashed {
    salt: String,
    hash: String,
    /// What it was made with, so that the cost can be raised.
    cost: (u32, u32, u32),
}

#[derive(Clone, Serialize, Deserialize)]
struct User {
    password: Hashed,
    #[serde(flatten)]
    params: TokenParams,
}

/// One mount of the method.
pub(crate) struct Userpass {
    db: Db,
    /// Where its records are.
    prefix: String,
    /// Where it is mounted, e.g. `auth/userpass/`.
    mount: String,
}

impl Userpass {
    pub fn new(db: Db, prefix: String, mount: String) -> Self {
        Self { db, prefix, mount }
    }

    /// Whether a path below the mount is asked for without a token.
    pub fn is_login(path: &str) -> bool {
        path.starts_with("login/")
    }

    /// Whom a login is about; the form that attempts are counted under.
    pub fn alias(path: &str) -> Option<String> {
        item_name(path.trim_start_matches("login/")).ok()
    }

    /// Whether a write would be an *update*.
    pub fn exists(&self, path: &str) -> Result<bool, ApiError> {
        match path.strip_prefix("users/") {
            Some(name) if !name.contains('/') => Ok(self
                .db
                .index(&self.record(&name.to_ascii_lowercase()))?
                .is_some()),
            _ => Ok(true),
        }
    }

    /// `users/…`
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        let rest = path
            .strip_prefix("users/")
            .ok_or(ApiError::UnsupportedPath)?;
        if rest.is_empty() {
            return match operation {
                List => Answer::keys(self.db.list(&format!("{}user/", self.prefix))?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let (name, part) = match rest.split_once('/') {
            Some((name, part)) => (item_name(name)?, part),
            None => (item_name(rest)?, ""),
        };
        match (part, operation) {
            ("", Read) => {
                let (user, _) = self.user(&name)?.ok_or(ApiError::NotFound)?;
                let mut out = Map::new();
                user.params.describe(&mut out);
                Ok(Answer::data(out))
            }
            ("", Write) => self.write(by, &name, data).await,
            ("", Delete) => {
                let path = self.record(&name);
                let _order = self.db.lock(&path).await;
                if self.db.index(&path)?.is_some() {
                    let mut batch = self.batch(by, "userpass user delete", &name);
                    batch.delete(&path);
                    self.db.commit(batch).await?;
                }
                Ok(Answer::none())
            }
            ("password" | "policies", Write) => self.change(by, &name, part, data).await,
            ("" | "password" | "policies", _) => Err(ApiError::UnsupportedOperation),
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    async fn write(&self, by: &By, name: &str, data: &Data) -> Result<Answer, ApiError> {
        let hashed = password(data)?.map(Hashed::make);
        let hashed = match hashed {
            Some(hashed) => Some(hashed.await?),
            None => None,
        };
        let path = self.record(name);
        let _order = self.db.lock(&path).await;
        let mut user = match (self.user(name)?, hashed) {
            (Some((mut user, _)), hashed) => {
                user.password = hashed.unwrap_or(user.password);
                user
            }
            (None, Some(password)) => User {
                password,
                params: TokenParams::default(),
            },
            (None, None) => {
                return Err(ApiError::bad(
                    "must provide either password or password_hash",
                ));
            }
        };
        user.params.update(data)?;
        let mut batch = self.batch(by, "userpass user write", name);
        batch.put(&path, &user)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    /// `users/:name/password` and `users/:name/policies`.
    async fn change(
        &self,
        by: &By,
        name: &str,
        part: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let hashed = match part {
            "password" => {
                let password = password(data)?.ok_or_else(|| {
                    ApiError::bad("must provide either password or password_hash")
                })?;
                Some(Hashed::make(password).await?)
            }
            _ => None,
        };
        let path = self.record(name);
        let _order = self.db.lock(&path).await;
        let (mut user, _) = self
            .user(name)?
            .ok_or_else(|| ApiError::bad("username does not exist"))?;
        match hashed {
            Some(hashed) => user.password = hashed,
            None => {
                let mut policies = Data::default();
                for field in ["token_policies", "policies"] {
                    if let Some(value) = data.raw(field) {
                        policies.insert(field, value.clone());
                    }
                }
                user.params.update(&policies)?;
            }
        }
        let mut batch = self.batch(by, "userpass user write", name);
        batch.put(&path, &user)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    /// `login/:name`
    ///
    /// # Errors
    /// 400 with one text whether the user is unknown or the password wrong.
    pub async fn login(
        &self,
        path: &str,
        data: &Data,
        remote: &Remote,
    ) -> Result<Login<'_>, ApiError> {
        let wrong = || ApiError::BadCredentials("invalid username or password");
        let name = item_name(path.trim_start_matches("login/")).map_err(|_| wrong())?;
        let password =
            password(data)?.ok_or_else(|| ApiError::Internal("missing password".to_string()))?;
        let user = self.user(&name)?.map(|(user, _)| user);
        let against = user
            .as_ref()
            .map_or_else(Hashed::nobodys, |user| user.password.clone());
        if !against.matches(password).await? {
            return Err(wrong());
        }
        let user = user.ok_or_else(wrong)?;
        if !is_within(remote, &user.params.bound_cidrs) {
            return Err(ApiError::Unauthenticated);
        }
        Ok(Login {
            params: user.params,
            metadata: BTreeMap::from([("username".to_string(), name.clone())]),
            alias: name.clone(),
            name,
            groups: None,
            certificate: None,
            batch: None,
            order: None,
        })
    }

    fn user(&self, name: &str) -> Result<Option<(User, u64)>, ApiError> {
        self.db.get(&self.record(name))
    }

    fn record(&self, name: &str) -> String {
        format!("{}user/{name}", self.prefix)
    }

    fn batch(&self, by: &By, operation: &str, name: &str) -> Batch {
        let mut batch = Batch::new(by, operation);
        batch.key(format!("{}users/{name}", self.mount));
        batch
    }
}

/// The field `password`; `None`: it is missing or empty.
fn password(data: &Data) -> Result<Option<Zeroizing<String>>, ApiError> {
    if data.raw("password_hash").is_some() {
        return Err(ApiError::bad(
            "password_hash is not available: passwords are kept as Argon2id; set a password",
        ));
    }
    let password = data.text("password")?.map(Zeroizing::new);
    match password {
        Some(password) if password.len() > LONGEST => Err(ApiError::bad(format!(
            "field \"password\" is longer than {LONGEST} bytes"
        ))),
        password => Ok(password.filter(|password| !password.is_empty())),
    }
}

impl Hashed {
    async fn make(password: Zeroizing<String>) -> Result<Self, ApiError> {
        let salt: [u8; SALT] = rand::random();
        let hash = argon2id(password, salt.to_vec(), COST).await?;
        Ok(Self {
            salt: STANDARD.encode(salt),
            hash: STANDARD.encode(&hash[..]),
            cost: COST,
        })
    }

    /// What an unknown user's password is compared with: nothing matches it.
    fn nobodys() -> Self {
        Self {
            salt: STANDARD.encode([0; SALT]),
            hash: String::new(),
            cost: COST,
        }
    }

    async fn matches(&self, password: Zeroizing<String>) -> Result<bool, ApiError> {
        let unreadable = |_| ApiError::Internal("a stored password is not readable".to_string());
        let salt = STANDARD.decode(&self.salt).map_err(unreadable)?;
        let expected = Zeroizing::new(STANDARD.decode(&self.hash).map_err(unreadable)?);
        let hash = argon2id(password, salt, self.cost).await?;
        Ok(hash[..].ct_eq(&expected).into())
    }
}

/// Waits until there is a processor for it.
async fn argon2id(
    password: Zeroizing<String>,
    salt: Vec<u8>,
    (memory, passes, lanes): (u32, u32, u32),
) -> Result<Zeroizing<[u8; HASH]>, ApiError> {
    let failed = || ApiError::Internal("a password could not be hashed".to_string());
    let _one_of_few = AT_ONCE.acquire().await.map_err(|_| failed())?;
    let hashing = tokio::task::spawn_blocking(move || {
        let params = Params::new(memory, passes, lanes, Some(HASH)).ok()?;
        let mut out = Zeroizing::new([0; HASH]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password.as_bytes(), &salt, &mut out[..])
            .ok()?;
        Some(out)
    });
    hashing.await.ok().flatten().ok_or_else(failed)
}
