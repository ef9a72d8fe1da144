use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use tokio::{task::JoinSet, time::timeout};

use super::*;
use crate::{InitOptions, StoreConfig, VaultConfig};

mod model;

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    vault: Vault,
    share: Zeroizing<Vec<u8>>,
    kv: Kv,
}

async fn bench() -> Bench {
    let vault = Vault::open(VaultConfig::new(StoreConfig::Memory)).unwrap();
    let one = InitOptions {
        shares: 1,
        threshold: 1,
    };
    let share = vault.init(one).await.unwrap().keys.remove(0);
    vault.submit_share(share.clone()).await.unwrap();
    let kv = vault.kv("test");
    Bench { vault, share, kv }
}

impl Bench {
    /// Forgets all that is only in memory.
    async fn reopen(&self) {
        self.vault.seal();
        self.vault.submit_share(self.share.clone()).await.unwrap();
    }

    async fn session(&self, options: SessionOptions) -> String {
        let sessions = self.kv.sessions();
        let made = sessions.create(Meta::default(), options).await;
        made.unwrap().id
    }

    async fn lock(&self, key: &str, session: &str) -> bool {
        let value = bytes(session);
        let lock = self.kv.lock(Meta::default(), key, value, 0, session);
        lock.await.unwrap()
    }

    async fn destroy(&self, session: &str) -> bool {
        let sessions = self.kv.sessions();
        sessions.destroy(Meta::default(), session).await.unwrap()
    }

    async fn put(&self, key: &str, value: &str) {
        let put = self.kv.put(Meta::default(), key, bytes(value), 0, None);
        assert!(put.await.unwrap());
    }

    fn pair(&self, key: &str) -> Option<KvPair> {
        self.kv.get(key).unwrap()
    }

    fn head(&self) -> u64 {
        self.vault.unsealed().unwrap().core.head().index
    }

    /// Records of the store that are not keys.
    fn beside(&self) -> Vec<String> {
        let core = self.kv.core().unwrap();
        let tops = ["kv-session/", "kv-held/", "kv-delay/", "kv-ttl/"];
        tops.iter()
            .flat_map(|top| core.scan(top).unwrap())
            .collect()
    }
}

