//! Plain keys of the store as the Consul interface sees them: each look and each change is authorized.

use vault_kv::{
    Applied, Attended, Capability, Error, Kv, KvOp, KvPair, Meta, NotApplied, Refused, Session,
    SessionOptions,
};

use super::{Asker, Pair, Scope, StoreError, sessions::Kept};

/// The keys of one namespace for one asker.
pub struct Pairs {
    /// The keys.
    pub kv: Kv,
    /// Who asks.
    pub asker: Asker,
    /// Policy paths are this and the key.
    pub path: &'static str,
    /// What a change is called in the ledger.
    pub noun: &'static str,
}

/// Policy paths of sessions are this and the name of their node.
const SESSION: &str = "consul/session/";

/// Why a transaction did not happen.
pub enum TxnError {
    /// Operations do not apply.
    Refused(Vec<Refused>),
    /// See [`StoreError`].
    Store(StoreError),
}

impl Pairs {
    /// What is in `scope`, by key, and the index of its last change (also of a deletion); for a scope that
    /// never had anything, the index of the last change of all.
    pub fn read(&self, scope: Scope<'_>) -> Result<(Vec<Pair>, u64), StoreError> {
        if let Scope::Key(key) = scope {
            self.asker.authorize(Capability::Read, &self.of(key))?;
        }
        let (found, index) = self.look(scope)?;
        let found = match scope {
            Scope::Key(_) => found,
            Scope::Prefix(prefix) => {
                let path = |pair: &Pair| self.of(&pair.key);
                self.asker.readable(&self.of(prefix), found, path)?
            }
        };
        Ok((found, index))
    }

    /// The same without a look at rights: who calls decides what of it is told.
    pub fn look(&self, scope: Scope<'_>) -> Result<(Vec<Pair>, u64), StoreError> {
        // The index first: who waits beyond it must have been shown all up to it, and may be shown more.
        let index = match scope {
            Scope::Key(key) => self.kv.changed(key)?,
            Scope::Prefix(prefix) => self.kv.changed_under(prefix)?,
        };
        let index = match index {
            0 => self.kv.changed_under("")?,
            index => index,
        };
        let found = match scope {
            Scope::Key(key) => Vec::from_iter(self.kv.get(key)?),
            Scope::Prefix(prefix) => self.kv.list(prefix)?,
        };
        Ok((found.into_iter().map(Pair::from).collect(), index))
    }

    /// Makes a change durable that policies know by another path than its key's.
    pub async fn change_at(&self, path: &str, op: KvOp) -> Result<bool, StoreError> {
        let (capability, verb) = needs(&op);
        let (attended, meta) = self.attend(capability, verb, path).await?;
        let changed = self.kv.change(meta, op).await;
        finish(attended, changed.map_err(StoreError::from)).await
    }

    /// Ends when the last change of `scope` is after `index`.
    pub async fn changed_after(&self, scope: Scope<'_>, index: u64) {
        // Sealed while waiting: the next look says so.
        let _ = match scope {
            Scope::Key(key) => self.kv.wait(key, index).await,
            Scope::Prefix(prefix) => self.kv.wait_under(prefix, index).await,
        };
    }

    /// Makes a change durable; `false` when its condition does not hold.
    pub async fn change(&self, op: KvOp) -> Result<bool, StoreError> {
        let (capability, verb) = needs(&op);
        if let KvOp::DeleteTree { prefix } = &op {
            self.asker.authorize_below(capability, &self.of(prefix))?;
        }
        let (attended, meta) = self.attend(capability, verb, &self.of(op.key())).await?;
        let changed = match op {
            KvOp::DeleteTree { prefix } => {
                let deleted = self.kv.delete_under(meta, &prefix).await;
                deleted.map(|()| true)
            }
            op => self.kv.change(meta, op).await,
        };
        finish(attended, changed.map_err(StoreError::from)).await
    }

