//! Who somebody is, whichever way they logged in: entities, their names in the login methods (aliases), and groups.
//!
//! All of it is in memory, with the durable copy behind it: every request of a token that belongs to an entity asks for
//! the entity's policies and those of its groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::http::ApiError;

const ENTITIES: &str = "identity/entity/";
const GROUPS: &str = "identity/group/";
/// Pairs in the metadata of one entity, alias or group, and bytes of a key and a value.
const METADATA: (usize, usize, usize) = (64, 128, 512);

/// Somebody or something that logs in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entity {
    pub id: String,
    pub name: String,
    pub metadata: Metadata,
    pub policies: Vec<String>,
    pub disabled: bool,
    /// Unix seconds.
    pub created: i64,
    pub updated: i64,
    pub aliases: Vec<Alias>,
    /// Entities that were made part of this one.
    #[serde(default)]
    pub merged: Vec<String>,
}

/// A name in a login method that stands for an entity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Alias {
    pub id: String,
    pub name: String,
    pub mount_accessor: String,
    /// What the login method says of it.
    pub metadata: Metadata,
    pub custom_metadata: Metadata,
    pub created: i64,
    pub updated: i64,
}

/// Entities and groups that have policies in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Group {
    pub id: String,
    pub name: String,
    pub metadata: Metadata,
    pub policies: Vec<String>,
    pub member_entities: BTreeSet<String>,
    pub member_groups: BTreeSet<String>,
    pub created: i64,
    pub updated: i64,
    /// Changes so far.
    pub version: u64,
    /// Who is a member is not said here but by the login method of its alias, at each login.
    #[serde(default)]
    pub external: bool,
    /// What an external group is called there.
    #[serde(default)]
    pub alias: Option<Alias>,
}

pub(crate) type Metadata = BTreeMap<String, String>;

/// Which groups an entity belongs to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Memberships {
    pub direct: BTreeSet<String>,
    /// Through groups that are members of others.
    pub inherited: BTreeSet<String>,
}

/// All entities and groups of an unsealed server.
pub(crate) struct Identities {
    db: Db,
    clock: Clock,
    table: RwLock<Table>,
    changes: AtomicU64,
    /// Locks of their own, and not among those of [`Db::lock`]: a login holds one of these, and two names may share one.
    entity_order: Mutex<()>,
    group_order: Mutex<()>,
}

#[derive(Default)]
struct Table {
    entities: BTreeMap<String, Arc<Entity>>,
    /// By name, in lower case.
    names: BTreeMap<String, String>,
    /// Entities by mount accessor and name.
    aliases: HashMap<(String, String), String>,
    groups: BTreeMap<String, Arc<Group>>,
    group_names: BTreeMap<String, String>,
    /// External groups by mount accessor and name.
    group_aliases: HashMap<(String, String), String>,
    /// Groups that an entity or group is a member of.
    parents: HashMap<String, BTreeSet<String>>,
}

impl Table {
    fn put_entity(&mut self, entity: Entity) {
        self.remove_entity(&entity.id);
        self.names
            .insert(entity.name.to_lowercase(), entity.id.clone());
        for alias in &entity.aliases {
            self.aliases.insert(alias.key(), entity.id.clone());
        }
        self.entities.insert(entity.id.clone(), Arc::new(entity));
    }

    fn remove_entity(&mut self, id: &str) {
        if let Some(old) = self.entities.remove(id) {
            self.names.remove(&old.name.to_lowercase());
            for alias in &old.aliases {
                self.aliases.remove(&alias.key());
            }
        }
    }

    fn put_group(&mut self, group: Group) {
        self.remove_group(&group.id);
        for member in group.member_entities.iter().chain(&group.member_groups) {
            let parents = self.parents.entry(member.clone()).or_default();
            parents.insert(group.id.clone());
        }
        if let Some(alias) = &group.alias {
            self.group_aliases.insert(alias.key(), group.id.clone());
        }
        self.group_names
            .insert(group.name.to_lowercase(), group.id.clone());
        self.groups.insert(group.id.clone(), Arc::new(group));
    }

    fn remove_group(&mut self, id: &str) {
        let Some(old) = self.groups.remove(id) else {
            return;
        };
        self.group_names.remove(&old.name.to_lowercase());
        if let Some(alias) = &old.alias {
            self.group_aliases.remove(&alias.key());
        }
        for member in old.member_entities.iter().chain(&old.member_groups) {
            if let Some(parents) = self.parents.get_mut(member) {
                parents.remove(id);
                if parents.is_empty() {
                    self.parents.remove(member);
                }
            }
        }
    }

