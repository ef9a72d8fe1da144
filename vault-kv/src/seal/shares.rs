//! Shares of the unseal key, in the form that Vault gives them: 32 bytes of the polynomials' values and
//! the x coordinate last. With one share only, the share is the key itself.

use vsss_rs::Gf256;
use zeroize::{Zeroize, Zeroizing};

use crate::{barrier::SecretKey, sys::without_traces};

/// Bytes of one share of several.
pub(crate) const SHARE: usize = 33;

/// Splits `key` into `shares`, of which `threshold` rebuild it.
///
/// The numbers were checked: 1 ≤ threshold ≤ shares, and threshold > 1 when shares > 1.
pub(crate) fn split(key: &SecretKey, shares: u8, threshold: u8) -> Vec<Zeroizing<Vec<u8>>> {
    if shares == 1 {
        return vec![Zeroizing::new(key.bytes().to_vec())];
    }
    without_traces(|| {
        let split = Gf256::split_array(
            usize::from(threshold),
            usize::from(shares),
            key.bytes(),
            rand::rng(),
        );
        split
            .expect("the numbers of shares were checked")
            .into_iter()
            .map(|mut share| {
                share.rotate_left(1);
                Zeroizing::new(share)
            })
            .collect()
    })
}

/// The key behind `shares`. Wrong shares give a wrong key: only opening something with it tells.
pub(crate) fn combine(shares: &[Zeroizing<Vec<u8>>]) -> Option<SecretKey> {
    if let [only] = shares {
        return super::unseal_key(only);
    }
    if shares.iter().any(|share| share.len() != SHARE) {
        return None;
    }
    without_traces(|| {
        let mut turned: Vec<Vec<u8>> = shares
            .iter()
            .map(|share| {
                let mut share = share.to_vec();
                share.rotate_right(1);
                share
            })
            .collect();
        let key = Gf256::combine_array(&turned).ok().map(Zeroizing::new);
        turned.zeroize();
        super::unseal_key(&key?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_threshold_of_shares_rebuilds_the_key() {
        let key = SecretKey::new([42; 32]);
        let shares = split(&key, 5, 3);
        assert!(shares.iter().all(|share| share.len() == SHARE));
        for picked in [[0, 1, 2], [4, 2, 0], [1, 3, 4]] {
            let picked: Vec<_> = picked.iter().map(|at| shares[*at].clone()).collect();
            assert_eq!(combine(&picked).unwrap().bytes(), key.bytes());
        }
        let too_few: Vec<_> = shares[..2].to_vec();
        assert!(combine(&too_few).is_none_or(|wrong| wrong.bytes() != key.bytes()));
    }

    #[test]
    fn the_x_coordinate_is_last_and_never_zero() {
        let shares = split(&SecretKey::random(), 255, 255);
        let mut seen: Vec<u8> = shares.iter().map(|share| share[32]).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 255);
        assert_ne!(seen[0], 0);
    }

    #[test]
    fn shares_of_wrong_lengths_are_no_key() {
        let share = |length| Zeroizing::new(vec![1; length]);
        for lengths in [[0, 0], [0, SHARE], [SHARE, 32], [34, 34]] {
            assert!(combine(&lengths.map(share)).is_none(), "{lengths:?}");
        }
        assert!(combine(&[]).is_none());
    }

    #[test]
    fn one_share_is_the_key() {
        let key = SecretKey::new([7; 32]);
        let shares = split(&key, 1, 1);
        assert_eq!(&shares[0][..], key.bytes());
        assert_eq!(combine(&shares).unwrap().bytes(), key.bytes());
    }
}
