//! Tokens: opaque strings that stand for a caller's rights until they expire or are revoked.
//!
//! A token is `hvs.` and 24 base62 characters (142 bits). What is stored is an HMAC of it under a key inside the barrier, so
//! neither the store nor a dump of it yields a usable token, and looking one up compares nothing with secret text.
//! A token without `orphan` dies with its parent. Uses of a use-limited token are durable before the request runs:
//! a restart gives none back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;
use zeroize::Zeroizing;

use crate::acl::Links;
use crate::clock::Clock;
use crate::db::{Batch, By, Cached, Db};
use crate::http::ApiError;
use crate::lease::{Full, Places, Timetable};
use crate::request::ClientToken;

mod batch;
mod binding;
mod linked;
mod live;
mod names;
mod purge;
pub(crate) mod role;

use batch::BatchKey;
pub(crate) use binding::{Binding, fingerprint};
pub(crate) use live::Live;
pub(crate) use names::{NameKey, TokenId, base62, push_base62};
use names::{accessor_path, child_path, children_path, id_of, linked_path};
pub(crate) use purge::purge_expired;

/// Default and largest time to live of a token (768 h, as in Vault).
pub(crate) const MAX_TTL: u64 = 768 * 3600;

const KEY: &str = "token/key";
/// Below it the accessors of tokens with [`Token::linked`], with the index at which each was made: none, where it is the
/// record's own.
pub(crate) const LINKED: &str = "token/linked/";

/// What is known about a token; not the token itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub accessor: String,
    pub policies: Vec<String>,
    /// The API path that made it.
    pub path: String,
    pub meta: Option<BTreeMap<String, String>>,
    pub display_name: String,
    /// Unix seconds.
    pub created: i64,
    pub creation_ttl: u64,
    /// Unix seconds; `None` = never (root).
    pub expires: Option<i64>,
    pub last_renewal: Option<i64>,
    pub explicit_max_ttl: u64,
    /// Seconds; 0 = not periodic.
    pub period: u64,
    /// Uses left; 0 = unlimited, -1 = the last one is running.
    pub num_uses: i64,
    pub renewable: bool,
    pub orphan: bool,
    pub parent: Option<TokenId>,
    /// Seconds that renewing may not go beyond, counted from when it was made; 0 = [`MAX_TTL`].
    #[serde(default)]
    pub max_ttl: u64,
    /// The role of `auth/token/roles/` that it was made by; may be empty.
    #[serde(default)]
    pub role: String,
    /// Networks that it may be used from; none: all.
    #[serde(default)]
    pub bound_cidrs: Vec<String>,
    #[serde(default)]
    pub kind: TokenKind,
    /// The entity that it belongs to; may be empty.
    #[serde(default)]
    pub entity: String,
    /// Seconds that it was last renewed for; 0 = not yet.
    #[serde(default)]
    pub renewed_ttl: u64,
    /// The certificate of the connection that it was given over.
    #[serde(default)]
    pub certificate: Option<Binding>,
    /// What only the interface that made it knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linked: Option<Box<Linked>>,
}

/// See [`Token::linked`]: more about tokens that are made as Consul's are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Linked {
    pub description: String,
    pub links: Links,
    pub local: bool,
    pub auth_method: String,
}

/// Where a token is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TokenKind {
    /// In the store.
    #[default]
    Service,
    /// In itself, sealed: it costs nothing to make, and cannot be renewed, revoked or counted.
    Batch,
}

impl TokenKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Batch => "batch",
        }
    }
}

impl Token {
    /// Seconds left; 0 for a token that never expires.
    pub fn ttl(&self, now: i64) -> u64 {
        self.expires
            .map_or(0, |at| u64::try_from(at - now).unwrap_or(0))
    }
}

