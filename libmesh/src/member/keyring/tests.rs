use proptest::prelude::*;

use super::*;

const LABEL: &[u8] = b"dc1.test";

fn pair() -> (Keyring, Sealer, Opener) {
    let keyring = Keyring::generate().unwrap();
    let sealer = Sealer::new(keyring.clone(), LABEL).unwrap();
    let opener = Opener::new(keyring.clone(), LABEL);
    (keyring, sealer, opener)
}

fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    sealer.seal(payload, &mut datagram).unwrap();
    datagram
}

#[test]
fn a_sealed_datagram_opens_once() {
    let (_, mut sealer, mut opener) = pair();
    let mut datagram = seal(&mut sealer, b"hello");
    assert_eq!(datagram.len(), 5 + OVERHEAD);
    assert!(
        !datagram.windows(5).any(|part| part == b"hello"),
        "the payload is visible"
    );
    assert_eq!(opener.open(&mut datagram.clone()), Ok(&b"hello"[..]));
    assert_eq!(opener.open(&mut datagram), Err(OpenError::Replayed));
}

#[test]
fn reordered_datagrams_open_and_too_old_ones_do_not() {
    let (_, mut sealer, mut opener) = pair();
    let mut datagrams: Vec<_> = (0u8..200).map(|n| seal(&mut sealer, &[n])).collect();
    assert!(opener.open(&mut datagrams[199]).is_ok());
    assert!(
        opener.open(&mut datagrams[72]).is_ok(),
        "127 behind the newest is inside the window"
    );
    assert_eq!(
        opener.open(&mut datagrams[71]),
        Err(OpenError::Replayed),
        "128 behind is outside"
    );
    assert!(opener.open(&mut datagrams[100]).is_ok());
}

#[test]
fn each_sender_has_its_own_window() {
    let (keyring, mut first, mut opener) = pair();
    let mut second = Sealer::new(keyring, LABEL).unwrap();
    for _ in 0..200 {
        assert!(opener.open(&mut seal(&mut first, b"x")).is_ok());
    }
    assert!(
        opener.open(&mut seal(&mut second, b"x")).is_ok(),
        "a fresh sender starts at 1 again"
    );
}

#[test]
fn a_spent_counter_takes_a_new_salt() {
    let (_, mut sealer, mut opener) = pair();
    sealer.counter = u32::MAX - 1;
    let mut last = seal(&mut sealer, b"last");
    let mut next = seal(&mut sealer, b"next");
    assert_ne!(last[5..13], next[5..13], "a nonce would repeat");
    assert!(opener.open(&mut last).is_ok());
    assert!(opener.open(&mut next).is_ok());
}

#[test]
fn another_label_another_key_and_altered_bytes_do_not_open() {
    let (keyring, mut sealer, mut opener) = pair();
    let mut datagram = seal(&mut sealer, b"hello");
    for at in 0..datagram.len() {
        let mut altered = datagram.clone();
        altered[at] ^= 1;
        assert!(
            opener.open(&mut altered).is_err(),
            "byte {at} is not protected"
        );
    }
    assert_eq!(
        Opener::new(keyring, b"dc2").open(&mut datagram.clone()),
        Err(OpenError::NotAuthentic)
    );
    let (_, _, mut foreign) = pair();
    assert!(matches!(
        foreign.open(&mut datagram.clone()),
        Err(OpenError::UnknownKey(_))
    ));
    assert!(
        opener.open(&mut datagram).is_ok(),
        "failures must not close the window"
    );
}

#[test]
fn sizes_are_bounded_on_both_sides() {
    let (_, mut sealer, mut opener) = pair();
    let most = MAX_DATAGRAM - OVERHEAD;
    assert!(opener.open(&mut seal(&mut sealer, &vec![7; most])).is_ok());
    assert_eq!(
        sealer.seal(&vec![7; most + 1], &mut Vec::new()),
        Err(KeyringError::TooLarge(most + 1))
    );
    assert_eq!(
        opener.open(&mut vec![VERSION; MAX_DATAGRAM + 1]),
        Err(OpenError::Oversized)
    );
    assert_eq!(
        opener.open(&mut [VERSION; OVERHEAD - 1]),
        Err(OpenError::Malformed)
    );
}