fn bytes(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

fn set(key: &str, value: &str) -> KvOp {
    KvOp::Set {
        key: key.to_owned(),
        value: bytes(value),
        flags: 0,
        cas: None,
        ttl: None,
    }
}

fn get(key: &str) -> KvOp {
    KvOp::Get {
        key: key.to_owned(),
    }
}

fn delaying(lock_delay: Duration) -> SessionOptions {
    SessionOptions {
        lock_delay,
        ..SessionOptions::default()
    }
}

fn living(ttl: Duration) -> SessionOptions {
    SessionOptions {
        ttl: Some(ttl),
        ..SessionOptions::default()
    }
}

fn read(applied: &Applied) -> Vec<(String, Vec<u8>)> {
    match applied {
        Applied::Read(pairs) => pairs
            .iter()
            .map(|pair| (pair.key.clone(), pair.value.to_vec()))
            .collect(),
        _ => panic!("nothing was read"),
    }
}

#[tokio::test]
async fn a_session_that_ends_lets_go_of_all_it_holds_in_one_entry() {
    let bench = bench().await;
    let releases = bench.session(SessionOptions::default()).await;
    let deletes = SessionOptions {
        behavior: Behavior::Delete,
        ..SessionOptions::default()
    };
    let deletes = bench.session(deletes).await;
    for key in ["a", "b/c"] {
        assert!(bench.lock(key, &releases).await);
        assert!(!bench.lock(key, &deletes).await, "it is held");
    }
    assert!(bench.lock("d", &deletes).await);
    let before = bench.head();
    assert!(bench.destroy(&releases).await);
    assert_eq!(bench.head(), before + 1);
    for key in ["a", "b/c"] {
        let pair = bench.pair(key).unwrap();
        assert_eq!((pair.session, pair.lock_index), (None, 1));
        assert_eq!(pair.modified, before + 1, "its watchers hear of it");
    }
    assert!(bench.destroy(&deletes).await);
    assert!(bench.pair("d").is_none());
    assert!(!bench.destroy(&deletes).await, "once");
    assert_eq!(bench.beside(), [""; 0], "nothing stays behind");

    let value = bytes("v");
    let lock = bench.kv.lock(Meta::default(), "a", value, 0, &releases);
    let error = lock.await.unwrap_err();
    assert_eq!(error.to_string(), format!("invalid session {releases:?}"));
}

#[tokio::test]
async fn a_lock_counts_who_takes_it_and_not_who_has_it() {
    let bench = bench().await;
    let [one, two] = [
        bench.session(SessionOptions::default()).await,
        bench.session(SessionOptions::default()).await,
    ];
    assert!(bench.lock("k", &one).await);
    let taken = bench.pair("k").unwrap();
    assert!(bench.lock("k", &one).await);
    assert_eq!(
        bench.pair("k").unwrap().modified,
        taken.modified,
        "nothing new"
    );
    bench.put("k", "by anybody").await;
    let pair = bench.pair("k").unwrap();
    assert_eq!((pair.lock_index, pair.session.as_ref()), (1, Some(&one)));

    let unlock = |session: &str| {
        let (kv, session) = (bench.kv.clone(), session.to_owned());
        async move {
            let unlock = kv.unlock(Meta::default(), "k", bytes("free"), 7, &session);
            unlock.await.unwrap()
        }
    };
    assert!(!unlock(&two).await);
    assert!(unlock(&one).await);
    assert!(!unlock(&one).await);
    let pair = bench.pair("k").unwrap();
    assert_eq!(
        (&pair.value[..], pair.flags, pair.session),
        (&b"free"[..], 7, None)
    );
    assert!(bench.lock("k", &two).await);
    assert_eq!(bench.pair("k").unwrap().lock_index, 2);

    // A lock does not keep others from deleting, and leaves nothing behind then.
    let taken_away = bench.kv.delete(Meta::default(), "k", None);
    assert!(taken_away.await.unwrap());
    assert!(bench.lock("x/k", &two).await);
    bench.kv.delete_under(Meta::default(), "x/").await.unwrap();
    let sessions = bench.beside();
    assert_eq!(sessions.len(), 2, "{sessions:?}");
}

#[tokio::test]
async fn after_an_end_a_lock_stays_free_for_its_delay() {
    let bench = bench().await;
    let delay = Duration::from_millis(300);
    let gone = bench.session(delaying(delay)).await;
    let next = bench.session(SessionOptions::default()).await;
    assert!(bench.lock("k", &gone).await);
    bench.destroy(&gone).await;
    let since = Instant::now();
    assert!(!bench.lock("k", &next).await);
    assert!(bench.lock("other", &next).await);
    // A delay outlives the process.
    bench.reopen().await;
    let index = bench.kv.core().unwrap().changed("kv-delay/test/k").unwrap();
    let over = async {
        let core = bench.kv.core().unwrap();
        core.wait("kv-delay/test/k", index).await.unwrap()
    };
    timeout(LONG, over).await.unwrap();
    assert!(since.elapsed() >= delay - Duration::from_millis(1));
    assert!(bench.lock("k", &next).await);

    // Letting go is no failure: nobody waits.
    let unlock = bench.kv.unlock(Meta::default(), "k", bytes(""), 0, &next);
    assert!(unlock.await.unwrap());
    let third = bench.session(SessionOptions::default()).await;
    assert!(bench.lock("k", &third).await);
}

#[tokio::test]
async fn a_session_lives_while_it_is_renewed() {
    let bench = bench().await;
    let sessions = bench.kv.sessions();
    let ttl = Duration::from_millis(400);
    let id = bench.session(living(ttl)).await;
    assert!(bench.lock("k", &id).await);
    let started = Instant::now();
    let held = bench.pair("k").unwrap().modified;
    let released = {
        let kv = bench.kv.clone();
        tokio::spawn(async move { kv.wait("k", held).await.unwrap() })
    };
    while started.elapsed() < ttl * 3 {
        assert!(sessions.renew(&id).unwrap().is_some());
        assert!(!released.is_finished());
        tokio::time::sleep(ttl / 20).await;
    }
    let renewed = Instant::now();
    assert!(sessions.renew(&id).unwrap().is_some());
    timeout(LONG, released).await.unwrap().unwrap();
    assert!(renewed.elapsed() >= ttl);
    assert_eq!(bench.pair("k").unwrap().session, None);
    assert!(sessions.renew(&id).unwrap().is_none());
    assert_eq!(sessions.list().unwrap(), []);
    let history = bench.vault.ledger().history(1, None).unwrap();
    assert_eq!(history[0].meta.operation, "session expired");
}

#[tokio::test]
async fn sessions_and_keys_with_an_end_have_it_after_unsealing_too() {
    let bench = bench().await;
    let ttl = Duration::from_millis(200);
    let id = bench.session(living(ttl)).await;
    let forever = bench.session(SessionOptions::default()).await;
    assert!(bench.lock("k", &id).await);
    assert!(bench.lock("kept", &forever).await);
    let put = bench.kv.put_for(Meta::default(), "short", bytes("v"), ttl);
    put.await.unwrap();
    let held = bench.pair("k").unwrap().modified;
    let there = bench.pair("short").unwrap();
    assert!(there.ends.is_some());
    bench.reopen().await;
    timeout(LONG, bench.kv.wait("k", held))
        .await
        .unwrap()
        .unwrap();
    let ended = bench.kv.wait("short", there.modified);
    timeout(LONG, ended).await.unwrap().unwrap();
    assert!(bench.pair("short").is_none());
    let kept = bench.pair("kept").unwrap();
    assert_eq!(kept.session, Some(forever));
    assert_eq!(bench.kv.sessions().list().unwrap().len(), 1);
}

#[tokio::test]
async fn the_last_put_decides_when_a_key_ends() {
    let bench = bench().await;
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(3600));
    let put = async |key, ttl| {
        let put = bench.kv.put_for(Meta::default(), key, bytes("v"), ttl);
        put.await.unwrap();
    };
    put("longer", short).await;
    put("longer", long).await;
    put("kept", short).await;
    bench.put("kept", "for ever").await;
    put("shorter", long).await;
    put("shorter", short).await;
    let there = bench.pair("shorter").unwrap().modified;
    let ended = bench.kv.wait("shorter", there);
    timeout(LONG, ended).await.unwrap().unwrap();
    // What was due at the same time: the record beside the key that is kept.
    let core = bench.kv.core().unwrap();
    let hint = core.changed("kv-ttl/test/kept").unwrap();
    if core.index_of("kv-ttl/test/kept").unwrap().is_some() {
        let gone = core.wait("kv-ttl/test/kept", hint);
        timeout(LONG, gone).await.unwrap().unwrap();
    }
    assert!(bench.pair("kept").unwrap().ends.is_none());
    assert!(bench.pair("longer").unwrap().ends.is_some());
    assert_eq!(bench.beside(), ["kv-ttl/test/longer"]);
}

