use std::sync::Arc;

use super::*;
use crate::{
    barrier::{Barrier, Randomness},
    store::{Store, memory::MemoryStore},
};

struct Keys {
    store: Arc<MemoryStore>,
    root: SecretKey,
    clock: Clock,
    rotation: Rotation,
}

async fn keys() -> Keys {
    let store = Arc::new(MemoryStore::new());
    let (barrier, wrapped) = Barrier::create(SecretKey::new([7; 32]));
    let core = Core::start(Arc::clone(&store) as Arc<dyn Store>, barrier, 1).unwrap();
    let db = Db::new(core);
    let mut batch = Batch::new(&By::system("test"), "init");
    batch.control(seal::KEYRING, wrapped);
    Rotation::initialise(&mut batch).unwrap();
    db.commit(batch).await.unwrap();
    let clock = Clock::default();
    Keys {
        store,
        root: SecretKey::new([7; 32]),
        rotation: Rotation::load(db, clock.clone()).unwrap(),
        clock,
    }
}

impl Keys {
    fn stored(&self) -> Barrier {
        let keyring = self.store.control(&FoldKey::control(seal::KEYRING));
        let keyring = keyring.unwrap().unwrap().value;
        let root = SecretKey::new(*self.root.bytes());
        Barrier::open_keyring(root, &keyring).unwrap()
    }
}

#[tokio::test]
async fn after_a_rotation_the_stored_keyring_opens_old_and_new() {
    let keys = keys().await;
    let (db, by) = (&keys.rotation.db, By::system("test"));
    let put = async |path: &str| {
        let mut batch = Batch::new(&by, "put");
        batch.put(path, &path).unwrap();
        db.commit(batch).await.unwrap();
    };
    put("before").await;
    assert_eq!(keys.rotation.rotate(&by).await.unwrap(), 2);
    put("after").await;
    let term_of = |path: &str| {
        let key = db.core().barrier().unwrap().fold_key(path);
        keys.store.get(&key).unwrap().unwrap().value[4]
    };
    assert_eq!((term_of("before"), term_of("after")), (1, 2));
    let stored = keys.stored();
    assert_eq!(stored.term(), 2);
    for path in ["before", "after"] {
        let record = keys.store.get(&stored.fold_key(path)).unwrap().unwrap();
        assert!(stored.open(path.as_bytes(), record.value).is_ok());
    }
}

#[tokio::test]
async fn the_keyring_rotates_itself_by_age_and_by_count() {
    let keys = keys().await;
    let rotation = &keys.rotation;
    let by = By::system("test");
    let term = async || rotation.status().await.unwrap().term;
    keys.clock.advance(1_000_000);
    rotation.look().await.unwrap();
    assert_eq!(
        term().await,
        1,
        "age does not matter unless it is configured"
    );

    let mut config = RotationConfig {
        interval: MIN_INTERVAL,
        ..RotationConfig::default()
    };
    rotation.configure(&by, config).await.unwrap();
    rotation.look().await.unwrap();
    assert_eq!(term().await, 2);
    let status = rotation.status().await.unwrap();
    assert_eq!(status.installed, keys.clock.unix());
    rotation.look().await.unwrap();
    assert_eq!(term().await, 2, "the new term is young");

    config.interval = 0;
    config.max_operations = MIN_OPERATIONS;
    rotation.configure(&by, config).await.unwrap();
    let barrier = rotation.core().barrier().unwrap();
    for _ in 0..MIN_OPERATIONS {
        barrier.seal(&mut Randomness::of(0), b"p", b"v", &mut Vec::new());
    }
    rotation.look().await.unwrap();
    assert_eq!(term().await, 3);
    assert!(rotation.status().await.unwrap().encryptions < 10);

    config.enabled = false;
    config.interval = MIN_INTERVAL;
    rotation.configure(&by, config).await.unwrap();
    keys.clock.advance(1_000_000);
    rotation.look().await.unwrap();
    assert_eq!(term().await, 3, "switched off");
    keys.clock.advance(-10_000_000);
    rotation.look().await.unwrap();
    assert_eq!(term().await, 3, "a clock set back rotates nothing");
}

#[tokio::test]
async fn the_count_of_sealed_records_survives_a_clean_seal() {
    let keys = keys().await;
    let rotation = &keys.rotation;
    let barrier = rotation.core().barrier().unwrap();
    for _ in 0..100 {
        barrier.seal(&mut Randomness::of(0), b"p", b"v", &mut Vec::new());
    }
    let before = rotation.status().await.unwrap().encryptions;
    assert!(before >= 100, "{before}");
    rotation.close().await.unwrap();
    let head = keys.store.head().index;
    rotation.close().await.unwrap();
    assert_eq!(keys.store.head().index, head, "nothing new to save");

    let stored = keys.stored();
    let core = Core::start(Arc::clone(&keys.store) as Arc<dyn Store>, stored, 2).unwrap();
    let again = Rotation::load(Db::new(core), Clock::default()).unwrap();
    assert_eq!(again.status().await.unwrap().encryptions, before);
}

#[tokio::test]
async fn numbers_out_of_bounds_are_refused() {
    let keys = keys().await;
    let by = By::system("test");
    let config = RotationConfig::default();
    for wrong in [
        RotationConfig {
            max_operations: MIN_OPERATIONS - 1,
            ..config
        },
        RotationConfig {
            max_operations: MAX_OPERATIONS + 1,
            ..config
        },
        RotationConfig {
            interval: MIN_INTERVAL - 1,
            ..config
        },
    ] {
        assert!(keys.rotation.configure(&by, wrong).await.is_err());
    }
    assert_eq!(keys.rotation.config().await, config);
}