/// What to create.
#[derive(Default)]
pub(crate) struct NewToken {
    pub policies: Vec<String>,
    pub path: String,
    pub meta: Option<BTreeMap<String, String>>,
    pub display_name: String,
    /// Seconds; 0 = never expires (root only).
    pub ttl: u64,
    pub explicit_max_ttl: u64,
    pub period: u64,
    pub num_uses: i64,
    pub renewable: bool,
    /// The parent and its index at the time the caller was authenticated; `None` makes an orphan.
    pub parent: Option<TokenId>,
    pub max_ttl: u64,
    pub role: String,
    pub bound_cidrs: Vec<String>,
    pub kind: TokenKind,
    pub entity: String,
    pub certificate: Option<Binding>,
    /// The text that it is to be; `None` = a random one.
    pub id: Option<ClientToken>,
    /// The accessor that it is to have; `None` = a random one.
    pub accessor: Option<String>,
    pub linked: Option<Box<Linked>>,
    /// Made even when there are as many leases as there may be: whoever wants it was asked about that before.
    pub always: bool,
    /// What its cubbyhole holds from the start.
    pub cubbyhole: Vec<(&'static str, Zeroizing<Vec<u8>>)>,
}

impl NewToken {
    /// A token that may do everything and never expires.
    pub fn root() -> Self {
        Self {
            policies: vec!["root".into()],
            path: "auth/token/root".into(),
            display_name: "root".into(),
            ..Self::default()
        }
    }
}

/// The token store of an unsealed server.
pub(crate) struct Tokens {
    db: Db,
    known: Cached<Live>,
    key: Arc<NameKey>,
    batch: BatchKey,
    clock: Clock,
    /// When each token that can expire does, and where it was made.
    expiries: Mutex<Timetable>,
    places: Arc<Places>,
    /// Hears of tokens that ended.
    ended: UnboundedSender<TokenId>,
}

impl Tokens {
    /// Make the hashing key of a new store and its root token, which is returned.
    pub fn initialise(batch: &mut Batch) -> Result<ClientToken, ApiError> {
        let bytes = Zeroizing::new(rand::random::<[u8; 32]>());
        batch.put_bytes(KEY, Zeroizing::new(bytes.to_vec()));
        let key = NameKey::new(&bytes[..]);
        let now = Clock::default().unix();
        let (secret, _, _) = prepare(batch, &key, now, NewToken::root())?;
        Ok(secret)
    }

    /// Read the key. When tokens expire [`purge_expired`] finds out. `ended` hears of tokens that ended.
    pub fn load(
        db: Db,
        clock: Clock,
        ended: UnboundedSender<TokenId>,
        places: Arc<Places>,
    ) -> Result<Self, ApiError> {
        let key = db.bytes(KEY)?.ok_or_else(|| {
            ApiError::Internal(
                "the store has no token key; it was not initialised by this version".into(),
            )
        })?;
        let batch = BatchKey::derive(&key);
        let key = Arc::new(NameKey::new(&key));
        Ok(Self {
            db,
            known: Cached::default(),
            key,
            batch,
            clock,
            expiries: Mutex::new(Timetable::new(Arc::clone(&places))),
            places,
            ended,
        })
    }

    pub fn id_of(&self, token: &ClientToken) -> TokenId {
        id_of(&self.key, token)
    }

    /// What secrets are named with.
    pub fn names(&self) -> Arc<NameKey> {
        Arc::clone(&self.key)
    }

    /// The token behind what a client sent; `None` when unknown, expired or used up.
    pub fn find(&self, token: &ClientToken) -> Result<Option<(TokenId, Arc<Live>)>, ApiError> {
        let id = self.id_of(token);
        if let Some(sealed) = token.expose().strip_prefix(batch::PREFIX) {
            let found = self.batch.open(sealed).filter(|t| self.is_alive(t));
            // It dies with its parent.
            return match found {
                Some(Token {
                    parent: Some(parent),
                    ..
                }) if self.by_id(&parent)?.is_none() => Ok(None),
                found => Ok(found.map(|token| (id, Arc::new(token.into())))),
            };
        }
        Ok(self
            .by_id(&id)?
            .filter(|t| t.num_uses >= 0)
            .map(|t| (id, t)))
    }

    /// A live token by its stored name.
    pub fn by_id(&self, id: &TokenId) -> Result<Option<Arc<Live>>, ApiError> {
        let found = self.known.get(&self.db, &id.path())?;
        Ok(found.filter(|token| self.is_alive(token)))
    }

    /// Whether there is one, alive or to be removed soon. Costs less than to read it.
    pub fn exists(&self, id: &TokenId) -> Result<bool, ApiError> {
        Ok(self.db.index(&id.path())?.is_some())
    }

    fn is_alive(&self, token: &Token) -> bool {
        token.expires.is_none_or(|at| at > self.clock.unix())
    }

