//! One-time passwords for SSH: a password for one user on one host, which the host's helper checks once.
//!
//! A role names the networks and users it is for. `creds/:role` makes a password under a lease; the helper on the host asks
//! `verify`, which needs no token and takes the password away. Passwords are stored under a keyed hash of
//! themselves, so nothing stored yields one. Signed certificates are not part of this engine yet.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::auth::item_name;
use crate::auth::params::{check_cidrs, contains};
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::lease::Offer;
use crate::request::{Data, Operation};
use crate::token::NameKey;

/// What a helper sends to see whether it can reach the server, and what it expects.
const ECHO: (&str, &str) = ("verify-echo-request", "verify-echo-response");

/// One mount of the engine.
pub(crate) struct Ssh {
    db: Db,
    /// Where its records are, e.g. `logical/<uuid>/`.
    prefix: String,
    /// Where it is mounted, e.g. `ssh/`; names its keys in the ledger.
    mount: String,
    names: Arc<NameKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Role {
    default_user: String,
    allowed_users: String,
    cidr_list: Vec<String>,
    exclude_cidr_list: Vec<String>,
    port: u16,
}

/// What is behind a password.
#[derive(Debug, Serialize, Deserialize)]
struct Otp {
    username: String,
    ip: IpAddr,
    role: String,
}

impl Ssh {
    pub fn new(db: Db, prefix: String, mount: String, names: Arc<NameKey>) -> Self {
        Self {
            db,
            prefix,
            mount,
            names,
        }
    }

    /// Whether a path below the mount is asked for without a token.
    pub fn is_open(path: &str) -> bool {
        path == "verify"
    }