    fn memberships(&self, id: &str) -> Memberships {
        let direct = self.parents.get(id).cloned().unwrap_or_default();
        let mut inherited = BTreeSet::new();
        let mut look_at: Vec<&str> = direct.iter().map(String::as_str).collect();
        while let Some(group) = look_at.pop() {
            for parent in self.parents.get(group).into_iter().flatten() {
                if !direct.contains(parent) && inherited.insert(parent.clone()) {
                    look_at.push(parent);
                }
            }
        }
        Memberships { direct, inherited }
    }
}

impl Alias {
    fn key(&self) -> (String, String) {
        (self.mount_accessor.clone(), self.name.clone())
    }
}

impl Identities {
    pub fn load(db: Db, clock: Clock) -> Result<Self, ApiError> {
        let mut table = Table::default();
        for path in db.names(ENTITIES)? {
            if let Some((entity, _)) = db.get(&path)? {
                table.put_entity(entity);
            }
        }
        for path in db.names(GROUPS)? {
            if let Some((group, _)) = db.get(&path)? {
                table.put_group(group);
            }
        }
        Ok(Self {
            db,
            clock,
            table: RwLock::new(table),
            changes: AtomicU64::new(0),
            entity_order: Mutex::default(),
            group_order: Mutex::default(),
        })
    }

    pub fn entity(&self, id: &str) -> Option<Arc<Entity>> {
        self.table.read().entities.get(id).cloned()
    }

    pub fn entity_named(&self, name: &str) -> Option<Arc<Entity>> {
        let table = self.table.read();
        let id = table.names.get(&name.to_lowercase())?;
        table.entities.get(id).cloned()
    }

    pub fn entity_of_alias(&self, accessor: &str, name: &str) -> Option<Arc<Entity>> {
        let table = self.table.read();
        let id = table.aliases.get(&(accessor.into(), name.into()))?;
        table.entities.get(id).cloned()
    }

    pub fn entities(&self) -> Vec<Arc<Entity>> {
        self.table.read().entities.values().cloned().collect()
    }

    pub fn group(&self, id: &str) -> Option<Arc<Group>> {
        self.table.read().groups.get(id).cloned()
    }

    pub fn group_named(&self, name: &str) -> Option<Arc<Group>> {
        let table = self.table.read();
        let id = table.group_names.get(&name.to_lowercase())?;
        table.groups.get(id).cloned()
    }