    pub fn by_accessor(&self, accessor: &str) -> Result<Option<(TokenId, Arc<Live>)>, ApiError> {
        let Some((id, _)) = self.db.get::<TokenId>(&accessor_path(accessor))? else {
            return Ok(None);
        };
        Ok(self.by_id(&id)?.map(|t| (id, t)))
    }

    /// How many there are that end by themselves.
    pub fn expiring(&self) -> usize {
        self.expiries.lock().len()
    }

    pub fn accessors(&self) -> Result<Vec<String>, ApiError> {
        self.db.list("token/accessor/")
    }

    /// Create a token.
    ///
    /// # Errors
    /// 429 when there are as many leases as there may be; a token with the policy `root` is made all the same. 403 when the parent
    /// is gone by the time of the commit.
    pub async fn create(&self, by: &By, new: NewToken) -> Result<(ClientToken, Token), ApiError> {
        self.create_with(Batch::new(by, "token/create"), new).await
    }

    /// The same, with a batch that has changes already: they become durable together.
    pub async fn create_with(
        &self,
        mut batch: Batch,
        new: NewToken,
    ) -> Result<(ClientToken, Token), ApiError> {
        let always = new.always || new.policies.iter().any(|policy| policy == "root");
        if !always {
            self.admit(&new.path).await?;
        }
        if new.kind == TokenKind::Batch {
            let token = token(self.clock.unix(), new);
            let secret = self.batch.seal(&token)?;
            // Nothing is written but what there was already.
            self.db.commit(batch).await?;
            return Ok((secret, token));
        }
        let own_id = new.id.is_some();
        let own_accessor = new.accessor.is_some();
        let (secret, id, token) = self.prepare(&mut batch, new)?;
        if own_accessor {
            let path = accessor_path(&token.accessor);
            if self.db.index(&path)?.is_some() {
                return Err(ApiError::bad("there is a token with this accessor already"));
            }
            batch.expect(&path, None);
        }
        if own_id {
            if self.db.index(&id.path())?.is_some() {
                return Err(ApiError::bad("cannot create a token with a duplicate ID"));
            }
            batch.expect(&id.path(), None);
        }
        if let Some(parent) = &token.parent {
            let index = self
                .db
                .index(&parent.path())?
                .ok_or(ApiError::Unauthenticated)?;
            batch.expect(&parent.path(), Some(index));
        }
        // Before it is written, so that there are never more than there may be.
        self.schedule(&id, &token, always)
            .map_err(|Full| ApiError::TooManyLeases(token.path.clone()))?;
        if let Err(error) = self.db.commit(batch).await {
            if self.db.index(&id.path()).is_ok_and(|index| index.is_none()) {
                self.drop_expiry(&id, &token.path);
            }
            return Err(error);
        }
        self.schedule_again(&id, &token)?;
        Ok((secret, token))
    }

    /// Whether there may be one more lease of this path: asked before there is any work for it.
    ///
    /// # Errors
    /// 429: there may not.
    pub async fn admit(&self, path: &str) -> Result<(), ApiError> {
        self.places.counted(path).await;
        match self.places.has_room(path) {
            true => Ok(()),
            false => Err(ApiError::TooManyLeases(path.to_owned())),
        }
    }

    /// A token for one request only, which nobody gets: what comes with it becomes durable all the same.
    pub async fn passing(&self, batch: Batch, new: NewToken) -> Result<Live, ApiError> {
        self.db.commit(batch).await?;
        Ok(token(self.clock.unix(), new).into())
    }

    /// Put a new token into a batch that the caller commits.
    pub fn prepare(
        &self,
        batch: &mut Batch,
        new: NewToken,
    ) -> Result<(ClientToken, TokenId, Token), ApiError> {
        prepare(batch, &self.key, self.clock.unix(), new)
    }

    /// Count one use of a use-limited token, durably. `Err` when another request took the last one.
    pub async fn spend(&self, by: &By, id: &TokenId) -> Result<(), ApiError> {
        for _ in 0..16 {
            let Some((mut token, index)) = self.db.get::<Token>(&id.path())? else {
                return Err(ApiError::Unauthenticated);
            };
            if token.num_uses < 0 {
                return Err(ApiError::Unauthenticated);
            }
            token.num_uses = if token.num_uses == 1 {
                -1
            } else {
                token.num_uses - 1
            };
            let mut batch = Batch::new(by, "token/use");
            batch
                .put(&id.path(), &token)?
                .expect(&id.path(), Some(index));
            if self.db.try_commit(batch).await? {
                return Ok(());
            }
        }
        Err(ApiError::Unavailable(
            "the token is in use by too many requests at once; try again".into(),
        ))
    }