    /// Whether the asker may have an operation of a transaction carried out. What only shows needs no right: of what it
    /// shows, [`sees`](Self::sees) tells what may be told.
    pub fn permits(&self, op: &KvOp) -> Result<(), StoreError> {
        let (capability, _) = needs(op);
        let path = self.of(op.key());
        match op {
            KvOp::Get { .. } | KvOp::GetOrEmpty { .. } | KvOp::GetTree { .. } => return Ok(()),
            KvOp::DeleteTree { .. } => self.asker.authorize_below(capability, &path)?,
            _ => {}
        }
        self.asker.authorize(capability, &path).map(|_| ())
    }

    /// Tells of keys whether the asker may read them.
    pub fn sees(&self) -> Result<impl Fn(&str) -> bool + use<>, StoreError> {
        let (reads, path) = (self.asker.reads()?, self.path);
        Ok(move |key: &str| reads(&format!("{path}{key}")))
    }

    /// Carries out operations together. Each that changes something has its own line in the audit log. What was read is told
    /// as [`sees`](Self::sees) allows.
    pub async fn apply(&self, ops: Vec<KvOp>) -> Result<Vec<Applied>, TxnError> {
        for op in &ops {
            self.permits(op)?;
        }
        let changes = ops.iter().map(|op| (needs(op).0, self.of(op.key())));
        let changes = changes.filter(|(capability, _)| *capability != Capability::Read);
        let changes = changes.collect();
        self.apply_for(changes, ops).await
    }

    /// Makes operations durable that need these rights, whatever their keys, between the lines that tell of their use.
    pub async fn apply_for(
        &self,
        rights: Vec<(Capability, String)>,
        ops: Vec<KvOp>,
    ) -> Result<Vec<Applied>, TxnError> {
        let mut lines = Vec::with_capacity(rights.len());
        for (capability, path) in rights {
            lines.push(self.asker.attend(capability, &path).await?);
        }
        // What needs no right changes nothing, and is in no ledger.
        let actor = lines.last().map_or("", Attended::actor).to_owned();
        let changes = ops.iter().filter(|op| needs(op).0 != Capability::Read);
        let operation = format!("{} txn", self.noun);
        let meta = Meta {
            keys: changes.map(|op| self.of(op.key())).collect(),
            ..self.asker.meta(actor, &operation, String::new())
        };
        let applied = self.kv.apply(meta, ops).await;
        let failed = match &applied {
            Err(NotApplied::Failed(error)) => Some(StoreError::from(error.clone())),
            Ok(_) | Err(NotApplied::Refused(_)) => None,
        };
        for attended in lines {
            // Without its line nobody hears what came of it.
            finish(attended, failed.clone().map_or(Ok(()), Err)).await?;
        }
        applied.map_err(|error| match error {
            NotApplied::Refused(refused) => TxnError::Refused(refused),
            NotApplied::Failed(error) => StoreError::from(error).into(),
        })
    }

    /// One session, or all, and the index of the last change.
    pub fn sessions(&self, id: Option<&str>) -> Result<(Vec<Session>, u64), StoreError> {
        let sessions = self.kv.sessions();
        // First, as in `look`.
        let index = sessions.changed(id.unwrap_or_default())?;
        let found = match id {
            Some(id) => Vec::from_iter(sessions.get(id)?),
            None => sessions.list()?,
        };
        let found = match (id, found.first()) {
            (Some(_), Some(session)) => {
                let path = session_path(session);
                self.asker.authorize(Capability::Read, &path)?;
                found
            }
            (Some(_), None) => {
                self.asker.authorize(Capability::Read, SESSION)?;
                found
            }
            (None, _) => self.asker.readable(SESSION, found, session_path)?,
        };
        Ok((found, index))
    }

    /// Ends when a session (any, without `id`) changed after `index`.
    pub async fn session_changed_after(&self, id: Option<&str>, index: u64) {
        // Sealed while waiting: the next look says so.
        let _ = self.kv.sessions().wait(id.unwrap_or_default(), index).await;
    }