    pub fn group_of_alias(&self, accessor: &str, name: &str) -> Option<Arc<Group>> {
        let table = self.table.read();
        let id = table.group_aliases.get(&(accessor.into(), name.into()))?;
        table.groups.get(id).cloned()
    }

    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.table.read().groups.values().cloned().collect()
    }

    pub fn memberships(&self, id: &str) -> Memberships {
        self.table.read().memberships(id)
    }

    /// The policies of an entity and all its groups, sorted. `None`: it is gone or disabled, and its tokens with it.
    pub fn policies(&self, id: &str) -> Option<Vec<String>> {
        let table = self.table.read();
        let entity = table.entities.get(id).filter(|entity| !entity.disabled)?;
        let mut policies: BTreeSet<String> = entity.policies.iter().cloned().collect();
        if table.parents.contains_key(id) {
            let Memberships { direct, inherited } = table.memberships(id);
            for group in direct.iter().chain(&inherited) {
                let group = table.groups.get(group);
                policies.extend(group.into_iter().flat_map(|group| group.policies.clone()));
            }
        }
        Some(policies.into_iter().collect())
    }

    /// What policy templates may say about an entity, by the part of the name behind `identity.`.
    pub fn facts(&self, id: &str) -> BTreeMap<String, String> {
        let table = self.table.read();
        let mut facts = BTreeMap::new();
        let Some(entity) = table.entities.get(id) else {
            return facts;
        };
        facts.insert("entity.id".into(), entity.id.clone());
        facts.insert("entity.name".into(), entity.name.clone());
        let metadata = |facts: &mut BTreeMap<_, _>, prefix: &str, metadata: &Metadata| {
            for (key, value) in metadata {
                facts.insert(format!("{prefix}.{key}"), value.clone());
            }
        };
        metadata(&mut facts, "entity.metadata", &entity.metadata);
        for alias in &entity.aliases {
            let prefix = format!("entity.aliases.{}", alias.mount_accessor);
            facts.insert(format!("{prefix}.id"), alias.id.clone());
            facts.insert(format!("{prefix}.name"), alias.name.clone());
            metadata(&mut facts, &format!("{prefix}.metadata"), &alias.metadata);
            let custom = format!("{prefix}.custom_metadata");
            metadata(&mut facts, &custom, &alias.custom_metadata);
        }
        let Memberships { direct, inherited } = table.memberships(id);
        for group in direct.iter().chain(&inherited) {
            if let Some(group) = table.groups.get(group) {
                let (ids, names) = (
                    format!("groups.ids.{}", group.id),
                    format!("groups.names.{}", group.name),
                );
                facts.insert(format!("{ids}.name"), group.name.clone());
                facts.insert(format!("{names}.id"), group.id.clone());
                metadata(&mut facts, &format!("{ids}.metadata"), &group.metadata);
                metadata(&mut facts, &format!("{names}.metadata"), &group.metadata);
            }
        }
        facts
    }

    /// The entity of a login, which is made at the first one.
    ///
    /// # Errors
    /// 403: it is disabled.
    pub async fn of_login(
        &self,
        by: &By,
        accessor: &str,
        name: &str,
        metadata: &Metadata,
    ) -> Result<Arc<Entity>, ApiError> {
        let known = |identities: &Self| identities.entity_of_alias(accessor, name);
        let is_told = |entity: &Entity| {
            let mut aliases = entity.aliases.iter();
            aliases.any(|alias| {
                alias.mount_accessor == accessor
                    && alias.name == name
                    && alias.metadata == *metadata
            })
        };
        let found = match known(self) {
            Some(entity) if is_told(&entity) => entity,
            _ => {
                let _order = self.order().await;
                let now = self.clock.unix();
                let mut entity = match known(self) {
                    Some(entity) => (*entity).clone(),
                    None => {
                        let mut entity = self.new_entity(None);
                        entity.aliases.push(new_alias(accessor, name, now));
                        entity
                    }
                };
                let told = entity
                    .aliases
                    .iter_mut()
                    .find(|alias| alias.mount_accessor == accessor && alias.name == name);
                if let Some(alias) = told {
                    alias.metadata = metadata.clone();
                    alias.updated = now;
                }
                self.put_entity(by, entity).await?
            }
        };
        match found.disabled {
            true => Err(ApiError::Unauthenticated),
            false => Ok(found),
        }
    }

    /// The external groups of a login method that an entity belongs to are those of these names, and no others.
    pub async fn join(
        &self,
        by: &By,
        entity: &str,
        accessor: &str,
        names: &[String],
    ) -> Result<(), ApiError> {
        let differ = || {
            let table = self.table.read();
            let of_method = table.group_aliases.iter();
            let of_method = of_method.filter(|((at, _), _)| at == accessor);
            let groups = of_method.filter_map(|((_, name), id)| {
                let (group, belongs) = (table.groups.get(id)?, names.contains(name));
                (group.member_entities.contains(entity) != belongs).then(|| Arc::clone(group))
            });
            groups.collect::<Vec<_>>()
        };
        if differ().is_empty() {
            return Ok(());
        }
        let _order = self.group_order().await;
        for group in differ() {
            let mut group = (*group).clone();
            if !group.member_entities.remove(entity) {
                group.member_entities.insert(entity.to_owned());
            }
            self.put_group(by, group).await?;
        }
        Ok(())
    }

    /// Hold while entities and aliases are read and changed.
    pub async fn order(&self) -> MutexGuard<'_, ()> {
        self.entity_order.lock().await
    }

    /// The same for groups.
    pub async fn group_order(&self) -> MutexGuard<'_, ()> {
        self.group_order.lock().await
    }

    pub fn new_entity(&self, name: Option<String>) -> Entity {
        let id = uuid::Uuid::new_v4().to_string();
        let now = self.clock.unix();
        Entity {
            name: name.unwrap_or_else(|| format!("entity_{}", &id[..8])),
            id,
            metadata: Metadata::new(),
            policies: Vec::new(),
            disabled: false,
            created: now,
            updated: now,
            aliases: Vec::new(),
            merged: Vec::new(),
        }
    }

    pub fn new_alias(&self, accessor: &str, name: &str) -> Alias {
        new_alias(accessor, name, self.clock.unix())
    }

    pub fn new_group(&self, name: Option<String>) -> Group {
        let id = uuid::Uuid::new_v4().to_string();
        let now = self.clock.unix();
        Group {
            name: name.unwrap_or_else(|| format!("group_{}", &id[..8])),
            id,
            metadata: Metadata::new(),
            policies: Vec::new(),
            member_entities: BTreeSet::new(),
            member_groups: BTreeSet::new(),
            created: now,
            updated: now,
            version: 0,
            external: false,
            alias: None,
        }
    }

    /// Stores an entity as it is now.
    pub async fn put_entity(&self, by: &By, entity: Entity) -> Result<Arc<Entity>, ApiError> {
        let mut stored = self.put_entities(by, vec![entity], &[]).await?;
        stored
            .pop()
            .ok_or_else(|| ApiError::Internal("an entity was not stored".into()))
    }

    /// Stores entities and removes others, as one change. Groups forget those that go.
    pub async fn put_entities(
        &self,
        by: &By,
        entities: Vec<Entity>,
        gone: &[String],
    ) -> Result<Vec<Arc<Entity>>, ApiError> {
        let _order = match gone.is_empty() {
            true => None,
            false => Some(self.group_order().await),
        };
        let mut batch = Batch::new(by, "identity/entity");
        let mut entities = entities;
        for entity in &mut entities {
            entity.updated = self.clock.unix();
            batch
                .put(&format!("{ENTITIES}{}", entity.id), entity)?
                .key(format!("entity {}", entity.name));
        }
        let mut groups = Vec::new();
        for id in gone {
            batch
                .delete(&format!("{ENTITIES}{id}"))
                .key(format!("entity {id}"));
        }
        for group in self.groups() {
            if gone.iter().any(|id| group.member_entities.contains(id)) {
                let mut group = (*group).clone();
                group.member_entities.retain(|id| !gone.contains(id));
                batch.put(&format!("{GROUPS}{}", group.id), &group)?;
                groups.push(group);
            }
        }
        self.db.commit(batch).await?;
        let mut table = self.table.write();
        gone.iter().for_each(|id| table.remove_entity(id));
        groups.into_iter().for_each(|group| table.put_group(group));
        let ids: Vec<_> = entities.iter().map(|entity| entity.id.clone()).collect();
        entities
            .into_iter()
            .for_each(|entity| table.put_entity(entity));
        self.changed();
        Ok(ids
            .iter()
            .filter_map(|id| table.entities.get(id).cloned())
            .collect())
    }

    /// Stores a group as it is now.
    ///
    /// # Errors
    /// 400 when it would be a member of itself.
    pub async fn put_group(&self, by: &By, mut group: Group) -> Result<(), ApiError> {
        self.is_tree(&group)?;
        group.updated = self.clock.unix();
        group.version += 1;
        let mut batch = Batch::new(by, "identity/group");
        batch
            .put(&format!("{GROUPS}{}", group.id), &group)?
            .key(format!("group {}", group.name));
        self.db.commit(batch).await?;
        let mut table = self.table.write();
        table.put_group(group);
        self.changed();
        Ok(())
    }

    pub async fn remove_group(&self, by: &By, id: &str) -> Result<(), ApiError> {
        let Some(group) = self.group(id) else {
            return Ok(());
        };
        let mut batch = Batch::new(by, "identity/group");
        batch
            .delete(&format!("{GROUPS}{id}"))
            .key(format!("group {}", group.name));
        let mut others = Vec::new();
        for other in self.groups() {
            if other.member_groups.contains(id) {
                let mut other = (*other).clone();
                other.member_groups.remove(id);
                batch.put(&format!("{GROUPS}{}", other.id), &other)?;
                others.push(other);
            }
        }
        self.db.commit(batch).await?;
        let mut table = self.table.write();
        table.remove_group(id);
        others.into_iter().for_each(|other| table.put_group(other));
        self.changed();
        Ok(())
    }

    /// The table was changed; while nobody else reads it.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes so far: as long as that stays, so does what everybody is.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// No group may lie in itself, however deep.
    fn is_tree(&self, group: &Group) -> Result<(), ApiError> {
        let table = self.table.read();
        let mut look_at: Vec<&str> = group.member_groups.iter().map(String::as_str).collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = look_at.pop() {
            if id == group.id {
                return Err(ApiError::bad("a group cannot be a member of itself"));
            }
            if seen.insert(id) {
                let members = table.groups.get(id).into_iter();
                look_at.extend(
                    members.flat_map(|group| group.member_groups.iter().map(String::as_str)),
                );
            }
        }
        Ok(())
    }
}

fn new_alias(accessor: &str, name: &str, now: i64) -> Alias {
    Alias {
        id: uuid::Uuid::new_v4().to_string(),
        name: name.into(),
        mount_accessor: accessor.into(),
        metadata: Metadata::new(),
        custom_metadata: Metadata::new(),
        created: now,
        updated: now,
    }
}

/// # Errors
/// 400: too many pairs, or one too long.
pub(crate) fn check_metadata(field: &str, metadata: &Metadata) -> Result<(), ApiError> {
    let (pairs, key, value) = METADATA;
    let fits = metadata.len() <= pairs
        && metadata
            .iter()
            .all(|(k, v)| !k.is_empty() && k.len() <= key && v.len() <= value);
    match fits {
        true => Ok(()),
        false => Err(ApiError::bad(format!(
            "field \"{field}\": at most {pairs} pairs, keys of {key} and values of {value} bytes"
        ))),
    }
}
