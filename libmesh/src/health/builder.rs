//! Making a check step by step; what is wrong comes out at the end, as one error that names the field.

use std::sync::Arc;
use std::time::Duration;

use super::check::Check;
use super::probe::{GrpcProbe, H2PingProbe, HttpProbe, Probe, SystemdProbe, TcpProbe, UdpProbe};
use super::thresholds::Thresholds;
use crate::model::{Health, InstanceId, InvalidField};

/// Between two looks, unless told otherwise (as in most of Consul's examples).
const INTERVAL: Duration = Duration::from_secs(10);

type Change = Box<dyn FnOnce(&mut Check) + Send>;

/// Makes a [`Check`] that looks: see [`Check::http`] and its neighbours.
///
/// ```
/// use std::time::Duration;
///
/// use libmesh::health::Check;
///
/// # fn main() -> Result<(), libmesh::model::InvalidField> {
/// let check = Check::http("http://127.0.0.1:8080/health")
///     .of("web-1".parse()?)
///     .every(Duration::from_secs(5))
///     .within(Duration::from_secs(1))
///     .failures_before_critical(3)
///     .build()?;
/// assert_eq!(&*check.id, "web-1:http");
/// # Ok(())
/// # }
/// ```
#[must_use = "`build` makes the check"]
pub struct CheckBuilder {
    probe: Result<Arc<dyn Probe>, InvalidField>,
    id: Option<Arc<str>>,
    instance: Option<InstanceId>,
    interval: Duration,
    /// What else is to be set, in the order given.
    changes: Vec<Change>,
}

impl Check {
    /// Asks over HTTP or HTTPS, every ten seconds unless told otherwise; see [`HttpProbe`] for what counts as what.
    pub fn http(url: &str) -> CheckBuilder {
        CheckBuilder::new(HttpProbe::new(url))
    }

    /// Connects to `host:port`.
    pub fn tcp(address: &str) -> CheckBuilder {
        CheckBuilder::new(TcpProbe::new(address))
    }

    /// Sends a datagram to `host:port`.
    pub fn udp(address: &str) -> CheckBuilder {
        CheckBuilder::new(UdpProbe::new(address))
    }

    /// Asks by the gRPC health protocol: `host:port` or `host:port/service`.
    pub fn grpc(target: &str) -> CheckBuilder {
        CheckBuilder::new(GrpcProbe::new(target))
    }

    /// Pings over HTTP/2 at `host:port`.
    pub fn h2ping(address: &str) -> CheckBuilder {
        CheckBuilder::new(H2PingProbe::new(address))
    }

    /// Asks systemd about a unit.
    pub fn systemd(unit: &str) -> CheckBuilder {
        CheckBuilder::new(SystemdProbe::new(unit))
    }
}

impl CheckBuilder {
    fn new<P: Probe + 'static>(probe: Result<P, InvalidField>) -> Self {
        Self {
            probe: probe.map(|probe| Arc::new(probe) as Arc<dyn Probe>),
            id: None,
            instance: None,
            interval: INTERVAL,
            changes: Vec::new(),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Check) + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Its id, unique on this node. Default: the instance's id and the kind, `web-1:http`; of the node: the kind.
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The instance that it speaks for. Default: the whole node.
    pub fn of(mut self, instance: InstanceId) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Between two looks; 100 ms at least. Default 10 s.
    pub fn every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// For one look; what takes longer is a failure. Default 10 s.
    pub fn within(self, patience: Duration) -> Self {
        self.with(move |check| *check = check.clone().within(patience))
    }

    /// Its name, for people. Default: its id.
    pub fn name(self, name: &str) -> Self {
        let name = Arc::from(name);
        self.with(|check| check.name = name)
    }

    /// More for people.
    pub fn notes(self, notes: &str) -> Self {
        let notes = Arc::from(notes);
        self.with(|check| check.notes = notes)
    }

    /// Its status until the first look. Default: what a check with its id said last, else critical.
    pub fn initially(self, status: Health) -> Self {
        self.with(move |check| check.initial = Some(status))
    }

    /// How many results in a row it takes.
    pub fn thresholds(self, thresholds: Thresholds) -> Self {
        self.with(move |check| check.thresholds = thresholds)
    }

    /// How many good results in a row before it passes.
    pub fn success_before_passing(self, count: u32) -> Self {
        self.with(move |check| check.thresholds.success_before_passing = count)
    }

    /// How many failures in a row before it is critical.
    pub fn failures_before_critical(self, count: u32) -> Self {
        self.with(move |check| check.thresholds.failures_before_critical = count)
    }

    /// Deregisters the instance when it was critical for so long. Default: never.
    pub fn deregister_after(self, time: Duration) -> Self {
        self.with(move |check| check.deregister_after = Some(time))
    }

    /// The check.
    ///
    /// # Errors
    /// [`InvalidField`] for the address or URL (`http`, `tcp`, …), the `interval` or the `timeout`.
    pub fn build(self) -> Result<Check, InvalidField> {
        let probe = self.probe?;
        let kind = probe.kind();
        let id = self.id.unwrap_or_else(|| match &self.instance {
            Some(instance) => format!("{instance}:{kind}").into(),
            None => kind.into(),
        });
        let mut check = Check::looking(&id, self.interval, probe);
        check.instance = self.instance;
        for change in self.changes {
            change(&mut check);
        }
        check.validate()?;
        Ok(check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::How;

    #[test]
    fn a_check_is_made_step_by_step() {
        let check = Check::http("http://127.0.0.1:80/")
            .of("web-1".parse().unwrap())
            .every(Duration::from_secs(5))
            .within(Duration::from_secs(1))
            .name("Front page")
            .notes("asks for /")
            .initially(Health::Passing)
            .success_before_passing(2)
            .failures_before_critical(3)
            .deregister_after(Duration::from_secs(600))
            .build()
            .unwrap();
        assert_eq!(
            (&*check.id, &*check.name, &*check.notes),
            ("web-1:http", "Front page", "asks for /")
        );
        assert_eq!(check.instance.as_ref().unwrap(), "web-1");
        assert_eq!(check.initial, Some(Health::Passing));
        assert_eq!(
            (
                check.thresholds.success_before_passing,
                check.thresholds.failures_before_critical
            ),
            (2, 3)
        );
        assert_eq!(check.deregister_after, Some(Duration::from_secs(600)));
        let How::Every {
            interval, timeout, ..
        } = check.how
        else {
            panic!("it looks");
        };
        assert_eq!((interval.as_secs(), timeout.as_secs()), (5, 1));
    }

    #[test]
    fn each_kind_has_its_id_and_its_own_error() {
        let ids = [
            Check::tcp("127.0.0.1:1"),
            Check::udp("127.0.0.1:1"),
            Check::h2ping("127.0.0.1:1"),
            Check::grpc("127.0.0.1:1"),
            Check::systemd("ssh.service"),
        ]
        .map(|builder| builder.build().unwrap().id);
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), 5, "{ids:?}");
        assert_eq!(
            &*Check::tcp("127.0.0.1:1").id("mine").build().unwrap().id,
            "mine"
        );

        let field = |builder: CheckBuilder| builder.build().err().unwrap().field;
        assert_eq!(field(Check::http("nowhere")), "http");
        assert_eq!(field(Check::tcp("nowhere").every(Duration::ZERO)), "tcp");
        assert_eq!(
            field(Check::tcp("127.0.0.1:1").every(Duration::ZERO)),
            "interval"
        );
        assert_eq!(
            field(Check::tcp("127.0.0.1:1").within(Duration::ZERO)),
            "timeout"
        );
    }
}
