//! Cubbyhole: values that only one token can see, gone with it.

use super::kv1::check_key;
use super::{decode, encode, page};
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation};

/// The engine behind `cubbyhole/`.
pub(crate) struct Cubbyhole {
    db: Db,
}

impl Cubbyhole {
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// Answer a request for a path below the mount, in the cubbyhole at `prefix` (the caller's token's own).
    pub async fn handle(
        &self,
        by: &By,
        prefix: &str,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let name = format!("{prefix}{path}");
        match operation {
            Operation::List => page(self.db.list(&name)?, data),
            Operation::Read => {
                let bytes = self.db.bytes(&name)?.ok_or(ApiError::NotFound)?;
                Ok(Answer::data(decode(&bytes)?.take_all()))
            }
            Operation::Write => {
                check_key(path)?;
                if data.is_empty() {
                    return Err(ApiError::bad("missing data fields"));
                }
                let mut batch = Batch::new(by, "cubbyhole write");
                batch
                    .key(format!("cubbyhole/{path}"))
                    .put_bytes(&name, encode(data.map())?);
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            Operation::Delete => {
                if self.db.index(&name)?.is_some() {
                    let mut batch = Batch::new(by, "cubbyhole delete");
                    batch.key(format!("cubbyhole/{path}")).delete(&name);
                    self.db.commit(batch).await?;
                }
                Ok(Answer::none())
            }
            Operation::Patch => Err(ApiError::UnsupportedOperation),
        }
    }

    /// Whether a write would be an *update*.
    pub fn exists(&self, prefix: &str, path: &str) -> Result<bool, ApiError> {
        Ok(self.db.index(&format!("{prefix}{path}"))?.is_some())
    }
}
