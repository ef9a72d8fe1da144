//! `approle`: machines with the id of a role and a secret id.
//!
//! A secret id is kept as an HMAC under the key of the tokens; what a look-up shows is what was said when it was made, and its
//! accessor. Its uses are counted durably together with the token that a login makes: a crash gives none back.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::params::{TokenParams, check_cidrs, is_subset, is_within};
use super::{Login, item_name};
use crate::clock::{Clock, rfc3339_unix};
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation, Remote};
use crate::token::NameKey;

/// Secret ids that are removed with one entry.
const CHUNK: usize = 256;

#[derive(Clone, Serialize, Deserialize)]
#[serde(default)]
struct Role {
    role_id: String,
    bind_secret_id: bool,
    secret_id_bound_cidrs: Vec<String>,
    /// 0 = unlimited.
    secret_id_num_uses: i64,
    /// Seconds; 0 = for ever.
    secret_id_ttl: u64,
    local_secret_ids: bool,
    params: TokenParams,
}

impl Default for Role {
    fn default() -> Self {
        Self {
            role_id: uuid::Uuid::new_v4().to_string(),
            bind_secret_id: true,
            secret_id_bound_cidrs: Vec::new(),
            secret_id_num_uses: 0,
            secret_id_ttl: 0,
            local_secret_ids: false,
            params: TokenParams::default(),
        }
    }
}

impl Role {
    fn update(&mut self, data: &Data) -> Result<(), ApiError> {
        if let Some(id) = data.text("role_id")?.filter(|id| !id.is_empty()) {
            self.role_id = id;
        }
        if let Some(bind) = data.flag("bind_secret_id")? {
            self.bind_secret_id = bind;
        }
        let cidrs = match data.list("secret_id_bound_cidrs")? {
            None => data.list("bound_cidr_list")?,
            given => given,
        };
        if let Some(cidrs) = cidrs {
            check_cidrs("secret_id_bound_cidrs", &cidrs)?;
            self.secret_id_bound_cidrs = cidrs;
        }
        if let Some(uses) = data.int("secret_id_num_uses")? {
            if uses < 0 {
                return Err(ApiError::bad("secret_id_num_uses cannot be negative"));
            }
            self.secret_id_num_uses = uses;
        }
        if let Some(ttl) = data.duration("secret_id_ttl")? {
            self.secret_id_ttl = ttl.as_secs();
        }
        if let Some(local) = data.flag("local_secret_ids")? {
            self.local_secret_ids = local;
        }
        self.params.update(data)?;
        if !self.bind_secret_id
            && self.secret_id_bound_cidrs.is_empty()
            && self.params.bound_cidrs.is_empty()
        {
            return Err(ApiError::bad(
                "at least one constraint should be enabled on the role",
            ));
        }
        Ok(())
    }

    fn describe(&self) -> Map<String, Value> {
        let mut out = Map::new();
        for (name, value) in [
            ("bind_secret_id", json!(self.bind_secret_id)),
            (
                "secret_id_bound_cidrs",
                match self.secret_id_bound_cidrs.is_empty() {
                    true => Value::Null,
                    false => json!(self.secret_id_bound_cidrs),
                },
            ),
            ("secret_id_num_uses", json!(self.secret_id_num_uses)),
            ("secret_id_ttl", json!(self.secret_id_ttl)),
            ("local_secret_ids", json!(self.local_secret_ids)),
        ] {
            out.insert(name.into(), value);
        }
        self.params.describe(&mut out);
        out
    }
}

/// What is kept of a secret id; its name is an HMAC of it.
#[derive(Clone, Serialize, Deserialize)]
struct SecretId {
    accessor: String,
    /// Unix seconds.
    created: i64,
    updated: i64,
    expires: Option<i64>,
    ttl: u64,
    /// Uses left; 0 = unlimited.
    num_uses: i64,
    cidr_list: Vec<String>,
    token_bound_cidrs: Vec<String>,
    metadata: BTreeMap<String, String>,
}

impl SecretId {
    fn describe(&self) -> Value {
        // Go's zero time stands for "never".
        let expires = self
            .expires
            .map_or_else(|| "0001-01-01T00:00:00Z".into(), rfc3339_unix);
        json!({
            "secret_id_accessor": self.accessor, "secret_id_num_uses": self.num_uses, "secret_id_ttl": self.ttl,
            "creation_time": rfc3339_unix(self.created), "last_updated_time": rfc3339_unix(self.updated),
            "expiration_time": expires, "metadata": self.metadata, "cidr_list": self.cidr_list,
            "token_bound_cidrs": self.token_bound_cidrs,
        })
    }
}

