//! The login method of those whose TLS connection showed a certificate of somebody trusted.
//!
//! Whoever ended the connection saw that the client has the certificate's key; what the certificate is worth is decided
//! here. A role trusts authorities, or one certificate as a whole, and may ask for names and extensions. A token from here
//! renews over the same certificate only (CVE-2026-39388), unless the mount is told not to bind. Revocation is by lists that are
//! given; OCSP is not asked.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::params::{TokenParams, is_within};
use super::{Login, item_name};
use crate::clock::Clock;
use crate::core::Error;
use crate::db::{Batch, By, Db, failure};
use crate::glob;
use crate::http::{ApiError, hex, reply::Answer};
use crate::request::{Caller, Data, Operation};
use crate::token::{Binding, fingerprint};

pub(crate) mod chain;

use chain::{Shown, Trusted};

/// One mount of the method.
pub(crate) struct Cert {
    db: Db,
    /// Where its records are, e.g. `logical/<uuid>/`.
    prefix: String,
    /// Where it is mounted, e.g. `auth/cert/`.
    mount: String,
    clock: Clock,
    /// What the lists say, as of the ledger index.
    revoked: Mutex<(u64, Arc<Revoked>)>,
}

/// Issuers, each with numbers of certificates.
type Revoked = HashSet<(Vec<u8>, Vec<u8>)>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Tokens renew from everywhere.
    disable_binding: bool,
}

/// Which certificates, and what one gets for them. An empty list asks for nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Role {
    /// PEM.
    certificate: String,
    display_name: String,
    allowed_names: Vec<String>,
    allowed_common_names: Vec<String>,
    allowed_dns_sans: Vec<String>,
    allowed_email_sans: Vec<String>,
    allowed_uri_sans: Vec<String>,
    allowed_organizational_units: Vec<String>,
    /// `oid:value`, with `*` for anything.
    required_extensions: Vec<String>,
    /// Extensions that go into the token's metadata.
    allowed_metadata_extensions: Vec<String>,
    params: TokenParams,
}

/// A revocation list: whose, and which numbers, in hex.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    issuer: String,
    serials: Vec<String>,
}

impl Cert {
    pub fn new(db: Db, prefix: String, mount: String, clock: Clock) -> Self {
        Self {
            db,
            prefix,
            mount,
            clock,
            revoked: Mutex::default(),
        }
    }

    /// Whether a path below the mount is asked for without a token.
    pub fn is_login(path: &str) -> bool {
        path == "login"
    }

    /// Whether a write would be an *update*.
    pub fn exists(&self, path: &str) -> Result<bool, ApiError> {
        match path.split_once('/') {
            Some((part @ ("certs" | "crls"), name)) => Ok(self
                .db
                .index(&self.record(part, &name.to_ascii_lowercase()))?
                .is_some()),
            _ => Ok(true),
        }
    }