    /// Makes a session; its id.
    pub async fn create_session(&self, options: SessionOptions) -> Result<String, StoreError> {
        let node = Kept::of(&options).node;
        let path = format!("{SESSION}{node}");
        let wanted = self.attend_as(Capability::Update, "session create", &path);
        let (attended, meta) = wanted.await?;
        let made = self.kv.sessions().create(meta, options).await;
        finish(attended, made.map(|made| made.id).map_err(StoreError::from)).await
    }

    /// Ends a session; one that is not there has ended.
    pub async fn destroy_session(&self, id: &str) -> Result<(), StoreError> {
        let sessions = self.kv.sessions();
        let path = match sessions.get(id)? {
            Some(session) => session_path(&session),
            None => SESSION.to_owned(),
        };
        let wanted = self.attend_as(Capability::Update, "session destroy", &path);
        let (attended, mut meta) = wanted.await?;
        meta.keys.push(id.to_owned());
        let ended = sessions.destroy(meta, id).await;
        finish(attended, ended.map(|_| ()).map_err(StoreError::from)).await
    }

    /// Lets a session live on. Changes nothing that is kept, and is in no log.
    pub fn renew_session(&self, id: &str) -> Result<Option<Session>, StoreError> {
        let sessions = self.kv.sessions();
        let path = match sessions.get(id)? {
            Some(session) => session_path(&session),
            None => SESSION.to_owned(),
        };
        self.asker.authorize(Capability::Update, &path)?;
        Ok(sessions.renew(id)?)
    }

    fn of(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    async fn attend(
        &self,
        capability: Capability,
        verb: &str,
        path: &str,
    ) -> Result<(Attended, Meta), StoreError> {
        let operation = format!("{} {verb}", self.noun);
        self.attend_as(capability, &operation, path).await
    }

    async fn attend_as(
        &self,
        capability: Capability,
        operation: &str,
        path: &str,
    ) -> Result<(Attended, Meta), StoreError> {
        let attended = self.asker.attend(capability, path).await?;
        let actor = attended.actor().to_owned();
        let meta = self.asker.meta(actor, operation, path.to_owned());
        Ok((attended, meta))
    }
}

fn session_path(session: &Session) -> String {
    format!("{SESSION}{}", Kept::of(&session.options).node)
}

/// The right that an operation needs, and what the ledger calls it.
fn needs(op: &KvOp) -> (Capability, &'static str) {
    match op {
        KvOp::Set { .. } => (Capability::Update, "put"),
        KvOp::Lock { .. } => (Capability::Update, "lock"),
        KvOp::Unlock { .. } => (Capability::Update, "unlock"),
        KvOp::Delete { .. } | KvOp::DeleteTree { .. } => (Capability::Delete, "delete"),
        KvOp::Get { .. }
        | KvOp::GetOrEmpty { .. }
        | KvOp::GetTree { .. }
        | KvOp::CheckIndex { .. }
        | KvOp::CheckSession { .. }
        | KvOp::CheckAbsent { .. } => (Capability::Read, "get"),
    }
}

impl From<KvPair> for Pair {
    fn from(pair: KvPair) -> Self {
        Self {
            key: pair.key,
            value: pair.value.to_vec().into(),
            flags: pair.flags,
            session: pair.session,
            lock_index: pair.lock_index,
            created: pair.created,
            modified: pair.modified,
        }
    }
}

impl From<StoreError> for TxnError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Sealed => Self::Sealed,
            Error::NoSession(id) => Self::NoSession(id),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Writes what came of a change to the audit log; without that line nobody hears of it.
async fn finish<T>(attended: Attended, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
    let failed = outcome.as_ref().err().map(ToString::to_string);
    match attended.finish(failed.as_deref()).await {
        Ok(()) => outcome,
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}
