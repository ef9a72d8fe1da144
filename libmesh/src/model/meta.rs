//! Free-form pairs of an instance.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Free-form pairs, ordered by key, each key once. Reads like a map; takes a third of a small map's memory, of which a
/// big mesh has hundreds of thousands.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Meta(Box<[(Arc<str>, Arc<str>)]>);

impl Meta {
    /// No pairs.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key));
        at.ok().map(|at| &self.0[at].1)
    }

    /// Whether there is such a key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The pairs, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, by key.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.0.iter().map(|(_, value)| value)
    }

    /// Sets a pair; the value before. Moves all pairs: to build, collect.
    pub fn insert(&mut self, key: Arc<str>, value: Arc<str>) -> Option<Arc<str>> {
        let mut pairs = std::mem::take(&mut self.0).into_vec();
        let before = match pairs.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut pairs[at].1, value)),
            Err(at) => {
                pairs.insert(at, (key, value));
                None
            }
        };
        self.0 = pairs.into();
        before
    }

    /// Takes a pair away; its value.
    pub fn remove(&mut self, key: &str) -> Option<Arc<str>> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key));
        let mut pairs = std::mem::take(&mut self.0).into_vec();
        let before = at.ok().map(|at| pairs.remove(at).1);
        self.0 = pairs.into();
        before
    }
}

impl From<BTreeMap<Arc<str>, Arc<str>>> for Meta {
    fn from(pairs: BTreeMap<Arc<str>, Arc<str>>) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl FromIterator<(Arc<str>, Arc<str>)> for Meta {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(pairs: I) -> Self {
        pairs.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl<const N: usize> From<[(Arc<str>, Arc<str>); N]> for Meta {
    fn from(pairs: [(Arc<str>, Arc<str>); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Meta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Meta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}
