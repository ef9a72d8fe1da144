//! Keys, sessions and transactions, done simply: to compare with.

use super::*;

/// One thing to do.
#[derive(Debug, Clone)]
pub enum Step {
    Apply(Vec<Todo>),
    Create(bool),
    Destroy(usize),
    Reopen,
}

/// An operation, with places in small sets instead of names.
#[derive(Debug, Clone)]
pub enum Todo {
    Set(usize, u8, Cas),
    Delete(usize, Cas),
    DeleteTree(usize),
    Lock(usize, u8, usize),
    Unlock(usize, u8, usize),
    Get(usize),
    GetOrEmpty(usize),
    GetTree(usize),
    CheckIndex(usize, Cas),
    CheckSession(usize, usize),
    CheckAbsent(usize),
}

/// What a client believes of an index.
#[derive(Debug, Clone, Copy)]
pub enum Cas {
    None,
    Absent,
    Right,
    Wrong,
}

const KEYS: [&str; 4] = ["a", "a/b", "a/c", "b"];
const PREFIXES: [&str; 4] = ["", "a", "a/", "c"];

pub fn step() -> impl Strategy<Value = Step> {
    let one = || proptest::collection::vec(todo(), 1..2).prop_map(Step::Apply);
    prop_oneof![
        8 => one(),
        4 => proptest::collection::vec(todo(), 1..6).prop_map(Step::Apply),
        2 => any::<bool>().prop_map(Step::Create),
        1 => (0..3usize).prop_map(Step::Destroy),
        1 => Just(Step::Reopen),
    ]
}

fn todo() -> impl Strategy<Value = Todo> {
    let key = || 0..KEYS.len();
    let value = || 0..3u8;
    let session = || 0..3usize;
    let cas = || {
        prop_oneof![
            4 => Just(Cas::None), 1 => Just(Cas::Absent), 1 => Just(Cas::Right), 1 => Just(Cas::Wrong)
        ]
    };
    prop_oneof![
        3 => (key(), value(), cas()).prop_map(|(key, value, cas)| Todo::Set(key, value, cas)),
        1 => (key(), cas()).prop_map(|(key, cas)| Todo::Delete(key, cas)),
        1 => (0..PREFIXES.len()).prop_map(Todo::DeleteTree),
        4 => (key(), value(), session()).prop_map(|(k, v, s)| Todo::Lock(k, v, s)),
        2 => (key(), value(), session()).prop_map(|(k, v, s)| Todo::Unlock(k, v, s)),
        1 => key().prop_map(Todo::Get),
        1 => key().prop_map(Todo::GetOrEmpty),
        1 => (0..PREFIXES.len()).prop_map(Todo::GetTree),
        1 => (key(), cas()).prop_map(|(key, cas)| Todo::CheckIndex(key, cas)),
        1 => (key(), session()).prop_map(|(key, session)| Todo::CheckSession(key, session)),
        1 => key().prop_map(Todo::CheckAbsent),
    ]
}

#[derive(Clone, Default)]
pub struct Model {
    pairs: BTreeMap<String, Pair>,
    /// Ids that were ever made, and whether their keys are deleted; `None`: ended.
    sessions: Vec<(String, Option<bool>)>,
}

#[derive(Clone, PartialEq, Debug)]
struct Pair {
    value: Vec<u8>,
    session: Option<String>,
    lock_index: u64,
    created: u64,
    modified: u64,
}