/// One mount of the method.
pub(crate) struct AppRole {
    db: Db,
    /// Where its records are.
    prefix: String,
    /// Where it is mounted, e.g. `auth/approle/`.
    mount: String,
    clock: Clock,
    key: Arc<NameKey>,
}

/// The fields of a role that have a path of their own, and their names in the role.
const FIELDS: [(&str, &str); 18] = [
    ("policies", "token_policies"),
    ("token-policies", "token_policies"),
    ("bind-secret-id", "bind_secret_id"),
    ("bound-cidr-list", "secret_id_bound_cidrs"),
    ("secret-id-bound-cidrs", "secret_id_bound_cidrs"),
    ("secret-id-num-uses", "secret_id_num_uses"),
    ("secret-id-ttl", "secret_id_ttl"),
    ("local-secret-ids", "local_secret_ids"),
    ("token-bound-cidrs", "token_bound_cidrs"),
    ("token-ttl", "token_ttl"),
    ("token-max-ttl", "token_max_ttl"),
    ("token-explicit-max-ttl", "token_explicit_max_ttl"),
    ("token-num-uses", "token_num_uses"),
    ("token-no-default-policy", "token_no_default_policy"),
    ("token-type", "token_type"),
    ("token-period", "token_period"),
    ("token-strictly-bind-ip", "token_strictly_bind_ip"),
    ("period", "token_period"),
];

impl AppRole {
    pub fn new(db: Db, prefix: String, mount: String, clock: Clock, key: Arc<NameKey>) -> Self {
        Self {
            db,
            prefix,
            mount,
            clock,
            key,
        }
    }

    /// Whether a path below the mount is asked for without a token.
    pub fn is_login(path: &str) -> bool {
        path == "login"
    }

    /// Whom a login is about; the form that attempts are counted under. `None`: nobody, for there is no such role.
    pub fn alias(&self, data: &Data) -> Result<Option<String>, ApiError> {
        let id = data.text("role_id")?.unwrap_or_default();
        let known = self.db.index(&self.id_path(&id))?.is_some();
        Ok(known.then_some(id))
    }

    /// Whether a write would be an *update*.
    pub fn exists(&self, path: &str) -> Result<bool, ApiError> {
        match path.strip_prefix("role/") {
            Some(name) if !name.contains('/') => Ok(self
                .db
                .index(&self.role_path(&name.to_ascii_lowercase()))?
                .is_some()),
            _ => Ok(true),
        }
    }