#[test]
fn a_key_is_rotated_by_install_use_remove() {
    let (keyring, mut sealer, mut opener) = pair();
    let old = keyring.ids()[0];
    let mut before = seal(&mut sealer, b"before");
    let mut removed = seal(&mut sealer, b"removed");
    let new = keyring.install(&Keyring::new_key().unwrap()).unwrap();
    assert_eq!(keyring.ids(), [old, new]);
    assert_eq!(keyring.remove(old), Err(KeyringError::InUse(old)));
    keyring.use_key(new).unwrap();
    assert_eq!(keyring.ids(), [new, old]);
    assert!(
        opener.open(&mut before).is_ok(),
        "the old key opens until it is removed"
    );
    assert!(opener.open(&mut seal(&mut sealer, b"after")).is_ok());
    keyring.remove(old).unwrap();
    assert_eq!(opener.open(&mut removed), Err(OpenError::UnknownKey(old)));
    assert_eq!(keyring.use_key(old), Err(KeyringError::Unknown(old)));
}

#[test]
fn a_keyring_is_bounded_and_survives_its_bytes() {
    let (keyring, mut sealer, _) = pair();
    while keyring.ids().len() < MAX_KEYS {
        keyring.install(&Keyring::new_key().unwrap()).unwrap();
    }
    assert_eq!(
        keyring.install(&Keyring::new_key().unwrap()),
        Err(KeyringError::Full)
    );
    let bytes = keyring.to_bytes();
    let restored = Keyring::from_bytes(&bytes).unwrap();
    assert_eq!(restored.ids(), keyring.ids());
    assert!(
        Opener::new(restored, LABEL)
            .open(&mut seal(&mut sealer, b"x"))
            .is_ok()
    );
    assert!(Keyring::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    assert!(Keyring::from_bytes(&[]).is_err());
    let twice = [&bytes[..2 + KEY_LEN], &bytes[2..2 + KEY_LEN]].concat();
    let twice = [&[FILE_VERSION, 2], &twice[2..]].concat();
    assert_eq!(
        Keyring::from_bytes(&twice).unwrap_err(),
        KeyringError::Malformed("a key is in it twice")
    );
}

#[test]
fn debug_shows_names_not_keys() {
    let (keyring, _, _) = pair();
    assert_eq!(format!("{keyring:?}"), format!("[{}]", keyring.ids()[0]));
}

#[test]
fn the_number_of_windows_is_bounded() {
    let (_, _, mut opener) = pair();
    for sender in 0..MAX_WINDOWS as u64 + 10 {
        opener.window(sender.to_be_bytes());
    }
    assert_eq!(opener.windows.len(), MAX_WINDOWS);
    assert!(
        !opener.windows.contains_key(&0u64.to_be_bytes()),
        "the oldest goes first"
    );
}

proptest! {
    #[test]
    fn any_payload_round_trips(payload in proptest::collection::vec(any::<u8>(), 0..MAX_DATAGRAM - OVERHEAD)) {
        let (_, mut sealer, mut opener) = pair();
        let mut datagram = seal(&mut sealer, &payload);
        prop_assert_eq!(opener.open(&mut datagram), Ok(&payload[..]));
    }

    #[test]
    fn garbage_never_opens(mut garbage in proptest::collection::vec(any::<u8>(), 0..1500)) {
        let (_, _, mut opener) = pair();
        prop_assert!(opener.open(&mut garbage).is_err());
    }

    #[test]
    fn the_window_accepts_each_counter_at_most_once(counters in proptest::collection::vec(1u32..300, 0..400)) {
        let mut window = Window::default();
        let mut accepted = std::collections::HashSet::new();
        for counter in counters {
            if window.accept(counter) {
                prop_assert!(accepted.insert(counter), "{} twice", counter);
            }
        }
    }
}

#[test]
fn key_ids_are_shown_and_read() {
    let id = Keyring::generate().unwrap().ids()[0];
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(KeyId::from_bytes(id.to_bytes()), id);
    for text in ["", "1234567", "123456789", "+1234567", "x2345678"] {
        assert_eq!(text.parse::<KeyId>(), Err(KeyringError::NoId), "{text}");
    }
}

#[test]
fn a_keyring_that_missed_a_rotation_adopts_another() {
    let (old, new) = (Keyring::generate().unwrap(), Keyring::generate().unwrap());
    let mut opener = Opener::new(old.clone(), b"mesh");
    let mut sealer = Sealer::new(new.clone(), b"mesh").unwrap();
    let mut sealed = Vec::new();
    sealer.seal(b"news", &mut sealed).unwrap();
    assert!(matches!(
        opener.open(&mut sealed.clone()),
        Err(OpenError::UnknownKey(_))
    ));
    assert_eq!(old.adopt(&new.to_bytes()), Ok(true));
    assert_eq!(opener.open(&mut sealed), Ok(&b"news"[..]));
    assert_eq!(old.adopt(&new.to_bytes()), Ok(false));
    assert!(old.adopt(b"\x01\x00").is_err());
    assert_eq!(old.ids(), new.ids(), "what is malformed changes nothing");
}
