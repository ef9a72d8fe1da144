//! How many connections one client may have open: an address, or a user of this host on a Unix socket.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
};

use parking_lot::Mutex;

use super::Remote;

/// Counts open connections by client, over all listeners that share it.
#[derive(Debug, Default)]
pub struct PerClient {
    most: Option<NonZeroUsize>,
    open: Mutex<HashMap<Client, usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    Address(IpAddr),
    User(u32),
}

/// A connection that counts, until it is dropped.
pub struct Counted(Option<(Arc<PerClient>, Client)>);

impl PerClient {
    /// At most so many; `None` for no limit.
    pub fn new(most: Option<NonZeroUsize>) -> Arc<PerClient> {
        Arc::new(PerClient {
            most,
            open: Mutex::default(),
        })
    }

    /// One more of this client's, unless it has as many as it may.
    pub fn count(self: &Arc<Self>, remote: &Remote) -> Option<Counted> {
        let Some(most) = self.most else {
            return Some(Counted(None));
        };
        let client = match remote {
            Remote::Tcp(addr) => Client::Address(addr.ip().to_canonical()),
            Remote::Unix { uid, .. } => Client::User(*uid),
        };
        let mut open = self.open.lock();
        let count = open.entry(client).or_default();
        (*count < most.get()).then(|| {
            *count += 1;
            Counted(Some((Arc::clone(self), client)))
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some((counts, client)) = self.0.take() else {
            return;
        };
        if let Entry::Occupied(mut count) = counts.open.lock().entry(client) {
            match *count.get() {
                ..=1 => drop(count.remove()),
                open => *count.get_mut() = open - 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_apart_and_forgotten() {
        let counts = PerClient::new(NonZeroUsize::new(2));
        let from = |ip: &str| Remote::Tcp((ip.parse::<IpAddr>().unwrap(), 1).into());
        let one = counts.count(&from("10.0.0.1")).unwrap();
        let two = counts.count(&from("::ffff:10.0.0.1")).unwrap();
        assert!(counts.count(&from("10.0.0.1")).is_none());
        let other = counts.count(&from("10.0.0.2")).unwrap();
        drop(one);
        let three = counts.count(&from("10.0.0.1")).unwrap();
        drop((two, three, other));
        assert!(counts.open.lock().is_empty());
        let unlimited = PerClient::new(None);
        let many: Vec<_> = (0..1000)
            .map(|_| unlimited.count(&from("10.0.0.1")))
            .collect();
        assert!(many.iter().all(Option::is_some));
    }
}