    /// Answer a request for a path below the mount. A password lives `ttl` seconds, or `max_ttl` at most.
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
        (ttl, max_ttl): (u64, u64),
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        let (part, rest) = path.split_once('/').unwrap_or((path, ""));
        match (part, operation) {
            ("roles", List) if rest.is_empty() => self.list(),
            ("roles", Read) => self.read(&item_name(rest)?),
            ("roles", Write) => self.write(by, &item_name(rest)?, data).await,
            ("roles", Delete) => self.delete(by, &item_name(rest)?).await,
            ("creds", Write) => {
                let (answer, batch, otp) = self.creds(by, &item_name(rest)?, data)?;
                Ok(answer.offer(Offer {
                    batch,
                    ttl,
                    max_ttl,
                    renewable: false,
                    data: json!({ "otp": otp }),
                }))
            }
            ("lookup", Write) if rest.is_empty() => self.lookup(data),
            ("verify", Write) if rest.is_empty() => self.verify(by, data).await,
            ("roles" | "creds" | "lookup" | "verify", _) => Err(ApiError::UnsupportedOperation),
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    /// Takes a password back.
    pub fn take_back(&self, lease: &Value, batch: &mut Batch) -> Result<(), ApiError> {
        let otp = lease["otp"].as_str().ok_or_else(|| {
            ApiError::Internal("the lease does not say which password it is for".into())
        })?;
        batch.delete(&self.otp_path(otp));
        Ok(())
    }

    fn list(&self) -> Result<Answer, ApiError> {
        let names = self.db.list(&self.role_path(""))?;
        let info: Map<_, _> = names
            .iter()
            .map(|name| (name.clone(), json!({"key_type": "otp"})))
            .collect();
        let mut answer = Answer::keys(names)?;
        if let Some(Value::Object(data)) = &mut answer.data {
            data.insert("key_info".into(), info.into());
        }
        Ok(answer)
    }

    fn read(&self, name: &str) -> Result<Answer, ApiError> {
        let role = self.role(name)?.ok_or(ApiError::NotFound)?;
        Ok(Answer::data(json!({
            "key_type": "otp", "default_user": role.default_user, "allowed_users": role.allowed_users,
            "cidr_list": role.cidr_list.join(","), "exclude_cidr_list": role.exclude_cidr_list.join(","),
            "port": role.port,
        })))
    }

    async fn write(&self, by: &By, name: &str, data: &Data) -> Result<Answer, ApiError> {
        match data.text("key_type")?.as_deref() {
            Some("otp") => {}
            Some("dynamic") => {
                return Err(ApiError::bad(
                    "dynamic key type roles are no longer supported",
                ));
            }
            Some("ca") => {
                return Err(ApiError::bad(
                    "key_type \"ca\" is not available: this server does not sign SSH certificates yet",
                ));
            }
            _ => return Err(ApiError::bad("invalid key type")),
        }
        let networks = |field| {
            let cidrs = data.list(field)?.unwrap_or_default();
            check_cidrs(field, &cidrs)?;
            Ok::<_, ApiError>(cidrs)
        };
        let role = Role {
            default_user: data
                .text("default_user")?
                .filter(|user| !user.is_empty())
                .ok_or_else(|| ApiError::bad("missing default user"))?,
            allowed_users: data.text("allowed_users")?.unwrap_or_default(),
            cidr_list: networks("cidr_list")?,
            exclude_cidr_list: networks("exclude_cidr_list")?,
            port: match data.int("port")? {
                None => 22,
                Some(port) => u16::try_from(port).map_err(|_| {
                    ApiError::bad("field \"port\" is not a port number (0 to 65535)")
                })?,
            },
        };
        let path = self.role_path(name);
        let mut batch = self.batch(by, "ssh role write", name);
        batch.put(&path, &role)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    async fn delete(&self, by: &By, name: &str) -> Result<Answer, ApiError> {
        let path = self.role_path(name);
        if self.db.index(&path)?.is_some() {
            let mut batch = self.batch(by, "ssh role delete", name);
            batch.delete(&path);
            self.db.commit(batch).await?;
        }
        Ok(Answer::none())
    }

    /// A new password, what to write for it, and its stored name.
    fn creds(&self, by: &By, name: &str, data: &Data) -> Result<(Answer, Batch, String), ApiError> {
        let role = self
            .role(name)?
            .ok_or_else(|| ApiError::bad(format!("Role {name:?} not found")))?;
        let username = match data.text("username")?.filter(|user| !user.is_empty()) {
            None => role.default_user.clone(),
            Some(user) if role.takes_user(&user) => user,
            Some(_) => {
                return Err(ApiError::bad(
                    "Username is not present is allowed users list",
                ));
            }
        };
        let ip = address(data)?;
        if !role.takes(ip) {
            return Err(ApiError::bad(
                "Error validating IP: IP does not belong to role",
            ));
        }
        let secret = Zeroizing::new(uuid::Uuid::new_v4().to_string());
        let otp = self.names.name(secret.as_bytes());
        let mut batch = self.batch(by, "ssh otp", name);
        let behind = Otp {
            username,
            ip,
            role: name.into(),
        };
        batch.put(&self.otp_path(&otp), &behind)?;
        let answer = Answer::data(json!({
            "key": *secret, "key_type": "otp", "ip": ip.to_string(), "port": role.port, "username": behind.username,
        }));
        Ok((answer, batch, otp))
    }

    /// The roles that are for an address.
    fn lookup(&self, data: &Data) -> Result<Answer, ApiError> {
        let ip = address(data)?;
        let mut roles = Vec::new();
        for name in self.db.list(&self.role_path(""))? {
            if self.role(&name)?.is_some_and(|role| role.takes(ip)) {
                roles.push(name);
            }
        }
        Ok(Answer::data(json!({ "roles": roles })))
    }

    /// What a password is for, once.
    async fn verify(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let secret = Zeroizing::new(data.text("otp")?.unwrap_or_default());
        if secret.as_str() == ECHO.0 {
            return Ok(Answer::data(json!({ "message": ECHO.1 })));
        }
        let unknown = || ApiError::bad("OTP not found");
        let path = self.otp_path(&self.names.name(secret.as_bytes()));
        let (otp, index) = self.db.get::<Otp>(&path)?.ok_or_else(unknown)?;
        let mut batch = self.batch(by, "ssh otp use", &otp.role);
        // Of two who ask at once, one is told.
        batch.expect(&path, Some(index)).delete(&path);
        if !self.db.try_commit(batch).await? {
            return Err(unknown());
        }
        Ok(Answer::data(json!({
            "ip": otp.ip.to_string(), "username": otp.username, "role_name": otp.role,
        })))
    }

    fn role(&self, name: &str) -> Result<Option<Role>, ApiError> {
        Ok(self.db.get(&self.role_path(name))?.map(|(role, _)| role))
    }

    fn role_path(&self, name: &str) -> String {
        format!("{}role/{name}", self.prefix)
    }

    fn otp_path(&self, otp: &str) -> String {
        format!("{}otp/{otp}", self.prefix)
    }

    fn batch(&self, by: &By, operation: &str, role: &str) -> Batch {
        let mut batch = Batch::new(by, operation);
        batch.key(format!("{}roles/{role}", self.mount));
        batch
    }
}

impl Role {
    fn takes(&self, ip: IpAddr) -> bool {
        contains(&self.cidr_list, ip) && !contains(&self.exclude_cidr_list, ip)
    }

    fn takes_user(&self, user: &str) -> bool {
        let mut allowed = self.allowed_users.split(',').map(str::trim);
        user == self.default_user || allowed.any(|allowed| allowed == "*" || allowed == user)
    }
}

fn address(data: &Data) -> Result<IpAddr, ApiError> {
    let text = data
        .text("ip")?
        .filter(|ip| !ip.is_empty())
        .ok_or_else(|| ApiError::bad("Missing ip"))?;
    text.parse()
        .map_err(|_| ApiError::bad("field \"ip\" is not an IP address"))
}
