//! `identity/group*`: groups, and the names that login methods have for them.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Api;
use super::identity::{listed, name_in, some, some_of, some_set};
use crate::clock::rfc3339_unix;
use crate::db::By;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::identity::{Alias, Group, check_metadata};
use crate::policy::assignable;
use crate::request::Data;

impl Api {
    pub(super) fn look_up_group(&self, data: &Data) -> Result<Answer, ApiError> {
        let text = |name| Ok::<_, ApiError>(data.text(name)?.unwrap_or_default());
        let (id, name) = (text("id")?, text("name")?);
        let (alias_id, alias) = (text("alias_id")?, text("alias_name")?);
        let accessor = text("alias_mount_accessor")?;
        let identities = &self.identities;
        let group = match (&*id, &*name, &*alias_id, &*alias, &*accessor) {
            (id, "", "", "", "") if !id.is_empty() => identities.group(id),
            ("", name, "", "", "") if !name.is_empty() => identities.group_named(name),
            ("", "", id, "", "") if !id.is_empty() => self.aliased(id).map(|(group, _)| group),
            ("", "", "", alias, accessor) if !alias.is_empty() && !accessor.is_empty() => {
                identities.group_of_alias(accessor, alias)
            }
            _ => {
                return Err(ApiError::bad(
                    "one of id, name, alias_id, or alias_name with alias_mount_accessor should be supplied",
                ));
            }
        };
        Ok(group.map_or_else(Answer::none, |group| Answer::data(self.group_shown(&group))))
    }

    pub(super) async fn write_group(
        &self,
        by: &By,
        id: Option<&str>,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let _order = self.identities.group_order().await;
        let external = match data.text("type")?.as_deref() {
            None | Some("") => None,
            Some("internal") => Some(false),
            Some("external") => Some(true),
            Some(_) => {
                return Err(ApiError::bad(
                    "field \"type\": it is \"internal\" or \"external\"",
                ));
            }
        };
        let name = name_in(data)?;
        let id = match id {
            Some(id) => Some(id.to_string()),
            None => data.text("id")?.filter(|id| !id.is_empty()),
        };
        let named = name
            .as_ref()
            .and_then(|name| self.identities.group_named(name));
        let (before, mut group) = match id {
            Some(id) => {
                let found = self.identities.group(&id);
                let found = found.ok_or_else(|| ApiError::bad("group not found from id"))?;
                (true, (*found).clone())
            }
            None => match &named {
                Some(found) => (true, (**found).clone()),
                None => (false, self.identities.new_group(name.clone())),
            },
        };
        if let Some(name) = name {
            if named.is_some_and(|named| named.id != group.id) {
                return Err(ApiError::bad("group name is already in use"));
            }
            group.name = name;
        }
        if let Some(policies) = data.list("policies")? {
            group.policies = assignable(&policies)?;
        }
        if let Some(metadata) = data.text_map("metadata")? {
            check_metadata("metadata", &metadata)?;
            group.metadata = metadata;
        }
        match external {
            Some(external) if before && external != group.external => {
                return Err(ApiError::bad("group type cannot be changed"));
            }
            _ => group.external = external.unwrap_or(group.external),
        }
        if let Some(ids) = data.list("member_entity_ids")? {
            if group.external && !ids.is_empty() {
                return Err(ApiError::bad(
                    "member entities can't be set manually for external groups",
                ));
            }
            if ids.iter().any(|id| self.identities.entity(id).is_none()) {
                return Err(ApiError::bad(
                    "field \"member_entity_ids\": not the id of an entity",
                ));
            }
            group.member_entities = ids.into_iter().collect();
        }
        if let Some(ids) = data.list("member_group_ids")? {
            if ids.iter().any(|id| self.identities.group(id).is_none()) {
                return Err(ApiError::bad(
                    "field \"member_group_ids\": not the id of a group",
                ));
            }
            group.member_groups = ids.into_iter().collect();
        }
        let shown = json!({"id": group.id, "name": group.name});
        self.identities.put_group(by, group).await?;
        Ok(match before {
            true => Answer::none(),
            false => Answer::data(shown),
        })
    }

    pub(super) fn list_groups(&self, ids: bool) -> Result<Answer, ApiError> {
        let groups = self.identities.groups();
        if !ids {
            let mut names: Vec<_> = groups.iter().map(|group| group.name.clone()).collect();
            names.sort();
            return Answer::keys(names);
        }
        let mut info = Map::new();
        for group in &groups {
            let parents = self.identities.memberships(&group.id).direct;
            let seen = json!({
                "name": group.name, "num_member_entities": group.member_entities.len(),
                "num_parent_groups": parents.len(),
            });
            info.insert(group.id.clone(), seen);
        }
        listed(info)
    }

