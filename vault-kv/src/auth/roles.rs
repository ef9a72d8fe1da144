//! The named roles of a login method: kept, shown and changed in one way.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::item_name;
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation};

/// A role: whom it takes, and what one gets.
pub(super) trait Role: Default + Serialize + DeserializeOwned {
    /// What a change of one is called in the ledger.
    const CHANGE: &'static str;

    /// Takes over the fields that `data` has.
    ///
    /// # Errors
    /// 400 with the field.
    fn update(&mut self, data: &Data) -> Result<(), ApiError>;

    /// What a read shows.
    fn describe(&self) -> Value;
}

/// The roles below `role/` of one mount.
pub(super) struct Roles<R> {
    db: Db,
    /// Where they are kept, with a slash at its end.
    prefix: String,
    /// Where they are shown.
    shown: String,
    of: PhantomData<fn() -> R>,
}

impl<R: Role> Roles<R> {
    /// `prefix` and `mount` are those of the method.
    pub fn new(db: Db, prefix: &str, mount: &str) -> Self {
        Self {
            db,
            prefix: format!("{prefix}role/"),
            shown: format!("{mount}role/"),
            of: PhantomData,
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn get(&self, name: &str) -> Result<Option<R>, ApiError> {
        Ok(self.db.get(&self.path(name))?.map(|(role, _)| role))
    }

    /// The role of a login; `None`: there is none, or the name is none.
    pub fn named(&self, name: &str) -> Result<Option<R>, ApiError> {
        item_name(name).map_or(Ok(None), |name| self.get(&name))
    }

    pub fn exists(&self, name: &str) -> Result<bool, ApiError> {
        let path = self.path(&name.to_ascii_lowercase());
        Ok(self.db.index(&path)?.is_some())
    }

    /// What is asked of `role/{name}`, or of all with an empty name.
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        name: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if name.is_empty() {
            return match operation {
                List => Answer::keys(self.db.list(&self.prefix)?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let name = item_name(name)?;
        let path = self.path(&name);
        let mut batch = Batch::new(by, R::CHANGE);
        batch.key(format!("{}{name}", self.shown));
        match operation {
            Read => {
                let role = self.get(&name)?.ok_or(ApiError::NotFound)?;
                return Ok(Answer::data(role.describe()));
            }
            Write => {
                let _order = self.db.lock(&path).await;
                let mut role = self.get(&name)?.unwrap_or_default();
                role.update(data)?;
                batch.put(&path, &role)?;
                self.db.commit(batch).await?;
            }
            Delete if self.db.index(&path)?.is_some() => {
                batch.delete(&path);
                self.db.commit(batch).await?;
            }
            Delete => {}
            _ => return Err(ApiError::UnsupportedOperation),
        }
        Ok(Answer::none())
    }
}