    /// `config`, `certs/…` and `crls/…`
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if path == "config" {
            return match operation {
                Read => Ok(Answer::data(json!({
                    "disable_binding": self.config()?.disable_binding, "enable_identity_alias_metadata": true,
                }))),
                Write => self.configure(by, data).await,
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let (part, name) = path.split_once('/').ok_or(ApiError::UnsupportedPath)?;
        if !matches!(part, "certs" | "crls") {
            return Err(ApiError::UnsupportedPath);
        }
        if name.is_empty() {
            return match operation {
                List => Answer::keys(self.db.list(&self.record(part, ""))?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let name = item_name(name)?;
        let record = self.record(part, &name);
        match (part, operation) {
            ("certs", Read) => {
                let role = self.role(&name)?.ok_or(ApiError::NotFound)?;
                Ok(Answer::data(role.describe()))
            }
            ("certs", Write) => {
                let _order = self.db.lock(&record).await;
                let mut role = self.role(&name)?.unwrap_or_default();
                role.update(&name, data)?;
                self.put(by, "cert role write", path, &record, &role).await
            }
            ("crls", Read) => {
                let (list, _) = self
                    .db
                    .get::<self::List>(&record)?
                    .ok_or(ApiError::NotFound)?;
                let serials: Map<_, _> = list
                    .serials
                    .iter()
                    .map(|serial| (serial.clone(), json!({})))
                    .collect();
                Ok(Answer::data(json!({ "serials": serials })))
            }
            ("crls", Write) => {
                let list = self::List::parse(data)?;
                self.put(by, "cert crl write", path, &record, &list).await
            }
            (_, Delete) => {
                if self.db.index(&record)?.is_some() {
                    let mut batch = Batch::new(by, "cert delete");
                    batch.delete(&record).key(format!("{}{path}", self.mount));
                    self.db.commit(batch).await?;
                }
                Ok(Answer::none())
            }
            _ => Err(ApiError::UnsupportedOperation),
        }
    }

    async fn put(
        &self,
        by: &By,
        operation: &str,
        path: &str,
        record: &str,
        value: &impl Serialize,
    ) -> Result<Answer, ApiError> {
        let mut batch = Batch::new(by, operation);
        batch
            .key(format!("{}{path}", self.mount))
            .put(record, value)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    async fn configure(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let mut config = self.config()?;
        if let Some(disable) = data.flag("disable_binding")? {
            config.disable_binding = disable;
        }
        let record = format!("{}config", self.prefix);
        self.put(by, "cert config", "config", &record, &config)
            .await
    }

    /// `login`
    ///
    /// # Errors
    /// 400: no certificate, or none that a role takes.
    pub fn login(&self, data: &Data, caller: &Caller) -> Result<Login<'_>, ApiError> {
        let leaf = caller
            .certificates
            .first()
            .and_then(|der| Shown::parse(der))
            .ok_or_else(|| ApiError::bad("client certificate must be supplied"))?;
        let names = match data.text("name")?.filter(|name| !name.is_empty()) {
            Some(name) => vec![item_name(&name).unwrap_or_default()],
            None => self.db.list(&self.record("certs", ""))?,
        };
        let no_good = || ApiError::bad("invalid certificate or no client certificate supplied");
        let revoked = self.revoked().map_err(failure)?;
        if revoked.contains(&(leaf.issuer.clone(), leaf.serial.clone())) {
            return Err(no_good());
        }
        for name in names {
            let Some(role) = self.role(&name)? else {
                continue;
            };
            let trusted = Trusted::parse(&role.certificate)?;
            if !role.takes(&leaf)
                || !trusted.vouch_for(&caller.certificates, &leaf, self.clock.now())
            {
                continue;
            }
            if !is_within(&caller.remote, &role.params.bound_cidrs) {
                return Err(ApiError::Unauthenticated);
            }
            return self.login_of(role, name, &leaf);
        }
        Err(no_good())
    }

    fn login_of(&self, role: Role, name: String, leaf: &Shown) -> Result<Login<'_>, ApiError> {
        let mut metadata = BTreeMap::from([
            ("cert_name".to_string(), name),
            ("common_name".to_string(), leaf.common_name.clone()),
            ("serial_number".to_string(), leaf.serial_decimal.clone()),
            ("subject_key_id".to_string(), leaf.subject_key_id.clone()),
            (
                "authority_key_id".to_string(),
                leaf.authority_key_id.clone(),
            ),
        ]);
        for (oid, value) in &leaf.extensions {
            if role.allowed_metadata_extensions.contains(oid) {
                metadata.insert(oid.replace('.', "-"), value.clone());
            }
        }
        // Certificates of workloads have no common name.
        let alias = match (&leaf.common_name, &leaf.uris[..]) {
            (name, _) if !name.is_empty() => name.clone(),
            (_, [uri]) => uri.clone(),
            _ => fingerprint(&leaf.der),
        };
        let bound = !self.config()?.disable_binding;
        Ok(Login {
            params: role.params,
            metadata,
            name: role.display_name,
            alias,
            groups: None,
            certificate: bound.then(|| Binding::renewal(&leaf.der)),
            batch: None,
            order: None,
        })
    }

    /// What the lists say now. They are read again when one has changed.
    fn revoked(&self) -> Result<Arc<Revoked>, Error> {
        let lists = self.record("crls", "");
        let core = self.db.core();
        let now = core.changed_under(&lists)?;
        let mut known = self.revoked.lock();
        if known.0 < now {
            let mut all = Revoked::new();
            for name in core.scan(&lists)? {
                let list = core.get(&name)?;
                let list = list.and_then(|list| serde_json::from_slice::<List>(&list).ok());
                for serial in list.iter().flat_map(|list| &list.serials) {
                    let issuer = list.as_ref().map_or("", |list| &list.issuer);
                    all.insert((bytes(issuer), bytes(serial)));
                }
            }
            *known = (now, Arc::new(all));
        }
        Ok(Arc::clone(&known.1))
    }

    fn config(&self) -> Result<Config, ApiError> {
        let found = self.db.get(&format!("{}config", self.prefix))?;
        Ok(found.map(|(config, _)| config).unwrap_or_default())
    }

    fn role(&self, name: &str) -> Result<Option<Role>, ApiError> {
        let found = self.db.get(&self.record("certs", name))?;
        Ok(found.map(|(role, _)| role))
    }

    fn record(&self, part: &str, name: &str) -> String {
        format!("{}{part}/{name}", self.prefix)
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

impl List {
    /// # Errors
    /// 400: not a revocation list.
    fn parse(data: &Data) -> Result<Self, ApiError> {
        if data.text("url")?.is_some_and(|url| !url.is_empty()) {
            return Err(ApiError::bad(
                "field \"url\" is not available: give the list itself in \"crl\"",
            ));
        }
        let text = data.text("crl")?.unwrap_or_default();
        let unreadable =
            || ApiError::bad("failed to parse CRL: field \"crl\" is not a revocation list in PEM");
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|_| unreadable())?;
        let (_, list) =
            CertificateRevocationList::from_der(&pem.contents).map_err(|_| unreadable())?;
        Ok(Self {
            issuer: hex(list.issuer().as_raw()),
            serials: list
                .iter_revoked_certificates()
                .map(|revoked| hex(revoked.raw_serial()))
                .collect(),
        })
    }
}

impl Role {
    /// # Errors
    /// 400 with the field.
    fn update(&mut self, name: &str, data: &Data) -> Result<(), ApiError> {
        let mut new = self.clone();
        if data.flag("ocsp_enabled")?.unwrap_or(false) {
            return Err(ApiError::bad(
                "field \"ocsp_enabled\" is not available: this server asks no OCSP responder; use crls/",
            ));
        }
        if let Some(certificate) = data.text("certificate")? {
            Trusted::parse(&certificate)?;
            new.certificate = certificate;
        }
        if new.certificate.is_empty() {
            return Err(ApiError::bad("missing certificate"));
        }
        for (name, list) in [
            ("allowed_names", &mut new.allowed_names),
            ("allowed_common_names", &mut new.allowed_common_names),
            ("allowed_dns_sans", &mut new.allowed_dns_sans),
            ("allowed_email_sans", &mut new.allowed_email_sans),
            ("allowed_uri_sans", &mut new.allowed_uri_sans),
            (
                "allowed_organizational_units",
                &mut new.allowed_organizational_units,
            ),
            ("required_extensions", &mut new.required_extensions),
            (
                "allowed_metadata_extensions",
                &mut new.allowed_metadata_extensions,
            ),
        ] {
            if let Some(given) = data.list(name)? {
                *list = given;
            }
        }
        for name in &mut new.allowed_dns_sans {
            name.make_ascii_lowercase();
        }
        if new.required_extensions.iter().any(|e| !e.contains(':')) {
            return Err(ApiError::bad(
                "field \"required_extensions\": each is an object identifier, a colon and the value",
            ));
        }
        if let Some(shown) = data.text("display_name")? {
            new.display_name = shown;
        }
        if new.display_name.is_empty() {
            name.clone_into(&mut new.display_name);
        }
        new.params.update(data)?;
        *self = new;
        Ok(())
    }

    /// Whether a certificate has the names and extensions that are asked for.
    fn takes(&self, leaf: &Shown) -> bool {
        let common_name = std::slice::from_ref(&leaf.common_name);
        let all_names = [common_name, &leaf.dns, &leaf.emails].concat();
        let fits = |allowed: &[String], have: &[String]| {
            allowed.is_empty()
                || have
                    .iter()
                    .any(|have| allowed.iter().any(|pattern| glob::matches(pattern, have)))
        };
        fits(&self.allowed_names, &all_names)
            && fits(&self.allowed_common_names, common_name)
            && fits(&self.allowed_dns_sans, &leaf.dns)
            && fits(&self.allowed_email_sans, &leaf.emails)
            && fits(&self.allowed_uri_sans, &leaf.uris)
            && fits(&self.allowed_organizational_units, &leaf.units)
            && self.required_extensions.iter().all(|required| {
                let (oid, wanted) = required.split_once(':').unwrap_or_default();
                leaf.extensions
                    .iter()
                    .any(|(own, value)| own == oid && glob::matches(wanted, value))
            })
    }

    fn describe(&self) -> Value {
        let mut out = Map::new();
        self.params.describe(&mut out);
        for (name, value) in [
            ("certificate", json!(self.certificate)),
            ("display_name", json!(self.display_name)),
            ("allowed_names", json!(self.allowed_names)),
            ("allowed_common_names", json!(self.allowed_common_names)),
            ("allowed_dns_sans", json!(self.allowed_dns_sans)),
            ("allowed_email_sans", json!(self.allowed_email_sans)),
            ("allowed_uri_sans", json!(self.allowed_uri_sans)),
            (
                "allowed_organizational_units",
                json!(self.allowed_organizational_units),
            ),
            ("required_extensions", json!(self.required_extensions)),
            (
                "allowed_metadata_extensions",
                json!(self.allowed_metadata_extensions),
            ),
            ("ocsp_enabled", json!(false)),
        ] {
            out.insert(name.into(), value);
        }
        Value::Object(out)
    }
}
