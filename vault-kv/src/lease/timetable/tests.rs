use super::*;

fn name(n: u8) -> Name {
    Name([n; 24])
}

fn table() -> (Timetable, Arc<Places>) {
    let places = Arc::new(Places::default());
    (Timetable::new(Arc::clone(&places)), places)
}

fn due(table: &Timetable, now: i64) -> Vec<u8> {
    let due = table.due(now, usize::MAX);
    due.iter().map(|due| due.name.0[0]).collect()
}

#[test]
fn what_is_put_in_ends_in_order_and_with_its_owner() {
    let (mut table, places) = table();
    places.limit([(String::new(), u64::MAX)].into_iter());
    let mut put = |n, at, owner: Option<&str>| {
        let first = table.insert("ssh/creds/a", name(n), Some(at), owner.as_ref(), false);
        first.unwrap()
    };
    assert!(put(1, 100, Some("ann")));
    assert!(!put(2, 200, Some("bob")));
    assert!(put(3, 50, None));
    assert!(!put(3, 150, None), "a new time");
    assert!(due(&table, 99).is_empty());
    assert_eq!(due(&table, 150), [1, 3]);
    assert_eq!(
        (table.next(), table.next_after(100)),
        (Some(100), Some(150))
    );
    let of = |table: &Timetable, owner: &str| table.of(&owner).len();
    assert_eq!(
        (of(&table, "ann"), of(&table, "bob"), of(&table, "eve")),
        (1, 1, 0)
    );
    assert_eq!(places.counted_at(""), 3);

    // Its time is struck, unless it has another one by then.
    let both = table.due(150, 2);
    table
        .insert(
            "ssh/creds/a",
            name(3),
            Some(500),
            None::<&str>.as_ref(),
            false,
        )
        .unwrap();
    both.iter().for_each(|due| table.strike(due));
    assert_eq!((table.len(), due(&table, 499)), (2, vec![2]));
    assert_eq!(of(&table, "ann"), 1);
    assert_eq!(places.counted_at(""), 3);

    for n in 1..=3 {
        table.remove("ssh/creds/b", name(n));
        assert!(table.contains("ssh/creds/a", name(n)));
        table.remove("ssh/creds/a", name(n));
        table.remove("ssh/creds/a", name(n));
        assert!(!table.contains("ssh/creds/a", name(n)));
    }
    assert_eq!((table.len(), places.counted_at("")), (0, 0));
    assert_eq!(of(&table, "ann"), 0);
}

#[test]
fn slots_are_used_again() {
    let (mut table, _) = table();
    for round in 0..3 {
        for n in 0..3000_u32 {
            let mut bytes = [0; 24];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            let path = format!("a/{}", n % 7);
            table
                .insert(
                    &path,
                    Name(bytes),
                    Some(i64::from(n) + round),
                    Some(&(n % 5)),
                    true,
                )
                .unwrap();
        }
        assert_eq!((table.len(), table.slots.len()), (3000, 3));
        assert_eq!(table.of(&3).len(), 600);
        for due in table.due(5000, usize::MAX) {
            table.remove(&due.path, due.name);
        }
        assert_eq!(
            (table.len(), table.by_name.len(), table.by_owner.len()),
            (0, 0, 0)
        );
    }
}

#[test]
fn times_that_do_not_fit_are_late_not_lost() {
    let (mut table, _) = table();
    for (n, at) in [(1, i64::MAX), (2, -5)] {
        table
            .insert("a", name(n), Some(at), Some(&0), true)
            .unwrap();
    }
    assert_eq!(due(&table, 1), [2]);
    assert_eq!(due(&table, i64::MAX), [2, 1]);
    table.insert("a", name(2), None, Some(&0), true).unwrap();
    assert_eq!(table.len(), 1);
}
