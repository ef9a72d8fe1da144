//! `identity/*`: entities, aliases and groups.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Api;
use crate::clock::rfc3339_unix;
use crate::db::By;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::identity::{Alias, Entity, Memberships, Metadata, check_metadata};
use crate::policy::assignable;
use crate::request::{Data, Operation};

/// Longest name of an entity, alias or group in bytes.
const LONGEST: usize = 512;

impl Api {
    pub(super) async fn identity(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        let (what, rest) = path.split_once('/').unwrap_or((path, ""));
        match (what, rest, operation) {
            ("lookup", "entity", Write) => Ok(self.look_up_entity(data)?),
            ("lookup", "group", Write) => Ok(self.look_up_group(data)?),
            ("entity", "", Write) => self.write_entity(by, None, data).await,
            ("entity", "merge", Write) => self.merge(by, data).await,
            ("entity", "batch-delete", Write) => {
                let ids = data.list("entity_ids")?.unwrap_or_default();
                self.remove_entities(by, ids).await
            }
            ("entity", "id/", List) => self.list_entities(true),
            ("entity", "name/", List) => self.list_entities(false),
            ("entity", item, Read | Write | Delete) => {
                let entity = match item.split_once('/') {
                    Some(("id", id)) => self.identities.entity(id),
                    Some(("name", name)) => match self.identities.entity_named(name) {
                        None if operation == Write => {
                            let mut named = data.clone();
                            named.insert("name", name);
                            return self.write_entity(by, None, &named).await;
                        }
                        found => found,
                    },
                    _ => return Err(ApiError::UnsupportedPath),
                };
                match (operation, entity) {
                    (Delete, None) => Ok(Answer::none()),
                    (Delete, Some(entity)) => {
                        self.remove_entities(by, vec![entity.id.clone()]).await
                    }
                    (Read, Some(entity)) => Ok(Answer::data(self.entity_shown(&entity))),
                    (Read, None) => Err(ApiError::NotFound),
                    (_, Some(entity)) => self.write_entity(by, Some(&entity), data).await,
                    (_, None) => Err(ApiError::bad("entity not found from id")),
                }
            }
            ("entity-alias", "", Write) => self.write_alias(by, None, data).await,
            ("entity-alias", "id/", List) => {
                let entities = self.identities.entities();
                let aliases = entities.iter().flat_map(|entity| &entity.aliases);
                Answer::keys(aliases.map(|alias| alias.id.clone()).collect())
            }
            ("entity-alias", item, Read | Write | Delete) => {
                let id = item.strip_prefix("id/").ok_or(ApiError::UnsupportedPath)?;
                match operation {
                    Read => {
                        let (entity, alias) = self.alias(id).ok_or(ApiError::NotFound)?;
                        Ok(Answer::data(self.alias_shown(&entity.id, &alias)))
                    }
                    Delete => self.remove_alias(by, id).await,
                    _ => self.write_alias(by, Some(id), data).await,
                }
            }
            ("group", "", Write) => self.write_group(by, None, data).await,
            ("group", "id/", List) => self.list_groups(true),
            ("group", "name/", List) => self.list_groups(false),
            ("group", item, Read | Write | Delete) => {
                let group = match item.split_once('/') {
                    Some(("id", id)) => self.identities.group(id),
                    Some(("name", name)) => match self.identities.group_named(name) {
                        None if operation == Write => {
                            let mut named = data.clone();
                            named.insert("name", name);
                            return self.write_group(by, None, &named).await;
                        }
                        found => found,
                    },
                    _ => return Err(ApiError::UnsupportedPath),
                };
                match (operation, group) {
                    (Delete, None) => Ok(Answer::none()),
                    (Delete, Some(group)) => {
                        let _order = self.identities.group_order().await;
                        self.identities.remove_group(by, &group.id).await?;
                        Ok(Answer::none())
                    }
                    (Read, Some(group)) => Ok(Answer::data(self.group_shown(&group))),
                    (Read, None) => Err(ApiError::NotFound),
                    (_, Some(group)) => self.write_group(by, Some(&group.id), data).await,
                    (_, None) => Err(ApiError::bad("group not found from id")),
                }
            }
            ("group-alias", "", Write) => self.write_group_alias(by, None, data).await,
            ("group-alias", "id/", List) => self.list_group_aliases(),
            ("group-alias", item, Read | Write | Delete) => {
                let id = item.strip_prefix("id/").ok_or(ApiError::UnsupportedPath)?;
                match operation {
                    Read => self.read_group_alias(id),
                    Delete => self.remove_group_alias(by, id).await,
                    _ => self.write_group_alias(by, Some(id), data).await,
                }
            }
            ("entity" | "entity-alias" | "group" | "group-alias" | "lookup", ..) => {
                Err(ApiError::UnsupportedOperation)
            }
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    /// A new entity, or a change of the one with the id or name that `data` has, or of `known`.
    async fn write_entity(
        &self,
        by: &By,
        known: Option<&Entity>,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let _order = self.identities.order().await;
        let name = name_in(data)?;
        let id = match known {
            Some(known) => Some(known.id.clone()),
            None => data.text("id")?.filter(|id| !id.is_empty()),
        };
        let named = name
            .as_ref()
            .and_then(|name| self.identities.entity_named(name));
        let (before, mut entity) = match id {
            Some(id) => {
                let found = self.identities.entity(&id);
                let found = found.ok_or_else(|| ApiError::bad("entity not found from id"))?;
                (true, (*found).clone())
            }
            None => match &named {
                Some(found) => (true, (**found).clone()),
                None => (false, self.identities.new_entity(name.clone())),
            },
        };
        if let Some(name) = name {
            if named.is_some_and(|named| named.id != entity.id) {
                return Err(ApiError::bad("entity name is already in use"));
            }
            entity.name = name;
        }
        if let Some(policies) = data.list("policies")? {
            entity.policies = assignable(&policies)?;
        }
        if let Some(metadata) = data.text_map("metadata")? {
            check_metadata("metadata", &metadata)?;
            entity.metadata = metadata;
        }
        if let Some(disabled) = data.flag("disabled")? {
            entity.disabled = disabled;
        }
        let (id, name) = (entity.id.clone(), entity.name.clone());
        self.identities.put_entity(by, entity).await?;
        Ok(match before {
            true => Answer::none(),
            false => Answer::data(json!({"id": id, "name": name, "aliases": null})),
        })
    }

    async fn remove_entities(&self, by: &By, mut ids: Vec<String>) -> Result<Answer, ApiError> {
        let _order = self.identities.order().await;
        ids.retain(|id| self.identities.entity(id).is_some());
        if !ids.is_empty() {
            self.identities.put_entities(by, Vec::new(), &ids).await?;
        }
        Ok(Answer::none())
    }

    /// Makes entities part of another one: it gets their aliases, policies and, where it has none of the key, metadata.
    async fn merge(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let _order = self.identities.order().await;
        let to = data.text("to_entity_id")?.unwrap_or_default();
        let from = data.list("from_entity_ids")?.unwrap_or_default();
        let missing = |id: &str| ApiError::bad(format!("entity id {id:?} does not exist"));
        let mut into = (*self.identities.entity(&to).ok_or_else(|| missing(&to))?).clone();
        for id in &from {
            if *id == to {
                return Err(ApiError::bad(
                    "to_entity_id should not be present in from_entity_ids",
                ));
            }
            let part = self.identities.entity(id).ok_or_else(|| missing(id))?;
            let taken = |alias: &Alias| {
                let mut others = into.aliases.iter();
                others.any(|other| other.mount_accessor == alias.mount_accessor)
            };
            if part.aliases.iter().any(taken) {
                return Err(ApiError::bad(
                    "both entities have an alias of the same login method; remove one first",
                ));
            }
            into.aliases.extend(part.aliases.iter().cloned());
            into.policies.extend(part.policies.iter().cloned());
            for (key, value) in &part.metadata {
                into.metadata
                    .entry(key.clone())
                    .or_insert_with(|| value.clone());
            }
            into.merged.push(id.clone());
        }
        into.policies = assignable(&into.policies)?;
        check_metadata("metadata", &into.metadata)?;
        self.identities.put_entities(by, vec![into], &from).await?;
        Ok(Answer::none())
    }

    fn list_entities(&self, ids: bool) -> Result<Answer, ApiError> {
        let entities = self.identities.entities();
        if !ids {
            let mut names: Vec<_> = entities.iter().map(|entity| entity.name.clone()).collect();
            names.sort();
            return Answer::keys(names);
        }
        let mut info = Map::new();
        for entity in &entities {
            let aliases: Vec<_> = entity
                .aliases
                .iter()
                .map(|alias| {
                    let (path, kind) = self.mount_of(&alias.mount_accessor);
                    json!({
                        "id": alias.id, "name": alias.name, "mount_accessor": alias.mount_accessor,
                        "mount_path": path, "mount_type": kind,
                    })
                })
                .collect();
            let seen = json!({"name": entity.name, "aliases": aliases});
            info.insert(entity.id.clone(), seen);
        }
        listed(info)
    }

    fn entity_shown(&self, entity: &Entity) -> Value {
        let Memberships { direct, inherited } = self.identities.memberships(&entity.id);
        let aliases: Vec<_> = entity
            .aliases
            .iter()
            .map(|alias| self.alias_shown(&entity.id, alias))
            .collect();
        json!({
            "id": entity.id, "name": entity.name, "metadata": some(&entity.metadata), "policies": entity.policies,
            "disabled": entity.disabled, "aliases": aliases, "creation_time": rfc3339_unix(entity.created),
            "last_update_time": rfc3339_unix(entity.updated), "direct_group_ids": direct,
            "inherited_group_ids": inherited, "group_ids": direct.union(&inherited).collect::<Vec<_>>(),
            "merged_entity_ids": some_of(&entity.merged), "namespace_id": "root",
        })
    }

    fn alias(&self, id: &str) -> Option<(std::sync::Arc<Entity>, Alias)> {
        self.identities.entities().into_iter().find_map(|entity| {
            let alias = entity.aliases.iter().find(|alias| alias.id == id)?.clone();
            Some((entity, alias))
        })
    }

    pub(super) fn alias_shown(&self, holder: &str, alias: &Alias) -> Value {
        let (path, kind) = self.mount_of(&alias.mount_accessor);
        json!({
            "id": alias.id, "canonical_id": holder, "name": alias.name, "mount_accessor": alias.mount_accessor,
            "mount_path": path, "mount_type": kind, "metadata": some(&alias.metadata),
            "custom_metadata": some(&alias.custom_metadata), "creation_time": rfc3339_unix(alias.created),
            "last_update_time": rfc3339_unix(alias.updated), "merged_from_canonical_ids": null,
            "local": false, "namespace_id": "root",
        })
    }

    /// Path and kind of a mount; empty when it is gone.
    fn mount_of(&self, accessor: &str) -> (String, &'static str) {
        let served = self.mounts.by_accessor(accessor);
        served.map_or((String::new(), ""), |served| {
            (served.mount.path.clone(), served.mount.kind.as_str())
        })
    }

    /// A new alias, or a change of the one with this id.
    async fn write_alias(
        &self,
        by: &By,
        id: Option<&str>,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let _order = self.identities.order().await;
        let id = match id {
            Some(id) => Some(id.to_string()),
            None => data.text("id")?.filter(|id| !id.is_empty()),
        };
        let before = match &id {
            Some(id) => {
                let found = self.alias(id);
                Some(found.ok_or_else(|| ApiError::bad("invalid alias ID"))?)
            }
            None => None,
        };
        let (name, accessor) = (name_in(data)?, data.text("mount_accessor")?);
        let (name, accessor) = match (&before, name, accessor) {
            (_, Some(name), Some(accessor)) => (name, accessor),
            (Some((_, alias)), name, accessor) => (
                name.unwrap_or_else(|| alias.name.clone()),
                accessor.unwrap_or_else(|| alias.mount_accessor.clone()),
            ),
            (None, None, _) => return Err(ApiError::bad("missing alias name")),
            (None, _, None) => return Err(ApiError::bad("missing mount_accessor")),
        };
        let mounted = self.mounts.by_accessor(&accessor);
        if mounted.is_none_or(|served| !served.mount.is_auth()) {
            return Err(ApiError::bad(format!(
                "invalid mount accessor {accessor:?}"
            )));
        }
        let holder = self.identities.entity_of_alias(&accessor, &name);
        let canonical = data.text("canonical_id")?.filter(|id| !id.is_empty());
        let to = match (&canonical, &before, &holder) {
            (Some(id), ..) => {
                let found = self.identities.entity(id);
                (*found.ok_or_else(|| ApiError::bad("invalid canonical ID"))?).clone()
            }
            (None, Some((entity, _)), _) | (None, None, Some(entity)) => (**entity).clone(),
            (None, None, None) => self.identities.new_entity(None),
        };
        // The alias itself: the one with the id, the one of that name, or a new one.
        let known = before.map(|(entity, alias)| (entity, alias.id));
        let known = known.or_else(|| {
            let holder = holder.clone()?;
            let mut aliases = holder.aliases.iter();
            let id = aliases
                .find(|alias| alias.mount_accessor == accessor && alias.name == name)?
                .id
                .clone();
            Some((holder, id))
        });
        let mut changed = vec![to];
        let mut alias = match &known {
            None => self.identities.new_alias(&accessor, &name),
            Some((holder, id)) => {
                if changed[0].id != holder.id {
                    changed.push((**holder).clone());
                }
                let taken = changed.iter_mut().find_map(|entity| {
                    let at = entity.aliases.iter().position(|alias| alias.id == *id)?;
                    Some(entity.aliases.remove(at))
                });
                taken.ok_or_else(|| ApiError::bad("invalid alias ID"))?
            }
        };
        let clashes = |alias: &Alias| alias.mount_accessor == accessor;
        if changed[0].aliases.iter().any(clashes)
            || holder.is_some_and(|holder| known.is_none_or(|(known, _)| known.id != holder.id))
        {
            return Err(ApiError::bad(
                "the entity has an alias of this login method, or another entity has this one",
            ));
        }
        if let Some(custom) = data.text_map("custom_metadata")? {
            check_metadata("custom_metadata", &custom)?;
            alias.custom_metadata = custom;
        }
        (alias.name, alias.mount_accessor) = (name, accessor);
        let shown = json!({"id": alias.id, "canonical_id": changed[0].id});
        changed[0].aliases.push(alias);
        self.identities.put_entities(by, changed, &[]).await?;
        Ok(Answer::data(shown))
    }

    async fn remove_alias(&self, by: &By, id: &str) -> Result<Answer, ApiError> {
        let _order = self.identities.order().await;
        if let Some((entity, _)) = self.alias(id) {
            let mut entity = (*entity).clone();
            entity.aliases.retain(|alias| alias.id != id);
            self.identities.put_entity(by, entity).await?;
        }
        Ok(Answer::none())
    }

    /// The one way in which `data` names an entity. 204 when there is none.
    fn look_up_entity(&self, data: &Data) -> Result<Answer, ApiError> {
        let text = |name| Ok::<_, ApiError>(data.text(name)?.unwrap_or_default());
        let (id, name) = (text("id")?, text("name")?);
        let (alias_id, alias) = (text("alias_id")?, text("alias_name")?);
        let accessor = text("alias_mount_accessor")?;
        let identities = &self.identities;
        let entity = match (&*id, &*name, &*alias_id, &*alias, &*accessor) {
            (id, "", "", "", "") if !id.is_empty() => identities.entity(id),
            ("", name, "", "", "") if !name.is_empty() => identities.entity_named(name),
            ("", "", id, "", "") if !id.is_empty() => self.alias(id).map(|(entity, _)| entity),
            ("", "", "", alias, accessor) if !alias.is_empty() && !accessor.is_empty() => {
                identities.entity_of_alias(accessor, alias)
            }
            _ => {
                return Err(ApiError::bad(
                    "one of id, name, alias_id, or alias_name with alias_mount_accessor should be supplied",
                ));
            }
        };
        Ok(entity.map_or_else(Answer::none, |entity| {
            Answer::data(self.entity_shown(&entity))
        }))
    }
}

/// `name`, if it is there and not empty.
pub(super) fn name_in(data: &Data) -> Result<Option<String>, ApiError> {
    let name = data.text("name")?.filter(|name| !name.is_empty());
    let fits = |name: &String| {
        name.len() <= LONGEST && !name.contains('/') && !name.contains(char::is_control)
    };
    match name {
        Some(name) if !fits(&name) || name.trim() != name => Err(ApiError::bad(format!(
            "field \"name\": at most {LONGEST} bytes, without slashes, control characters and blanks at its ends"
        ))),
        name => Ok(name),
    }
}

/// Keys, and what there is to say about each; 404 when there are none.
pub(super) fn listed(info: Map<String, Value>) -> Result<Answer, ApiError> {
    if info.is_empty() {
        return Err(ApiError::NotFound);
    }
    let keys: Vec<_> = info.keys().cloned().collect();
    let mut out = Map::new();
    out.insert("keys".into(), keys.into());
    out.insert("key_info".into(), info.into());
    Ok(Answer::data(out))
}

/// Nothing is null, as in Vault.
pub(super) fn some(metadata: &Metadata) -> Value {
    match metadata.is_empty() {
        true => Value::Null,
        false => json!(metadata),
    }
}

pub(super) fn some_of(items: &[impl serde::Serialize]) -> Value {
    match items.is_empty() {
        true => Value::Null,
        false => json!(items),
    }
}

pub(super) fn some_set(items: &BTreeSet<String>) -> Value {
    match items.is_empty() {
        true => Value::Null,
        false => json!(items),
    }
}
