//! The login method of workloads in a Kubernetes cluster: their service account's token, which the cluster itself reviews
//! (`TokenReview`).
//!
//! The cluster says whether the token is good and whose it is; a role says which accounts of which namespaces it takes.
//! Nothing that the token says of itself counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use super::params::{TokenParams, is_within};
use super::roles::{self, Roles};
use super::{Login, jwt::keys};
use crate::db::{Batch, By, Db};
use crate::glob;
use crate::http::{ApiError, reply::Answer};
use crate::outbound::Outbound;
use crate::request::{Data, Operation, Remote};

/// What a pod finds of its own service account.
const OWN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// One mount of the method.
pub(crate) struct Kubernetes {
    db: Db,
    /// Where its records are, e.g. `logical/<uuid>/`.
    prefix: String,
    /// Where it is mounted, e.g. `auth/kubernetes/`.
    mount: String,
    roles: Roles<Role>,
    outbound: Option<Arc<dyn Outbound>>,
}

/// Which cluster.
#[derive(Serialize, Deserialize)]
struct Config {
    kubernetes_host: String,
    kubernetes_ca_cert: String,
    /// What this server shows the cluster; empty: its own account's, or else the token that is reviewed.
    token_reviewer_jwt: String,
    disable_local_ca_jwt: bool,
}

/// Which accounts, and what one gets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Role {
    bound_service_account_names: Vec<String>,
    bound_service_account_namespaces: Vec<String>,
    audience: String,
    /// Whether the alias is made of the account's name, which another account may have later, and not its id.
    alias_is_name: bool,
    params: TokenParams,
}

/// A service account, as the cluster has it.
#[derive(Debug, PartialEq)]
struct Account {
    namespace: String,
    name: String,
    uid: String,
}

impl Kubernetes {
    pub fn new(db: Db, prefix: String, mount: String, outbound: Option<Arc<dyn Outbound>>) -> Self {
        Self {
            roles: Roles::new(db.clone(), &prefix, &mount),
            db,
            prefix,
            mount,
            outbound,
        }
    }

    /// Whether a path below the mount is asked for without a token.
    pub fn is_login(path: &str) -> bool {
        path == "login"
    }

    /// Whether a write would be an *update*.
    pub fn exists(&self, path: &str) -> Result<bool, ApiError> {
        path.strip_prefix("role/")
            .map_or(Ok(true), |name| self.roles.exists(name))
    }

    /// `config` and `role/…`
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        match (path, operation) {
            ("config", Operation::Read) => {
                let config = self.config()?.ok_or(ApiError::NotFound)?;
                Ok(Answer::data(config.describe()))
            }
            ("config", Operation::Write) => {
                let config = Config::parse(data)?;
                let mut batch = Batch::new(by, "kubernetes config");
                batch
                    .key(format!("{}config", self.mount))
                    .put(&self.config_path(), &config)?;
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            ("config", _) => Err(ApiError::UnsupportedOperation),
            _ => {
                let name = path.strip_prefix("role/");
                let name = name.ok_or(ApiError::UnsupportedPath)?;
                self.roles.handle(by, operation, name, data).await
            }
        }
    }