    /// Extend a token's life. `increment`: seconds wished for; `None` = as the last time.
    pub async fn renew(
        &self,
        by: &By,
        id: &TokenId,
        increment: Option<u64>,
    ) -> Result<(Token, Vec<String>), ApiError> {
        let Some((mut token, index)) = self.db.get::<Token>(&id.path())? else {
            return Err(ApiError::bad("token not found"));
        };
        if token.expires.is_none() {
            return Err(ApiError::bad("invalid lease ID"));
        }
        if !token.renewable {
            return Err(ApiError::bad("lease is not renewable"));
        }
        let now = self.clock.unix();
        let age = u64::try_from(now - token.created).unwrap_or(0);
        let mut warnings = Vec::new();
        let limit = match (token.explicit_max_ttl, token.period) {
            (0, 0) if token.max_ttl > 0 => Some(token.max_ttl),
            (0, 0) => Some(MAX_TTL),
            (0, _) => None,
            (max, _) => Some(max),
        };
        let wished = if token.period > 0 {
            token.period
        } else {
            let usual = match token.renewed_ttl {
                0 => token.creation_ttl,
                last => last,
            };
            increment.filter(|i| *i > 0).unwrap_or(usual)
        };
        let ttl = match limit {
            Some(limit) if age >= limit => {
                return Err(ApiError::bad("past the max TTL, cannot renew"));
            }
            Some(limit) if wished > limit - age => {
                warnings.push(format!("TTL of \"{wished}s\" exceeded the effective max_ttl of \"{}s\"; TTL value is capped accordingly", limit - age));
                limit - age
            }
            _ => wished,
        };
        token.expires = Some(now + i64::try_from(ttl).unwrap_or(i64::MAX / 2));
        token.last_renewal = Some(now);
        token.renewed_ttl = ttl;
        let mut batch = Batch::new(by, "token/renew");
        batch
            .put(&id.path(), &token)?
            .expect(&id.path(), Some(index))
            .key(format!("accessor {}", token.accessor));
        self.db.commit(batch).await?;
        self.schedule_again(id, &token)?;
        Ok((token, warnings))
    }

    /// Revoke a token and everything it made. Unknown tokens are fine.
    pub async fn revoke(&self, by: &By, id: &TokenId) -> Result<(), ApiError> {
        // A child made while this runs is found by the next round.
        loop {
            let family = self.family(id)?;
            if family.is_empty() {
                return Ok(());
            }
            for some in family.chunks(256) {
                self.delete(by, some).await?;
            }
        }
    }

    /// Revoke a token; its children become orphans.
    pub async fn revoke_orphan(&self, by: &By, id: &TokenId) -> Result<(), ApiError> {
        let mut batch = Batch::new(by, "token/orphan");
        let mut any = false;
        for child in self.children(id)? {
            if let Some((mut token, index)) = self.db.get::<Token>(&child.path())? {
                token.parent = None;
                token.orphan = true;
                batch
                    .put(&child.path(), &token)?
                    .expect(&child.path(), Some(index))
                    .delete(&child_path(id, &child));
                any = true;
            }
        }
        if any {
            self.db.commit(batch).await?;
        }
        self.delete(by, std::slice::from_ref(id)).await
    }

    /// Revokes every token that was made at or below a path, with what they made; not those that never end, such as the first one:
    /// they have no lease.
    pub async fn revoke_below(&self, by: &By, path: &str) -> Result<(), ApiError> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        for name in self.db.names("token/id/")? {
            let found = self.db.get::<Token>(&name)?;
            if found.is_some_and(|(token, _)| {
                token.expires.is_some() && format!("{}/", token.path).starts_with(&prefix)
            }) {
                let id = TokenId::from(name.trim_start_matches("token/id/"));
                self.revoke(by, &id).await?;
            }
        }
        Ok(())
    }