/// Does a step in both and compares everything.
pub async fn run(bench: &Bench, model: &mut Model, step: Step) {
    match step {
        Step::Reopen => bench.reopen().await,
        Step::Create(deletes) => {
            let behavior = match deletes {
                true => Behavior::Delete,
                false => Behavior::Release,
            };
            let options = SessionOptions {
                behavior,
                ..SessionOptions::default()
            };
            let id = bench.session(options).await;
            model.sessions.push((id, Some(deletes)));
        }
        Step::Destroy(which) => {
            let Some((id, lives)) = model.session(which) else {
                return;
            };
            assert_eq!(bench.destroy(&id).await, lives.is_some());
            if let Some(deletes) = lives {
                model.end(&id, deletes, bench.head());
            }
        }
        Step::Apply(todos) => {
            let before = bench.head();
            let ops = todos.iter().map(|todo| model.op(todo)).collect();
            let mut after = model.clone();
            let wanted: Vec<_> = todos
                .iter()
                .map(|todo| after.apply(todo, model, before + 1))
                .collect();
            let fails = wanted.iter().any(Option::is_none);
            match bench.kv.apply(Meta::default(), ops).await {
                Ok(applied) => {
                    assert!(!fails, "it must not apply");
                    for (applied, wanted) in applied.iter().zip(wanted.into_iter().flatten()) {
                        if let Applied::Read(_) = applied {
                            assert_eq!(read(applied), wanted);
                        }
                    }
                    *model = after;
                }
                Err(NotApplied::Refused(refused)) => {
                    let ops: Vec<_> = refused.iter().map(|one| one.op).collect();
                    let wanted = wanted.iter().enumerate();
                    let wanted: Vec<_> = wanted
                        .filter(|(_, wanted)| wanted.is_none())
                        .map(|(at, _)| at)
                        .collect();
                    assert_eq!(ops, wanted);
                    assert_eq!(bench.head(), before);
                }
                Err(NotApplied::Failed(error)) => panic!("{error}"),
            }
        }
    }
    let pairs = bench.kv.list("").unwrap().into_iter().map(|pair| {
        let key = pair.key.clone();
        let pair = Pair {
            value: pair.value.to_vec(),
            session: pair.session.clone(),
            lock_index: pair.lock_index,
            created: pair.created,
            modified: pair.modified,
        };
        (key, pair)
    });
    assert_eq!(pairs.collect::<BTreeMap<_, _>>(), model.pairs);
    // What lies beside: live sessions, and a record for each key that is held.
    let sessions = model.sessions.iter().filter(|(_, lives)| lives.is_some());
    let held = model.pairs.values().filter(|pair| pair.session.is_some());
    assert_eq!(bench.beside().len(), sessions.count() + held.count());
}

impl Model {
    fn session(&self, which: usize) -> Option<(String, Option<bool>)> {
        self.sessions.iter().nth_back(which).cloned()
    }

    fn session_id(&self, which: usize) -> String {
        self.session(which)
            .map_or_else(|| "none".to_owned(), |(id, _)| id)
    }

    fn end(&mut self, id: &str, deletes: bool, index: u64) {
        for (known, lives) in &mut self.sessions {
            if known == id {
                *lives = None;
            }
        }
        let holds = |pair: &Pair| pair.session.as_deref() == Some(id);
        if deletes {
            self.pairs.retain(|_, pair| !holds(pair));
        }
        for pair in self.pairs.values_mut().filter(|pair| holds(pair)) {
            pair.session = None;
            pair.modified = index;
        }
    }

    fn cas(&self, key: usize, cas: Cas) -> Option<u64> {
        let known = self.pairs.get(KEYS[key]);
        match cas {
            Cas::None => None,
            Cas::Absent => Some(0),
            Cas::Right => Some(known.map_or(0, |pair| pair.modified)),
            Cas::Wrong => Some(u64::MAX),
        }
    }

    fn op(&self, todo: &Todo) -> KvOp {
        let name = |key: &usize| KEYS[*key].to_owned();
        let value = |value: &u8| Zeroizing::new(vec![*value]);
        match todo {
            Todo::Set(key, of, cas) => KvOp::Set {
                key: name(key),
                value: value(of),
                flags: 0,
                cas: self.cas(*key, *cas),
                ttl: None,
            },
            Todo::Delete(key, cas) => KvOp::Delete {
                key: name(key),
                cas: self.cas(*key, *cas),
            },
            Todo::DeleteTree(prefix) => KvOp::DeleteTree {
                prefix: PREFIXES[*prefix].to_owned(),
            },
            Todo::Lock(key, of, session) => KvOp::Lock {
                key: name(key),
                value: value(of),
                flags: 0,
                session: self.session_id(*session),
            },
            Todo::Unlock(key, of, session) => KvOp::Unlock {
                key: name(key),
                value: value(of),
                flags: 0,
                session: self.session_id(*session),
            },
            Todo::Get(key) => KvOp::Get { key: name(key) },
            Todo::GetOrEmpty(key) => KvOp::GetOrEmpty { key: name(key) },
            Todo::GetTree(prefix) => KvOp::GetTree {
                prefix: PREFIXES[*prefix].to_owned(),
            },
            Todo::CheckIndex(key, cas) => KvOp::CheckIndex {
                key: name(key),
                index: self.cas(*key, *cas).unwrap_or_default(),
            },
            Todo::CheckSession(key, session) => KvOp::CheckSession {
                key: name(key),
                session: self.session_id(*session),
            },
            Todo::CheckAbsent(key) => KvOp::CheckAbsent { key: name(key) },
        }
    }

