use super::*;

#[test]
fn fingerprints_are_written_as_consul_writes_them() {
    assert_eq!(colon_hex(&[0xa1, 0x0b, 0]), "a1:0b:00");
}

#[test]
fn an_index_never_goes_back() {
    assert_eq!(stamp(u64::MAX - 1), u64::MAX);
    assert!(stamp(0) > 1_700_000_000_000_000);
}
