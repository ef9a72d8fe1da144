//! Tokens that are made as Consul's are: what they grant may change while they live.

use std::sync::Arc;

use super::{LINKED, Linked, Live, Token, TokenId, Tokens, linked_path};
use crate::db::{Batch, By};
use crate::http::ApiError;

impl Tokens {
    /// The accessors of all.
    pub fn linked(&self) -> Result<Vec<String>, ApiError> {
        self.db.list(LINKED)
    }

    /// One that is alive, and the ledger's index when it was made and when it last changed.
    pub fn linked_by_accessor(&self, accessor: &str) -> Result<Option<LinkedToken>, ApiError> {
        let Some((made, changed)) = self.db.get::<Option<u64>>(&linked_path(accessor))? else {
            return Ok(None);
        };
        let Some((id, token)) = self.by_accessor(accessor)? else {
            return Ok(None);
        };
        let indexes = (made.unwrap_or(changed), changed);
        Ok(Some(LinkedToken { id, token, indexes }))
    }

    /// Changes what one grants and what is said of it; its policies are those given here.
    pub async fn relink(
        &self,
        by: &By,
        id: &TokenId,
        policies: Vec<String>,
        linked: Linked,
    ) -> Result<(), ApiError> {
        let _order = self.db.lock(&id.path()).await;
        let Some((token, index)) = self.db.get::<Token>(&id.path())? else {
            return Err(ApiError::NotFound);
        };
        let record = linked_path(&token.accessor);
        let made = self.db.get::<Option<u64>>(&record)?;
        let made = made.map(|(made, index)| made.unwrap_or(index));
        let token = Token {
            policies,
            linked: Some(Box::new(linked)),
            ..token
        };
        let mut batch = Batch::new(by, "token/update");
        batch
            .put(&id.path(), &token)?
            .put(&record, &made)?
            .expect(&id.path(), Some(index))
            .key(format!("accessor {}", token.accessor));
        self.db.commit(batch).await
    }
}

/// See [`Tokens::linked_by_accessor`].
pub(crate) struct LinkedToken {
    pub id: TokenId,
    pub token: Arc<Live>,
    pub indexes: (u64, u64),
}