    /// The names below a path of what tokens were made by: folders, and the tokens' own.
    pub fn below(&self, path: &str) -> Result<Vec<String>, ApiError> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let mut found = BTreeSet::new();
        for name in self.db.names_from("token/id/")? {
            let id = TokenId::from(&*name);
            let Some(token) = self.by_id(&id)?.filter(|token| token.expires.is_some()) else {
                continue;
            };
            let lease = format!("{}/{name}", token.path);
            if let Some(rest) = lease.strip_prefix(&prefix) {
                let end = rest.find('/').map_or(rest.len(), |at| at + 1);
                found.insert(rest[..end].to_owned());
            }
        }
        Ok(found.into_iter().collect())
    }

    fn children(&self, id: &TokenId) -> Result<Vec<TokenId>, ApiError> {
        Ok(self
            .db
            .list(&children_path(id))?
            .into_iter()
            .map(|name| TokenId::from(&*name))
            .collect())
    }

    /// The token and all below it that still exist, children last.
    fn family(&self, id: &TokenId) -> Result<Vec<TokenId>, ApiError> {
        let mut all = vec![id.clone()];
        let mut at = 0;
        while at < all.len() {
            let children = self.children(&all[at])?;
            all.extend(children);
            at += 1;
        }
        let mut alive = Vec::new();
        for id in all {
            if self.db.index(&id.path())?.is_some() {
                alive.push(id);
            }
        }
        Ok(alive)
    }

    async fn delete(&self, by: &By, ids: &[TokenId]) -> Result<(), ApiError> {
        let mut batch = Batch::new(by, "token/revoke");
        let mut gone = Vec::new();
        for id in ids {
            let Some((token, _)) = self.db.get::<Token>(&id.path())? else {
                continue;
            };
            batch
                .delete(&id.path())
                .delete(&accessor_path(&token.accessor));
            batch.key(format!("accessor {}", token.accessor));
            if token.linked.is_some() {
                batch.delete(&linked_path(&token.accessor));
            }
            if let Some(parent) = &token.parent {
                batch.delete(&child_path(parent, id));
            }
            for name in self.db.names(&id.cubbyhole())? {
                batch.delete(&name);
            }
            gone.push((token.path, id));
        }
        self.db.commit(batch).await?;
        for (path, id) in gone {
            self.drop_expiry(id, &path);
            // At seal nobody listens any more; what the token had ends when that is read again.
            let _ = self.ended.send(id.clone());
        }
        Ok(())
    }

    /// What lies under `name` in a token's cubbyhole.
    pub fn in_cubbyhole(
        &self,
        id: &TokenId,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        self.db.bytes(&format!("{}{name}", id.cubbyhole()))
    }
}

/// Puts a new token into a batch; `now` in unix seconds.
fn prepare(
    batch: &mut Batch,
    key: &NameKey,
    now: i64,
    mut new: NewToken,
) -> Result<(ClientToken, TokenId, Token), ApiError> {
    let secret = new.id.take().unwrap_or_else(ClientToken::random);
    let id = id_of(key, &secret);
    for (name, value) in new.cubbyhole.drain(..) {
        batch.put_bytes(&format!("{}{name}", id.cubbyhole()), value);
    }
    let accessor = new.accessor.take().unwrap_or_else(|| base62(24));
    let token = Token {
        accessor,
        ..token(now, new)
    };
    if token.linked.is_some() {
        batch.put(&linked_path(&token.accessor), &None::<u64>)?;
    }
    batch.put(&id.path(), &token)?;
    batch.put(&accessor_path(&token.accessor), &id)?;
    if let Some(parent) = &token.parent {
        batch.put(&child_path(parent, &id), &())?;
    }
    batch.key(format!("accessor {}", token.accessor));
    Ok((secret, id, token))
}

/// What there is to know about a new token; without an accessor.
fn token(now: i64, new: NewToken) -> Token {
    Token {
        accessor: String::new(),
        policies: new.policies,
        path: new.path,
        meta: new.meta,
        display_name: new.display_name,
        created: now,
        creation_ttl: new.ttl,
        expires: (new.ttl > 0).then(|| now + i64::try_from(new.ttl).unwrap_or(i64::MAX / 2)),
        last_renewal: None,
        explicit_max_ttl: new.explicit_max_ttl,
        period: new.period,
        num_uses: new.num_uses,
        renewable: new.renewable && new.kind == TokenKind::Service,
        orphan: new.parent.is_none(),
        parent: new.parent,
        max_ttl: new.max_ttl,
        role: new.role,
        bound_cidrs: new.bound_cidrs,
        kind: new.kind,
        entity: new.entity,
        renewed_ttl: 0,
        certificate: new.certificate,
        linked: new.linked,
    }
}