    /// `role/…` and `tidy/secret-id`.
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if path == "tidy/secret-id" {
            return match operation {
                Write => self.tidy(by).await,
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let rest = path
            .strip_prefix("role/")
            .ok_or(ApiError::UnsupportedPath)?;
        if rest.is_empty() {
            return match operation {
                List => Answer::keys(self.db.list(&format!("{}role/", self.prefix))?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let (name, part) = match rest.split_once('/') {
            Some((name, part)) => (item_name(name)?, part),
            None => (item_name(rest)?, ""),
        };
        let field = FIELDS.iter().find(|(path, _)| *path == part);
        match (part, operation, field) {
            ("", Read, _) => Ok(Answer::data(self.needed(&name)?.describe())),
            ("", Write, _) => self.write(by, &name, data).await,
            ("", Delete, _) => self.delete(by, &name).await,
            ("role-id", Read, _) => {
                let role = self.needed(&name)?;
                Ok(Answer::data(json!({ "role_id": role.role_id })))
            }
            ("role-id", Write, _) => {
                let id = text(data, "role_id")?;
                let mut change = Data::default();
                change.insert("role_id", id);
                self.change(by, &name, &change).await
            }
            (_, Read, Some((_, field))) => {
                let value = self.needed(&name)?.describe().remove(*field);
                let mut out = Map::new();
                out.insert((*field).to_string(), value.unwrap_or_default());
                Ok(Answer::data(out))
            }
            (_, Write, Some((_, field))) => {
                let mut change = Data::default();
                // Under its name in the role, or the path's.
                let own = part.replace('-', "_");
                let given = data.raw(field).or_else(|| data.raw(&own));
                let given = given.ok_or_else(|| ApiError::bad(format!("missing {field}")))?;
                change.insert(*field, given.clone());
                self.change(by, &name, &change).await
            }
            (_, Delete, Some((_, field))) => self.reset(by, &name, field).await,
            ("secret-id/", List, _) => {
                self.needed(&name)?;
                Answer::keys(self.db.list(&self.accessors(&name))?)
            }
            ("secret-id", Write, _) => {
                let secret = Zeroizing::new(uuid::Uuid::new_v4().to_string());
                self.make(by, &name, secret, data).await
            }
            ("custom-secret-id", Write, _) => {
                let secret = Zeroizing::new(text(data, "secret_id")?);
                self.make(by, &name, secret, data).await
            }
            ("secret-id/lookup", Write, _) => {
                self.needed(&name)?;
                let path = self.secret_path(&name, &text(data, "secret_id")?);
                Ok(match self.live(&path)? {
                    Some((secret, _)) => Answer::data(secret.describe()),
                    None => Answer::none(),
                })
            }
            ("secret-id/destroy", Write | Delete, _) => {
                self.needed(&name)?;
                let path = self.secret_path(&name, &text(data, "secret_id")?);
                self.destroy(by, &name, &path).await
            }
            ("secret-id-accessor/lookup", Write, _) => {
                let path = self.by_accessor(&name, data)?;
                let (secret, _) = self.live(&path)?.ok_or_else(no_accessor)?;
                Ok(Answer::data(secret.describe()))
            }
            ("secret-id-accessor/destroy", Write | Delete, _) => {
                let path = self.by_accessor(&name, data)?;
                self.destroy(by, &name, &path).await
            }
            (
                ""
                | "role-id"
                | "secret-id"
                | "secret-id/"
                | "custom-secret-id"
                | "secret-id/lookup"
                | "secret-id/destroy"
                | "secret-id-accessor/lookup"
                | "secret-id-accessor/destroy",
                ..,
            )
            | (_, _, Some(_)) => Err(ApiError::UnsupportedOperation),
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    fn role(&self, name: &str) -> Result<Option<(Role, u64)>, ApiError> {
        self.db.get(&self.role_path(name))
    }

    fn needed(&self, name: &str) -> Result<Role, ApiError> {
        Ok(self.role(name)?.ok_or(ApiError::NotFound)?.0)
    }

    async fn write(&self, by: &By, name: &str, data: &Data) -> Result<Answer, ApiError> {
        let _order = self.db.lock(&self.prefix).await;
        let before = self.role(name)?.map(|(role, _)| role);
        let mut role = before.clone().unwrap_or_default();
        role.update(data)?;
        self.put(by, name, before.as_ref(), &role).await
    }

    async fn change(&self, by: &By, name: &str, data: &Data) -> Result<Answer, ApiError> {
        let _order = self.db.lock(&self.prefix).await;
        let before = self.needed(name)?;
        let mut role = before.clone();
        role.update(data)?;
        self.put(by, name, Some(&before), &role).await
    }

    /// Gives one field the value that a new role has.
    async fn reset(&self, by: &By, name: &str, field: &str) -> Result<Answer, ApiError> {
        let mut change = Data::default();
        let value = Role::default().describe().remove(field);
        // Nothing set reads as null, and null in a request as "leave it".
        let value = match value {
            Some(Value::Null) | None => json!([]),
            Some(value) => value,
        };
        change.insert(field, value);
        self.change(by, name, &change).await
    }

    async fn put(
        &self,
        by: &By,
        name: &str,
        before: Option<&Role>,
        role: &Role,
    ) -> Result<Answer, ApiError> {
        let index = self.id_path(&role.role_id);
        let held = self.db.get::<String>(&index)?.map(|(name, _)| name);
        if held.as_deref().is_some_and(|held| held != name) {
            return Err(ApiError::bad("role_id already in use"));
        }
        let mut batch = self.batch(by, "approle role write", name);
        if let Some(before) = before.filter(|before| before.role_id != role.role_id) {
            batch.delete(&self.id_path(&before.role_id));
        }
        batch.put(&self.role_path(name), role)?.put(&index, &name)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    /// The role and every secret id of it.
    async fn delete(&self, by: &By, name: &str) -> Result<Answer, ApiError> {
        let _order = self.db.lock(&self.prefix).await;
        let Some((role, _)) = self.role(name)? else {
            return Ok(Answer::none());
        };
        let mut batch = self.batch(by, "approle role delete", name);
        batch
            .delete(&self.role_path(name))
            .delete(&self.id_path(&role.role_id));
        self.db.commit(batch).await?;
        // Without their role they are worth nothing.
        let mut names = self.db.names(&self.secrets(name))?;
        names.extend(self.db.names(&self.accessors(name))?);
        for names in names.chunks(CHUNK) {
            let mut batch = self.batch(by, "approle role delete", name);
            for name in names {
                batch.delete(name);
            }
            self.db.commit(batch).await?;
        }
        Ok(Answer::none())
    }

    async fn make(
        &self,
        by: &By,
        name: &str,
        secret: Zeroizing<String>,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let _order = self.db.lock(&self.prefix).await;
        let role = self.needed(name)?;
        if !role.bind_secret_id {
            return Err(ApiError::bad("bind_secret_id is not set on the role"));
        }
        let ttl = match data.duration("ttl")?.map(|ttl| ttl.as_secs()) {
            Some(ttl) if role.secret_id_ttl > 0 && (ttl == 0 || ttl > role.secret_id_ttl) => {
                return Err(ApiError::bad(
                    "ttl cannot be longer than the role's secret_id_ttl",
                ));
            }
            given => given.unwrap_or(role.secret_id_ttl),
        };
        let num_uses = match data.int("num_uses")? {
            Some(uses) if uses < 0 => return Err(ApiError::bad("num_uses cannot be negative")),
            Some(uses)
                if role.secret_id_num_uses > 0 && (uses == 0 || uses > role.secret_id_num_uses) =>
            {
                return Err(ApiError::bad(
                    "num_uses cannot be higher than the role's secret_id_num_uses",
                ));
            }
            given => given.unwrap_or(role.secret_id_num_uses),
        };
        let cidrs = |field: &str, within: &[String]| {
            let cidrs = data.list(field)?.unwrap_or_default();
            check_cidrs(field, &cidrs)?;
            match is_subset(&cidrs, within) {
                true => Ok(cidrs),
                false => Err(ApiError::bad(format!(
                    "field \"{field}\" is not a subset of the role's"
                ))),
            }
        };
        let now = self.clock.unix();
        let id = SecretId {
            accessor: uuid::Uuid::new_v4().to_string(),
            created: now,
            updated: now,
            expires: (ttl > 0).then(|| now + i64::try_from(ttl).unwrap_or(i64::MAX / 2)),
            ttl,
            num_uses,
            cidr_list: cidrs("cidr_list", &role.secret_id_bound_cidrs)?,
            token_bound_cidrs: cidrs("token_bound_cidrs", &role.params.bound_cidrs)?,
            metadata: metadata(data)?,
        };
        let path = self.secret_path(name, &secret);
        let mut batch = self.batch(by, "approle secret-id make", name);
        if self.db.index(&path)?.is_some() {
            return Err(ApiError::bad("SecretID is already registered"));
        }
        batch
            .put(&path, &id)?
            .put(&format!("{}{}", self.accessors(name), id.accessor), &path)?;
        self.db.commit(batch).await?;
        Ok(Answer::data(json!({
            "secret_id": *secret, "secret_id_accessor": id.accessor, "secret_id_num_uses": num_uses, "secret_id_ttl": ttl,
        })))
    }

    /// A secret id that is neither expired nor used up, and its index.
    fn live(&self, path: &str) -> Result<Option<(SecretId, u64)>, ApiError> {
        let found = self.db.get::<SecretId>(path)?;
        let now = self.clock.unix();
        Ok(found.filter(|(secret, _)| secret.expires.is_none_or(|at| at > now)))
    }

    fn by_accessor(&self, name: &str, data: &Data) -> Result<String, ApiError> {
        self.needed(name)?;
        let accessor = text(data, "secret_id_accessor")?;
        let found = self
            .db
            .get::<String>(&format!("{}{accessor}", self.accessors(name)))?;
        Ok(found.ok_or_else(no_accessor)?.0)
    }

    async fn destroy(&self, by: &By, name: &str, path: &str) -> Result<Answer, ApiError> {
        let _order = self.db.lock(path).await;
        if let Some((secret, _)) = self.db.get::<SecretId>(path)? {
            let mut batch = self.batch(by, "approle secret-id destroy", name);
            batch
                .delete(path)
                .delete(&format!("{}{}", self.accessors(name), secret.accessor));
            self.db.commit(batch).await?;
        }
        Ok(Answer::none())
    }

    /// Removes secret ids that have expired.
    async fn tidy(&self, by: &By) -> Result<Answer, ApiError> {
        let now = self.clock.unix();
        for name in self.db.list(&format!("{}role/", self.prefix))? {
            for path in self.db.names(&self.secrets(&name))? {
                let expired = self
                    .db
                    .get::<SecretId>(&path)?
                    .is_some_and(|(secret, _)| secret.expires.is_some_and(|at| at <= now));
                if expired {
                    self.destroy(by, &name, &path).await?;
                }
            }
        }
        Ok(Answer::none()
            .warn("Tidy operation successfully started.")
            .status(http::StatusCode::ACCEPTED))
    }

    /// `login`
    ///
    /// # Errors
    /// 400 with one text, whichever of the two is wrong.
    pub async fn login(
        &self,
        by: &By,
        data: &Data,
        remote: &Remote,
    ) -> Result<Login<'_>, ApiError> {
        let wrong = || ApiError::BadCredentials("invalid role or secret ID");
        let id = data
            .text("role_id")?
            .filter(|id| !id.is_empty())
            .ok_or_else(|| ApiError::Internal("missing role_id".to_string()))?;
        let (name, _) = self
            .db
            .get::<String>(&self.id_path(&id))?
            .ok_or_else(wrong)?;
        let (role, _) = self.role(&name)?.ok_or_else(wrong)?;
        let mut login = Login {
            params: role.params,
            metadata: BTreeMap::new(),
            name: String::new(),
            alias: role.role_id,
            groups: None,
            certificate: None,
            batch: None,
            order: None,
        };
        if role.bind_secret_id {
            let secret = data
                .text("secret_id")?
                .map(Zeroizing::new)
                .filter(|secret| !secret.is_empty())
                .ok_or_else(|| ApiError::bad("missing secret_id"))?;
            let path = self.secret_path(&name, &secret);
            let (mut secret, index) = match self.live(&path)? {
                Some((secret, _)) if secret.num_uses > 0 => {
                    // Uses are counted one after the other.
                    login.order = Some(self.db.lock(&path).await);
                    self.live(&path)?.ok_or_else(wrong)?
                }
                found => found.ok_or_else(wrong)?,
            };
            if !is_within(remote, &secret.cidr_list) {
                return Err(ApiError::Unauthenticated);
            }
            if secret.num_uses > 0 {
                let mut batch = self.batch(by, "approle login", &name);
                batch.expect(&path, Some(index));
                secret.num_uses -= 1;
                secret.updated = self.clock.unix();
                if secret.num_uses == 0 {
                    let accessor = format!("{}{}", self.accessors(&name), secret.accessor);
                    batch.delete(&path).delete(&accessor);
                } else {
                    batch.put(&path, &secret)?;
                }
                login.batch = Some(batch);
            }
            if !secret.token_bound_cidrs.is_empty() {
                login.params.bound_cidrs = secret.token_bound_cidrs;
            }
            login.metadata = secret.metadata;
        }
        if !is_within(remote, &role.secret_id_bound_cidrs)
            || !is_within(remote, &login.params.bound_cidrs)
        {
            return Err(ApiError::Unauthenticated);
        }
        login.metadata.insert("role_name".into(), name);
        Ok(login)
    }

    fn role_path(&self, name: &str) -> String {
        format!("{}role/{name}", self.prefix)
    }

    fn secrets(&self, name: &str) -> String {
        format!("{}secret/{name}/", self.prefix)
    }

    fn accessors(&self, name: &str) -> String {
        format!("{}accessor/{name}/", self.prefix)
    }

    fn id_path(&self, id: &str) -> String {
        format!("{}role-id/{}", self.prefix, self.hashed(&["role", id]))
    }

    fn secret_path(&self, name: &str, secret: &str) -> String {
        format!(
            "{}{}",
            self.secrets(name),
            self.hashed(&["secret", name, secret])
        )
    }

    fn hashed(&self, parts: &[&str]) -> String {
        let parts = [&["approle", &self.prefix][..], parts].concat();
        self.key.name(parts.join("\0").as_bytes())
    }

    fn batch(&self, by: &By, operation: &str, name: &str) -> Batch {
        let mut batch = Batch::new(by, operation);
        batch.key(format!("{}role/{name}", self.mount));
        batch
    }
}

/// A field that must be there.
fn text(data: &Data, name: &str) -> Result<String, ApiError> {
    data.text(name)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| ApiError::bad(format!("missing {name}")))
}

/// `metadata`, which is a JSON object in a text.
fn metadata(data: &Data) -> Result<BTreeMap<String, String>, ApiError> {
    match data.raw("metadata") {
        Some(Value::String(text)) if text.is_empty() => Ok(BTreeMap::new()),
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|_| ApiError::bad("field \"metadata\": not a JSON object of texts")),
        _ => Ok(data.text_map("metadata")?.unwrap_or_default()),
    }
}

fn no_accessor() -> ApiError {
    ApiError::NotFound
}