    /// What is read; `None`: it does not apply. `then`: the state in which the client made up its mind.
    fn apply(&mut self, todo: &Todo, then: &Self, index: u64) -> Option<Vec<(String, Vec<u8>)>> {
        let nothing = Some(Vec::new());
        match todo {
            Todo::Set(key, value, cas) => {
                let before = self.pairs.get(KEYS[*key]).cloned();
                let known = before.as_ref().map_or(0, |pair| pair.modified);
                if then.cas(*key, *cas).is_some_and(|cas| cas != known) {
                    return None;
                }
                self.write(*key, *value, then, index, |_| {});
                nothing
            }
            Todo::Delete(key, cas) => {
                let known = self.pairs.get(KEYS[*key]).map(|pair| pair.modified);
                let wanted = then.cas(*key, *cas);
                if known.is_some() && wanted.is_some() && wanted != known {
                    return None;
                }
                self.pairs.remove(KEYS[*key]);
                nothing
            }
            Todo::DeleteTree(prefix) => {
                self.pairs
                    .retain(|key, _| !key.starts_with(PREFIXES[*prefix]));
                nothing
            }
            Todo::Lock(key, value, session) => {
                let (id, lives) = self.session(*session)?;
                lives?;
                let holder = self
                    .pairs
                    .get(KEYS[*key])
                    .and_then(|pair| pair.session.clone());
                if holder.as_ref().is_some_and(|holder| *holder != id) {
                    return None;
                }
                self.write(*key, *value, then, index, |pair| {
                    pair.lock_index += u64::from(holder.is_none());
                    pair.session = Some(id);
                });
                nothing
            }
            Todo::Unlock(key, value, session) => {
                let holder = self.pairs.get(KEYS[*key])?.session.clone()?;
                if holder != self.session_id(*session) {
                    return None;
                }
                self.write(*key, *value, then, index, |pair| pair.session = None);
                nothing
            }
            Todo::Get(key) => Some(vec![self.shown(KEYS[*key])?]),
            Todo::GetOrEmpty(key) => Some(self.shown(KEYS[*key]).into_iter().collect()),
            Todo::GetTree(prefix) => {
                let under = self
                    .pairs
                    .keys()
                    .filter(|key| key.starts_with(PREFIXES[*prefix]));
                Some(under.filter_map(|key| self.shown(key)).collect())
            }
            Todo::CheckIndex(key, cas) => {
                let known = self.pairs.get(KEYS[*key])?.modified;
                (then.cas(*key, *cas).unwrap_or_default() == known).then(Vec::new)
            }
            Todo::CheckSession(key, session) => {
                let holder = self.pairs.get(KEYS[*key])?.session.clone();
                (holder == Some(self.session_id(*session))).then(Vec::new)
            }
            Todo::CheckAbsent(key) => (!self.pairs.contains_key(KEYS[*key])).then(Vec::new),
        }
    }

    fn shown(&self, key: &str) -> Option<(String, Vec<u8>)> {
        let pair = self.pairs.get(key)?;
        Some((key.to_owned(), pair.value.clone()))
    }

    fn write(
        &mut self,
        key: usize,
        value: u8,
        then: &Self,
        index: u64,
        change: impl FnOnce(&mut Pair),
    ) {
        // One that was taken away and is made again in the same transaction was changed.
        let created = then.pairs.get(KEYS[key]).map_or(index, |pair| pair.created);
        let before = self.pairs.get(KEYS[key]).cloned();
        let mut pair = before.clone().unwrap_or(Pair {
            value: Vec::new(),
            session: None,
            lock_index: 0,
            created,
            modified: index,
        });
        pair.value = vec![value];
        change(&mut pair);
        if before.as_ref() != Some(&pair) {
            pair.modified = index;
        }
        self.pairs.insert(KEYS[key].to_owned(), pair);
    }
}
