//! Sets of policies under an id, which tokens link to: what such a set grants changes for all of them at once.

use serde::{Deserialize, Serialize};

use super::Policies;
use crate::acl::{Links, RoleEntry};
use crate::db::{Batch, By};
use crate::http::ApiError;

/// Below it the roles, by id; the name of the lock that is held while they change.
pub(crate) const PREFIX: &str = "acl/role/";

/// A role as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    pub name: String,
    pub description: String,
    pub links: Links,
    /// When it was made; 0: it was not changed since.
    pub created: u64,
}

impl Policies {
    /// The roles, by id.
    pub fn roles(&self) -> Result<Vec<RoleEntry>, ApiError> {
        let ids: Vec<String> = self.state.read().roles.keys().cloned().collect();
        let found = ids.iter().map(|id| self.role(id));
        found.filter_map(Result::transpose).collect()
    }

    pub fn role(&self, id: &str) -> Result<Option<RoleEntry>, ApiError> {
        let Some(role) = self.state.read().roles.get(id).cloned() else {
            return Ok(None);
        };
        let modified = self.db.index(&format!("{PREFIX}{id}"))?.unwrap_or(0);
        let created = if role.created == 0 {
            modified
        } else {
            role.created
        };
        Ok(Some(RoleEntry {
            id: id.into(),
            name: role.name,
            description: role.description,
            links: role.links,
            indexes: (created, modified),
        }))
    }

    /// Makes or changes one.
    pub async fn put_role(&self, by: &By, role: &RoleEntry) -> Result<(), ApiError> {
        let path = format!("{PREFIX}{}", role.id);
        // One lock for all, as no two have the same name.
        let _order = self.db.lock(PREFIX).await;
        let taken = self.roles()?;
        if taken
            .iter()
            .any(|other| other.id != role.id && other.name.eq_ignore_ascii_case(&role.name))
        {
            return Err(ApiError::bad(format!(
                "Invalid Role: A Role with Name {:?} already exists",
                role.name
            )));
        }
        let known = taken.iter().find(|other| other.id == role.id);
        let stored = Stored {
            name: role.name.clone(),
            description: role.description.clone(),
            links: role.links.clone(),
            created: known.map_or(0, |known| known.indexes.0),
        };
        let mut batch = Batch::new(by, "acl-role/write");
        batch
            .put(&path, &stored)?
            .key(format!("acl role {}", role.name));
        self.db.commit(batch).await?;
        let mut state = self.state.write();
        state.roles.insert(role.id.clone(), stored);
        self.changed(&mut state);
        Ok(())
    }

    pub async fn delete_role(&self, by: &By, id: &str) -> Result<(), ApiError> {
        let path = format!("{PREFIX}{id}");
        let _order = self.db.lock(PREFIX).await;
        if self.db.index(&path)?.is_some() {
            let mut batch = Batch::new(by, "acl-role/delete");
            batch.delete(&path).key(format!("acl role {id}"));
            self.db.commit(batch).await?;
        }
        let mut state = self.state.write();
        state.roles.remove(id);
        self.changed(&mut state);
        Ok(())
    }

    /// The names of the policies that a role stands for.
    pub fn of_role(&self, id: &str) -> Vec<String> {
        let state = self.state.read();
        let links = state.roles.get(id).map(|role| &role.links);
        links.map_or_else(Vec::new, Links::names)
    }
}

impl Links {
    /// The names of the policies, without those of roles.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = self.policies.clone();
        names.extend(self.identities.iter().map(crate::acl::Identity::policy));
        names
    }
}