    pub(super) fn group_shown(&self, group: &Group) -> Value {
        let parents = self.identities.memberships(&group.id).direct;
        let alias = group.alias.as_ref();
        let alias = alias.map_or_else(|| json!({}), |alias| self.alias_shown(&group.id, alias));
        json!({
            "id": group.id, "name": group.name, "type": if group.external { "external" } else { "internal" }, "policies": group.policies,
            "metadata": some(&group.metadata), "member_entity_ids": group.member_entities,
            "member_group_ids": some_of(&group.member_groups.iter().collect::<Vec<_>>()),
            "parent_group_ids": some_set(&parents), "alias": alias, "modify_index": group.version,
            "creation_time": rfc3339_unix(group.created), "last_update_time": rfc3339_unix(group.updated),
            "namespace_id": "root",
        })
    }

    /// A group by the id of its alias.
    fn aliased(&self, id: &str) -> Option<(Arc<Group>, Alias)> {
        self.identities.groups().into_iter().find_map(|group| {
            let alias = group.alias.clone().filter(|alias| alias.id == id)?;
            Some((group, alias))
        })
    }

    /// A new alias, or a change of the one with this id. A group has one.
    pub(super) async fn write_group_alias(
        &self,
        by: &By,
        id: Option<&str>,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let _order = self.identities.group_order().await;
        let id = match id {
            Some(id) => Some(id.to_string()),
            None => data.text("id")?.filter(|id| !id.is_empty()),
        };
        let before = match id {
            Some(id) => {
                let found = self.aliased(&id);
                Some(found.ok_or_else(|| ApiError::bad("invalid alias ID"))?)
            }
            None => None,
        };
        let known = before.as_ref().map(|(_, alias)| alias);
        let name = data.text("name")?.filter(|name| !name.is_empty());
        let name = name.or_else(|| known.map(|alias| alias.name.clone()));
        let name = name.ok_or_else(|| ApiError::bad("missing alias name"))?;
        let accessor = data.text("mount_accessor")?;
        let accessor = accessor.or_else(|| known.map(|alias| alias.mount_accessor.clone()));
        let accessor = accessor.ok_or_else(|| ApiError::bad("missing mount_accessor"))?;
        let mounted = self.mounts.by_accessor(&accessor);
        if mounted.is_none_or(|served| !served.mount.is_auth()) {
            return Err(ApiError::bad(format!(
                "invalid mount accessor {accessor:?}"
            )));
        }
        let named = self.identities.group_of_alias(&accessor, &name);
        let to = match (
            data.text("canonical_id")?.filter(|id| !id.is_empty()),
            &before,
        ) {
            (Some(id), _) => self.identities.group(&id),
            (None, Some((group, _))) => Some(Arc::clone(group)),
            (None, None) => named.clone(),
        };
        let to = to.ok_or_else(|| {
            ApiError::bad(
                "field \"canonical_id\": the id of the external group that this is the name of",
            )
        })?;
        if !to.external {
            return Err(ApiError::bad("alias can't be set on internal group"));
        }
        let moves = before.as_ref().is_some_and(|(from, _)| from.id != to.id);
        if named.is_some_and(|named| named.id != to.id) || (moves && to.alias.is_some()) {
            return Err(ApiError::bad(
                "another group has this alias, or this group has another",
            ));
        }
        let kept = before.as_ref().map(|(_, alias)| alias.clone());
        let mut alias = kept
            .or_else(|| to.alias.clone())
            .unwrap_or_else(|| self.identities.new_alias(&accessor, &name));
        let renamed = (&alias.name, &alias.mount_accessor) != (&name, &accessor);
        (alias.name, alias.mount_accessor, alias.updated) = (name, accessor, self.clock.unix());
        if let Some((from, _)) = before.filter(|_| moves) {
            let mut from = (*from).clone();
            from.alias = None;
            from.member_entities.clear();
            self.identities.put_group(by, from).await?;
        }
        let mut group = (*to).clone();
        // Who the members are is said under the new name, by logins to come.
        if renamed {
            group.member_entities.clear();
        }
        let shown = json!({"id": alias.id, "canonical_id": group.id});
        group.alias = Some(alias);
        self.identities.put_group(by, group).await?;
        Ok(Answer::data(shown))
    }

    pub(super) fn read_group_alias(&self, id: &str) -> Result<Answer, ApiError> {
        let (group, alias) = self.aliased(id).ok_or(ApiError::NotFound)?;
        Ok(Answer::data(self.alias_shown(&group.id, &alias)))
    }

    pub(super) fn list_group_aliases(&self) -> Result<Answer, ApiError> {
        let mut info = Map::new();
        for group in self.identities.groups() {
            if let Some(alias) = &group.alias {
                let seen = json!({
                    "canonical_id": group.id, "name": alias.name, "mount_accessor": alias.mount_accessor,
                });
                info.insert(alias.id.clone(), seen);
            }
        }
        listed(info)
    }

    /// Nobody says any more who its members are: it has none.
    pub(super) async fn remove_group_alias(&self, by: &By, id: &str) -> Result<Answer, ApiError> {
        let _order = self.identities.group_order().await;
        if let Some((group, _)) = self.aliased(id) {
            let mut group = (*group).clone();
            group.alias = None;
            group.member_entities.clear();
            self.identities.put_group(by, group).await?;
        }
        Ok(Answer::none())
    }
}