    /// `login`
    ///
    /// # Errors
    /// 400: something is missing. 403: the cluster does not know the token, or the role does not take the account.
    pub async fn login(&self, data: &Data, remote: &Remote) -> Result<Login<'_>, ApiError> {
        let name = data.text("role")?.filter(|role| !role.is_empty());
        let name = name.ok_or_else(|| ApiError::bad("missing role"))?;
        let token = data.text("jwt")?.map(Zeroizing::new);
        let token = token.filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| ApiError::bad("missing jwt"))?;
        let role = self
            .roles
            .named(&name)?
            .ok_or_else(|| ApiError::bad(format!("invalid role name {name:?}")))?;
        let config = self
            .config()?
            .ok_or_else(|| ApiError::bad("could not load backend configuration"))?;
        if !is_within(remote, &role.params.bound_cidrs) {
            return Err(ApiError::Unauthenticated);
        }
        let account = self.review(&config, &role, &token).await?;
        role.takes(&account)?;
        let Account {
            namespace,
            name: account_name,
            uid,
        } = account;
        let alias = match role.alias_is_name {
            true => format!("{namespace}/{account_name}"),
            false => uid.clone(),
        };
        let display = format!("{namespace}-{account_name}");
        let metadata = BTreeMap::from(
            [
                ("service_account_uid", uid),
                ("service_account_name", account_name),
                ("service_account_namespace", namespace),
                ("service_account_secret_name", String::new()),
                ("role", name),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        Ok(Login {
            params: role.params,
            metadata,
            name: display,
            alias,
            groups: None,
            certificate: None,
            batch: None,
            order: None,
        })
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// 403: nobody's, or for somebody else. 400: the cluster cannot be asked.
    async fn review(&self, config: &Config, role: &Role, token: &str) -> Result<Account, ApiError> {
        let outbound = self.outbound.as_deref().ok_or_else(|| {
            ApiError::bad("this server asks nobody: it was started without a way to send requests")
        })?;
        let mut spec = json!({ "token": token });
        if !role.audience.is_empty() {
            spec["audiences"] = json!([role.audience]);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec,
        });
        let shown = match &*config.token_reviewer_jwt {
            "" => config.own("token"),
            given => Some(Zeroizing::new(given.to_owned())),
        };
        let shown = shown.unwrap_or_else(|| Zeroizing::new(token.to_owned()));
        let host = config.kubernetes_host.trim_end_matches('/');
        let mut bearer = http::HeaderValue::try_from(format!("Bearer {}", shown.trim()))
            .map_err(|_| ApiError::bad("the token that is shown to the cluster is none"))?;
        bearer.set_sensitive(true);
        let request = http::Request::post(format!("{host}{REVIEWS}"))
            .header(header::AUTHORIZATION, bearer)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(review.to_string().into())
            .map_err(|_| ApiError::bad("kubernetes_host is not a URL"))?;
        let roots = match &*config.kubernetes_ca_cert {
            "" => config.own("ca.crt").map(|own| own.to_string()),
            given => Some(given.to_owned()),
        };
        let answer = outbound
            .send(request, roots)
            .await
            .map_err(|error| ApiError::bad(format!("{host} cannot be asked: {error}")))?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => {}
            StatusCode::UNAUTHORIZED => {
                return Err(ApiError::Forbidden(
                    "lookup failed: service account unauthorized; this could mean it has been deleted or recreated with a new token".into(),
                ));
            }
            status => {
                return Err(ApiError::bad(format!(
                    "{host} answers {status} to a TokenReview"
                )));
            }
        }
        let reviewed: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        account(&reviewed["status"], &role.audience)
    }

    fn config(&self) -> Result<Option<Config>, ApiError> {
        Ok(self.db.get(&self.config_path())?.map(|(config, _)| config))
    }

    fn config_path(&self) -> String {
        format!("{}config", self.prefix)
    }
}

/// The account in a review's `status`.
///
/// # Errors
/// 403 with what stands against it.
fn account(status: &Value, audience: &str) -> Result<Account, ApiError> {
    let refused = |why: &str| ApiError::Forbidden(format!("lookup failed: {why}"));
    if status["authenticated"] != json!(true) {
        return Err(refused("service account jwt not valid"));
    }
    let audiences = status["audiences"].as_array();
    // A cluster that knows nothing of audiences does not say any, and has not looked.
    let meant = audiences.is_some_and(|all| all.iter().any(|one| one == audience));
    if !audience.is_empty() && !meant {
        return Err(refused("the token is for another audience"));
    }
    let user = &status["user"];
    let text = |name: &str| user[name].as_str().unwrap_or_default();
    let parts: Vec<_> = text("username").split(':').collect();
    let (["system", "serviceaccount", namespace, name], uid) = (&parts[..], text("uid")) else {
        return Err(refused("the token is not a service account's"));
    };
    if namespace.is_empty() || name.is_empty() || uid.is_empty() {
        return Err(refused("the cluster does not say whose token it is"));
    }
    Ok(Account {
        namespace: (*namespace).to_owned(),
        name: (*name).to_owned(),
        uid: uid.to_owned(),
    })
}

impl Drop for Config {
    fn drop(&mut self) {
        self.token_reviewer_jwt.zeroize();
    }
}

impl Config {
    /// # Errors
    /// 400 with the field.
    fn parse(data: &Data) -> Result<Self, ApiError> {
        let text = |name| Ok::<_, ApiError>(data.text(name)?.unwrap_or_default());
        if !data.list("pem_keys")?.unwrap_or_default().is_empty() {
            return Err(ApiError::bad(
                "field \"pem_keys\" is not available: the cluster reviews tokens itself; for keys of one's own there is the method jwt",
            ));
        }
        let kubernetes_host = text("kubernetes_host")?;
        if kubernetes_host.is_empty() {
            return Err(ApiError::bad("no host provided"));
        }
        keys::checked(&kubernetes_host).map_err(|_| {
            ApiError::bad(
                "field \"kubernetes_host\": an https:// address, or http:// on this machine",
            )
        })?;
        Ok(Self {
            kubernetes_host,
            kubernetes_ca_cert: text("kubernetes_ca_cert")?,
            token_reviewer_jwt: text("token_reviewer_jwt")?,
            disable_local_ca_jwt: data.flag("disable_local_ca_jwt")?.unwrap_or(false),
        })
    }

