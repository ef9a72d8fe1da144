//! Which attachments are alive. A pure state machine: time is an input.
//!
//! A sidecar repeats its attachment; one that has not been heard of for a lease's length is gone, and what it published
//! must go too. After a restart a sidecar comes back under another holder's name: it may take over when it
//! listens where the old one did, since two processes cannot.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use libmesh::model::{InstanceId, ServiceName};
use tokio::time::Instant;

use super::wire::AttachRequest;

/// One attached sidecar.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The service that the caller proved to be.
    pub service: ServiceName,
    /// What it asked for last.
    pub request: AttachRequest,
    /// The instance was there before the attachment and stays after it.
    pub adopted: bool,
    until: Instant,
}

/// Why an attachment is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// Another process holds the instance.
    #[error(
        "instance {instance} is attached by another sidecar{}: stop that one, or give this one a name of its own \
         (`mesh sidecar --instance NAME`)",
        port.map(|p| format!(" (mesh port {p})")).unwrap_or_default()
    )]
    Held {
        /// The instance.
        instance: InstanceId,
        /// Where the holder listens.
        port: Option<u16>,
    },
    /// The instance belongs to another service.
    #[error("instance {instance} belongs to service {service}")]
    OtherService {
        /// The instance.
        instance: InstanceId,
        /// Whose it is.
        service: ServiceName,
    },
}

/// What a repeated attachment means for the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// Not seen before: register it.
    New,
    /// Known, but it says something else than last time: register it again.
    Changed,
    /// A heartbeat.
    Same,
}

/// All attachments of an agent.
#[derive(Debug)]
pub struct Leases {
    length: Duration,
    by_instance: HashMap<InstanceId, Attachment>,
}

impl Leases {
    /// None yet; each lives for `length` without being repeated.
    pub fn new(length: Duration) -> Self {
        Self {
            length,
            by_instance: HashMap::new(),
        }
    }

    /// Grants or prolongs an attachment.
    ///
    /// # Errors
    /// [`Busy`] when a living attachment of somebody else is in the way.
    pub fn attach(
        &mut self,
        now: Instant,
        instance: InstanceId,
        service: ServiceName,
        request: AttachRequest,
    ) -> Result<Granted, Busy> {
        let until = now + self.length;
        let Some(held) = self.by_instance.get_mut(&instance) else {
            let fresh = Attachment {
                service,
                request,
                adopted: false,
                until,
            };
            self.by_instance.insert(instance, fresh);
            return Ok(Granted::New);
        };
        if held.service != service {
            return Err(Busy::OtherService {
                instance,
                service: held.service.clone(),
            });
        }
        let place = |r: &AttachRequest| (r.address, r.mesh_port);
        let takes_over = request.mesh_port.is_some() && place(&held.request) == place(&request);
        if held.request.holder != request.holder && !takes_over && held.until > now {
            return Err(Busy::Held {
                instance,
                port: held.request.mesh_port,
            });
        }
        let same = AttachRequest {
            holder: Arc::clone(&held.request.holder),
            ..request.clone()
        };
        let granted = if same == held.request {
            Granted::Same
        } else {
            Granted::Changed
        };
        (held.request, held.until) = (request, until);
        Ok(granted)
    }

    /// Notes that the instance was registered by somebody else and outlives the attachment.
    pub fn adopt(&mut self, instance: &InstanceId) {
        if let Some(attachment) = self.by_instance.get_mut(instance) {
            attachment.adopted = true;
        }
    }

    /// Ends the attachment of `holder`, if it is the one that counts.
    pub fn detach(&mut self, instance: &InstanceId, holder: &str) -> Option<Attachment> {
        let held = self.by_instance.get(instance)?;
        if *held.request.holder == *holder {
            self.by_instance.remove(instance)
        } else {
            None
        }
    }

    /// The attachment of an instance.
    pub fn get(&self, instance: &InstanceId) -> Option<&Attachment> {
        self.by_instance.get(instance)
    }

    /// Takes out what has not been repeated in time.
    pub fn expire(&mut self, now: Instant) -> Vec<(InstanceId, Attachment)> {
        self.by_instance
            .extract_if(|_, attachment| attachment.until <= now)
            .collect()
    }

    /// When to call [`Leases::expire`] next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.by_instance
            .values()
            .map(|attachment| attachment.until)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::LEASE;
    use super::*;

    fn request(holder: &str, mesh_port: Option<u16>) -> AttachRequest {
        AttachRequest {
            service: "web".into(),
            instance: None,
            holder: holder.into(),
            port: 80,
            mesh_port,
            address: None,
            tags: Vec::new(),
            meta: Default::default(),
            version: None,
            checks: Vec::new(),
        }
    }

    struct Desk {
        leases: Leases,
        now: Instant,
    }

    impl Desk {
        fn new() -> Self {
            Self {
                leases: Leases::new(LEASE),
                now: Instant::now(),
            }
        }

        fn ask(&mut self, service: &str, request: AttachRequest) -> Result<Granted, Busy> {
            let service = ServiceName::parse(service).unwrap();
            self.leases.attach(self.now, id(), service, request)
        }

        fn pass(&mut self, time: Duration) -> usize {
            self.now += time;
            self.leases.expire(self.now).len()
        }
    }

    fn id() -> InstanceId {
        InstanceId::parse("web").unwrap()
    }

    #[test]
    fn heartbeats_keep_it_and_silence_ends_it() {
        let mut desk = Desk::new();
        assert_eq!(desk.ask("web", request("a", Some(1))), Ok(Granted::New));
        for _ in 0..5 {
            assert_eq!(desk.pass(LEASE - Duration::from_secs(1)), 0);
            assert_eq!(desk.ask("web", request("a", Some(1))), Ok(Granted::Same));
        }
        assert_eq!(desk.leases.next_expiry(), Some(desk.now + LEASE));
        assert_eq!(desk.pass(LEASE), 1);
        assert_eq!(desk.leases.next_expiry(), None);
    }

    #[test]
    fn a_change_is_told_from_a_heartbeat() {
        let mut desk = Desk::new();
        desk.ask("web", request("a", Some(1))).unwrap();
        assert_eq!(desk.ask("web", request("a", Some(2))), Ok(Granted::Changed));
        assert_eq!(desk.ask("web", request("a", Some(2))), Ok(Granted::Same));
    }

    #[test]
    fn a_second_sidecar_waits_unless_it_stands_where_the_first_did() {
        let mut desk = Desk::new();
        desk.ask("web", request("a", Some(1))).unwrap();
        let held = Busy::Held {
            instance: id(),
            port: Some(1),
        };
        assert_eq!(desk.ask("web", request("b", Some(2))), Err(held));
        assert_eq!(desk.ask("web", request("b", Some(1))), Ok(Granted::Same));
        assert!(
            desk.leases.detach(&id(), "a").is_none(),
            "the first one has no say any more"
        );
        assert!(desk.leases.detach(&id(), "b").is_some());
    }

    #[test]
    fn callers_without_a_port_do_not_replace_each_other() {
        let mut desk = Desk::new();
        desk.ask("web", request("a", None)).unwrap();
        assert!(desk.ask("web", request("b", None)).is_err());
    }

    #[test]
    fn an_instance_does_not_change_its_service() {
        let mut desk = Desk::new();
        desk.ask("web", request("a", Some(1))).unwrap();
        assert!(matches!(
            desk.ask("db", request("a", Some(1))),
            Err(Busy::OtherService { .. })
        ));
    }
}