#[tokio::test]
async fn a_transaction_happens_whole_or_not_at_all() {
    let bench = bench().await;
    let session = bench.session(SessionOptions::default()).await;
    bench.put("t/old", "0").await;
    let applied = bench.kv.apply(
        Meta::default(),
        vec![
            set("t/a", "1"),
            get("t/a"),
            set("t/a", "2"),
            KvOp::Lock {
                key: "t/b".to_owned(),
                value: bytes("3"),
                flags: 0,
                session: session.clone(),
            },
            KvOp::CheckSession {
                key: "t/b".to_owned(),
                session: session.clone(),
            },
            KvOp::Delete {
                key: "t/old".to_owned(),
                cas: None,
            },
            KvOp::GetTree {
                prefix: "t/".to_owned(),
            },
            KvOp::CheckAbsent {
                key: "t/old".to_owned(),
            },
        ],
    );
    let applied = applied.await.unwrap();
    let head = bench.head();
    assert_eq!(read(&applied[1]), [("t/a".to_owned(), b"1".to_vec())]);
    assert_eq!(
        read(&applied[6]),
        [
            ("t/a".to_owned(), b"2".to_vec()),
            ("t/b".to_owned(), b"3".to_vec())
        ]
    );
    let Applied::Pair(locked) = &applied[3] else {
        panic!("a lock tells what it made");
    };
    assert_eq!(
        (locked.modified, locked.created, locked.lock_index),
        (head, head, 1)
    );
    assert_eq!(bench.pair("t/a").unwrap().modified, head);

    let failing = bench.kv.apply(
        Meta::default(),
        vec![
            set("t/c", "1"),
            get("t/none"),
            KvOp::CheckIndex {
                key: "t/a".to_owned(),
                index: 1,
            },
            KvOp::DeleteTree {
                prefix: "t/".to_owned(),
            },
            KvOp::CheckSession {
                key: "t/b".to_owned(),
                session: "x".to_owned(),
            },
        ],
    );
    let Err(NotApplied::Refused(refused)) = failing.await else {
        panic!("it must not apply");
    };
    let refused: Vec<_> = refused.into_iter().map(|one| (one.op, one.why)).collect();
    assert_eq!(
        refused,
        [
            (1, Refusal::Absent),
            (2, Refusal::Stale(head)),
            (4, Refusal::Absent),
        ],
        "each sees those before it"
    );
    assert_eq!(bench.head(), head);
    assert_eq!(bench.kv.keys("t/", "").unwrap(), ["t/a", "t/b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lock_is_held_by_one_and_money_is_neither_made_nor_lost() {
    let bench = bench().await;
    for account in ["a", "b", "c"] {
        bench.put(account, "100").await;
    }
    let mut tasks = JoinSet::new();
    for one in 0..6usize {
        let kv = bench.kv.clone();
        let session = bench.session(SessionOptions::default()).await;
        tasks.spawn(async move {
            let mut worked = 0;
            while worked < 20 {
                let lock = kv.lock(Meta::default(), "lock", bytes("mine"), 0, &session);
                if !lock.await.unwrap() {
                    tokio::task::yield_now().await;
                    continue;
                }
                // Not atomic: only the lock makes it right.
                let count = kv.get("count").unwrap().map_or(0, |pair| number(&pair));
                let value = bytes(&(count + 1).to_string());
                kv.put(Meta::default(), "count", value, 0, None)
                    .await
                    .unwrap();
                let unlock = kv.unlock(Meta::default(), "lock", bytes(""), 0, &session);
                assert!(unlock.await.unwrap(), "nobody else lets go of it");
                worked += 1;
            }
        });
        let kv = bench.kv.clone();
        tasks.spawn(async move {
            let names = ["a", "b", "c"];
            let (from, to) = (names[one % 3], names[(one + 1) % 3]);
            let mut moved = 0;
            while moved < 20 {
                let [left, right] = [from, to].map(|key| kv.get(key).unwrap().unwrap());
                let move_one = |pair: &KvPair, by: i64| KvOp::Set {
                    key: pair.key.clone(),
                    value: bytes(&(number(pair) + by).to_string()),
                    flags: 0,
                    cas: Some(pair.modified),
                    ttl: None,
                };
                let ops = vec![move_one(&left, -1), move_one(&right, 1)];
                match kv.apply(Meta::default(), ops).await {
                    Ok(_) => moved += 1,
                    Err(NotApplied::Refused(_)) => {}
                    Err(NotApplied::Failed(error)) => panic!("{error}"),
                }
            }
        });
        let kv = bench.kv.clone();
        tasks.spawn(async move {
            for _ in 0..20 {
                let read_all = kv.apply(Meta::default(), ["a", "b", "c"].map(get).into());
                let sum: i64 = read_all
                    .await
                    .ok()
                    .unwrap()
                    .iter()
                    .flat_map(read)
                    .map(|(_, value)| std::str::from_utf8(&value).unwrap().parse::<i64>().unwrap())
                    .sum();
                assert_eq!(sum, 300, "what is read together was there together");
            }
        });
    }
    timeout(LONG, async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await
    .unwrap();
    assert_eq!(number(&bench.pair("count").unwrap()), 120);
}

fn number(pair: &KvPair) -> i64 {
    std::str::from_utf8(&pair.value).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_a_key_do_not_keep_its_session_from_ending() {
    let bench = bench().await;
    let session = bench.session(SessionOptions::default()).await;
    assert!(bench.lock("hot", &session).await);
    let mut writers = JoinSet::new();
    for one in 0..8 {
        let kv = bench.kv.clone();
        writers.spawn(async move {
            for n in 0.. {
                let value = bytes(&format!("{one} {n}"));
                kv.put(Meta::default(), "hot", value, 0, None)
                    .await
                    .unwrap();
            }
        });
    }
    assert!(timeout(LONG, bench.destroy(&session)).await.unwrap());
    let tree = bench.kv.delete_under(Meta::default(), "");
    timeout(LONG, tree).await.unwrap().unwrap();
    writers.shutdown().await;
    assert_eq!(bench.pair("hot").and_then(|pair| pair.session), None);
}

#[tokio::test]
async fn more_than_an_entry_takes_goes_in_several_and_an_end_that_was_begun_goes_on() {
    let bench = bench().await;
    let session = bench.session(SessionOptions::default()).await;
    for n in 0..5 {
        let mut value = vec![n; crate::core::MAX_VALUE / 4];
        value[0] = n;
        let key = format!("large/{n}");
        let lock = bench
            .kv
            .lock(Meta::default(), &key, Zeroizing::new(value), 0, &session);
        assert!(lock.await.unwrap());
    }
    let before = bench.head();
    // Cut off after the first step, as by a crash.
    let (paths, id) = (bench.kv.paths.clone(), session.clone());
    let step = move |view: &mut View<'_>| {
        let (_, ops) = session::end_step(view, &paths, &id)?;
        Ok(((), ops))
    };
    let core = bench.kv.core().unwrap();
    core.transact(Meta::default(), true, step).await.unwrap();
    drop(core);
    let held = |bench: &Bench| {
        let pairs = bench.kv.list("large/").unwrap();
        pairs.iter().filter(|pair| pair.session.is_some()).count()
    };
    let left = held(&bench);
    assert!((1..5).contains(&left), "{left}");
    assert!(bench.kv.sessions().get(&session).unwrap().is_none());
    let lock = bench.kv.lock(Meta::default(), "k", bytes(""), 0, &session);
    assert!(lock.await.is_err(), "it takes nothing any more");
    let newest = bench
        .kv
        .list("large/")
        .unwrap()
        .iter()
        .map(|pair| pair.modified)
        .max();
    bench.reopen().await;
    timeout(LONG, async {
        let mut index = newest.unwrap();
        while held(&bench) > 0 {
            index = bench.kv.wait_under("large/", index).await.unwrap();
        }
    })
    .await
    .unwrap();
    assert!(bench.head() >= before + 2);
}

#[tokio::test]
async fn watches_by_the_thousand_hear_of_their_own() {
    let bench = bench().await;
    let mut tasks = JoinSet::new();
    let (ready, mut set_up) = tokio::sync::mpsc::channel(1);
    for n in 0..1000 {
        bench.put(&format!("w/{n:03}"), "0").await;
    }
    for n in 0..3000 {
        let mut watch = match n % 3 {
            0 => bench.kv.watch(&format!("w/{:03}", n / 3), 0),
            1 => bench.kv.watch_under(&format!("w/{:03}", n / 3), 0),
            _ => bench.kv.watch_under("w/", 0),
        };
        let ready = ready.clone();
        tasks.spawn(async move {
            let (pairs, index) = watch.next().await.unwrap();
            assert!(!pairs.is_empty());
            ready.send(()).await.unwrap();
            drop(ready);
            let (_, changed) = watch.next().await.unwrap();
            assert!(changed > index);
            n
        });
    }
    drop(ready);
    while set_up.recv().await.is_some() {}
    bench.put("w/999", "1").await;
    timeout(LONG, async {
        // Its own, the prefix of it, and all that watch the whole.
        for _ in 0..1002 {
            let n = tasks.join_next().await.unwrap().unwrap();
            assert!(n % 3 == 2 || n / 3 == 999, "{n}");
        }
    })
    .await
    .unwrap();
    assert_eq!(tasks.len(), 1998);
    bench.vault.seal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_to_be_read() {
    let bench = bench().await;
    bench.put("k", "").await;
    let (kv, ledger) = (bench.kv.clone(), bench.vault.ledger());
    let reader = tokio::task::spawn_blocking(move || {
        let mut looks = 0_u32;
        while kv.get("over").unwrap().is_none() {
            let published = ledger.published().unwrap().index;
            let seen = kv.changed_under("").unwrap();
            assert!(seen >= published, "{published} is published, {seen} read");
            looks += 1;
        }
        looks
    });
    for n in 0..2000 {
        bench.put("k", &n.to_string()).await;
    }
    bench.put("over", "").await;
    assert!(reader.await.unwrap() > 100);
}

#[tokio::test]
async fn a_watch_goes_on_from_any_index() {
    let bench = bench().await;
    bench.put("k", "1").await;
    let first = bench.pair("k").unwrap().modified;
    bench.put("k", "2").await;
    let (pairs, index) = bench.kv.watch("k", first).next().await.unwrap();
    assert_eq!((&pairs[0].value[..], index), (&b"2"[..], first + 1));
    let mut watch = bench.kv.watch_under("", index);
    let gone = bench.kv.delete(Meta::default(), "k", None);
    assert!(gone.await.unwrap());
    let (pairs, index) = watch.next().await.unwrap();
    assert_eq!((pairs.len(), index), (0, first + 2));
    let waiting = tokio::spawn(async move { watch.next().await.err() });
    tokio::task::yield_now().await;
    bench.vault.seal();
    assert!(matches!(waiting.await.unwrap(), Some(Error::Sealed)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_its_model(steps in proptest::collection::vec(model::step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = bench().await;
            let mut model = model::Model::default();
            for step in steps {
                model::run(&bench, &mut model, step).await;
            }
        });
    }
}