    fn describe(&self) -> Value {
        json!({
            "kubernetes_host": self.kubernetes_host, "kubernetes_ca_cert": self.kubernetes_ca_cert, "pem_keys": [],
            "issuer": "", "disable_iss_validation": true, "disable_local_ca_jwt": self.disable_local_ca_jwt,
            "token_reviewer_jwt_set": !self.token_reviewer_jwt.is_empty(),
            "use_annotations_as_alias_metadata": false,
        })
    }

    /// What this server has of its own account, when it is a pod itself.
    fn own(&self, file: &str) -> Option<Zeroizing<String>> {
        if self.disable_local_ca_jwt {
            return None;
        }
        let text = std::fs::read_to_string(format!("{OWN}{file}"));
        text.ok().map(Zeroizing::new)
    }
}

impl Role {
    /// # Errors
    /// 403 with what does not fit.
    fn takes(&self, account: &Account) -> Result<(), ApiError> {
        let fits = |bound: &[String], text: &str| bound.iter().any(|one| glob::matches(one, text));
        let refused = |what: &str| Err(ApiError::Forbidden(format!("{what} not authorized")));
        if !fits(&self.bound_service_account_namespaces, &account.namespace) {
            return refused("namespace");
        }
        match fits(&self.bound_service_account_names, &account.name) {
            true => Ok(()),
            false => refused("service account name"),
        }
    }
}

impl roles::Role for Role {
    const CHANGE: &'static str = "kubernetes role";

    fn update(&mut self, data: &Data) -> Result<(), ApiError> {
        let mut new = self.clone();
        let selector = data.text("bound_service_account_namespace_selector")?;
        if selector.is_some_and(|selector| !selector.is_empty()) {
            return Err(ApiError::bad(
                "field \"bound_service_account_namespace_selector\" is not available: name the namespaces, with * where needed",
            ));
        }
        for (name, list) in [
            (
                "bound_service_account_names",
                &mut new.bound_service_account_names,
            ),
            (
                "bound_service_account_namespaces",
                &mut new.bound_service_account_namespaces,
            ),
        ] {
            if let Some(given) = data.list(name)? {
                *list = given;
            }
            if list.is_empty() {
                return Err(ApiError::bad(format!("\"{name}\" can not be empty")));
            }
        }
        let any = |list: &[String]| list.iter().any(|one| one == "*");
        if any(&new.bound_service_account_names) && any(&new.bound_service_account_namespaces) {
            return Err(ApiError::bad(
                "bound_service_account_names and bound_service_account_namespaces can not both be \"*\"",
            ));
        }
        if let Some(audience) = data.text("audience")? {
            new.audience = audience;
        }
        new.alias_is_name = match data.text("alias_name_source")?.as_deref() {
            None | Some("") => new.alias_is_name,
            Some("serviceaccount_uid") => false,
            Some("serviceaccount_name") => true,
            Some(_) => {
                return Err(ApiError::bad(
                    "field \"alias_name_source\": serviceaccount_uid or serviceaccount_name",
                ));
            }
        };
        new.params.update(data)?;
        *self = new;
        Ok(())
    }

    fn describe(&self) -> Value {
        let mut out = Map::new();
        self.params.describe(&mut out);
        let source = match self.alias_is_name {
            true => "serviceaccount_name",
            false => "serviceaccount_uid",
        };
        for (name, value) in [
            (
                "bound_service_account_names",
                json!(self.bound_service_account_names),
            ),
            (
                "bound_service_account_namespaces",
                json!(self.bound_service_account_namespaces),
            ),
            ("bound_service_account_namespace_selector", json!("")),
            ("audience", json!(self.audience)),
            ("alias_name_source", json!(source)),
        ] {
            out.insert(name.into(), value);
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_counts_for_the_audience_that_it_names() {
        let user = json!({"username": "system:serviceaccount:shop:web", "uid": "1"});
        let review =
            |audiences: Value| json!({"authenticated": true, "user": user, "audiences": audiences});
        assert_eq!(
            account(&review(json!(["mesh"])), "mesh").unwrap().name,
            "web"
        );
        assert!(account(&review(Value::Null), "").is_ok());
        for audiences in [json!(["other"]), json!([]), Value::Null] {
            assert!(account(&review(audiences), "mesh").is_err());
        }
        for wrong in [
            json!("system:serviceaccount:shop"),
            json!("system:serviceaccount:shop:web:more"),
            json!("system:serviceaccount::web"),
            json!("system:node:a:b"),
            Value::Null,
        ] {
            let mut review = review(Value::Null);
            review["user"]["username"] = wrong;
            assert!(account(&review, "").is_err(), "{review}");
        }
        let mut review = review(Value::Null);
        review["authenticated"] = json!("true");
        assert!(account(&review, "").is_err());
    }
}
