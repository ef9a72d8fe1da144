//! `[[check]]` and `[[service.check]]`: what decides whether a node or a service is healthy.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use libmesh::{
    health::{Check, Thresholds},
    model::{Health, InstanceId, InvalidField, NodeName},
};

use super::{ExecChecks, reader::Reader};
use crate::checks::{self, CheckKind, HttpKind, Timing, TlsKind};

/// One `[[check]]` or `[[service.check]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckConfig {
    /// Unique on the node. Of a service: `service:<service id>` (and `:<n>` when there are several) unless set.
    pub id: Option<String>,
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub notes: String,
    /// What is done.
    pub kind: CheckKind,
    /// Time between runs. Default 10 s.
    pub interval: Duration,
    /// Time for a run. Default 10 s, at most the interval.
    pub timeout: Duration,
    /// Results in a row that it takes: by default one failure, two successes and five seconds.
    pub thresholds: Thresholds,
    /// Whether a check that changes its mind too often stays critical for a while. Default true.
    pub flap_damping: bool,
    /// When an instance that stays critical is deregistered. Default never.
    pub deregister_after: Option<Duration>,
    /// Status until the first result. Default critical.
    pub status: Option<Health>,
    /// Bytes of output kept. Default 4,096.
    pub output_max: Option<usize>,
}

/// The keys that say what a check does.
const KINDS: [&str; 10] = [
    "http",
    "tcp",
    "udp",
    "grpc",
    "h2ping",
    "exec",
    "systemd",
    "ttl",
    "alias_service",
    "alias_node",
];
/// Keys that only some kinds have.
const OF_KINDS: [(&str, &[&str]); 15] = [
    ("method", &["http"]),
    ("headers", &["http"]),
    ("body", &["http"]),
    ("follow_redirects", &["http"]),
    ("tls", &["tcp", "grpc", "h2ping"]),
    ("tls_server_name", &["http", "tcp", "grpc", "h2ping"]),
    ("tls_skip_verify", &["http", "tcp", "grpc", "h2ping"]),
    ("tls_ca_file", &["http", "tcp", "grpc", "h2ping"]),
    ("interval", LOOKING),
    ("timeout", LOOKING),
    ("success_before_passing", LOOKING),
    ("failures_before_warning", LOOKING),
    ("failures_before_critical", LOOKING),
    ("settle", LOOKING),
    ("flap_damping", LOOKING),
];
const LOOKING: &[&str] = &["http", "tcp", "udp", "grpc", "h2ping", "exec", "systemd"];

impl CheckConfig {
    pub(super) fn read(mut reader: Reader<'_>, exec: ExecChecks) -> Option<CheckConfig> {
        let place = reader.place().clone();
        let given = KINDS.iter().filter(|key| reader.has(key));
        let given: Vec<&str> = given.copied().collect();
        let one = matches!(given[..], [_] | ["alias_service", "alias_node"]);
        if !one {
            reader.report(
                &place,
                format!("a check needs exactly one of {}", quoted(&KINDS[..9])),
            );
        }
        for (key, kinds) in OF_KINDS {
            if one && reader.has(key) && !kinds.contains(&given[0]) {
                let of = quoted(kinds);
                reader.report(&place, format!("`{key}` is for checks with {of} only"));
            }
        }
        let id = reader.text("id");
        let name = reader.text("name");
        let notes = reader.text("notes").unwrap_or_default();
        let kind = read_kind(&mut reader);
        let interval = reader.duration("interval");
        let interval = interval.unwrap_or(Duration::from_secs(10));
        let timeout = reader
            .duration("timeout")
            .unwrap_or(Duration::from_secs(10));
        let mut threshold = |key| {
            let given = reader.integer(key, 1, 1000);
            given.and_then(|n| u32::try_from(n).ok())
        };
        let usual = Thresholds::default();
        let thresholds = Thresholds {
            success_before_passing: threshold("success_before_passing")
                .unwrap_or(usual.success_before_passing),
            failures_before_warning: threshold("failures_before_warning"),
            failures_before_critical: threshold("failures_before_critical")
                .unwrap_or(usual.failures_before_critical),
            settle: usual.settle,
        };
        let settle = reader.duration("settle");
        let thresholds = Thresholds {
            settle: settle.unwrap_or(thresholds.settle),
            ..thresholds
        };
        if thresholds.failures_before_warning > Some(thresholds.failures_before_critical) {
            reader.report(
                &place,
                "`failures_before_warning` can't be higher than `failures_before_critical`",
            );
        }
        let flap_damping = reader.flag("flap_damping").unwrap_or(true);
        let deregister_after = reader.duration("deregister_critical_service_after");
        let status = reader.parsed(
            "status",
            "\"passing\", \"warning\" or \"critical\"",
            |text| {
                Health::from_str(text)
                    .ok()
                    .filter(|status| *status != Health::Maintenance)
                    .ok_or("there is no such status")
            },
        );
        let output_max = reader.integer("output_max_size", 0, 1 << 20);
        let kind = match kind {
            Some(CheckKind::Exec { .. }) if exec == ExecChecks::Off => {
                reader.report(
                    &place,
                    "checks that run programs are off; set `health.exec_checks` to \"config\"",
                );
                None
            }
            kind => kind,
        };
        let output_max = output_max.and_then(|bytes| usize::try_from(bytes).ok());
        let config = kind.map(|kind| CheckConfig {
            id,
            name,
            notes,
            kind,
            interval,
            timeout: timeout.min(interval),
            thresholds,
            flap_damping,
            deregister_after,
            status,
            output_max,
        });
        let made = config.as_ref().map(|config| config.make(""));
        if let Some(Err(InvalidField { field, reason })) = made {
            let key = match field {
                "args" => "exec",
                "header" => "headers",
                field => field,
            };
            reader.report(&place, format!("`{}`: {reason}", reader.name(key)));
        }
        reader.finish();
        config
    }

    /// The check of the node that this describes.
    ///
    /// # Errors
    /// What is wrong with which field.
    pub fn make(&self, id: &str) -> Result<Check, InvalidField> {
        let timing = Timing {
            interval: self.interval,
            timeout: self.timeout,
        };
        let mut check = checks::make(id, &self.kind, timing, self.output_max)?;
        if let Some(name) = &self.name {
            check.name = name.as_str().into();
        }
        check.notes = self.notes.as_str().into();
        check.thresholds = self.thresholds;
        check.damping &= self.flap_damping;
        check.initial = self.status;
        check.deregister_after = self.deregister_after;
        check.validate()?;
        Ok(check)
    }
}

fn read_kind(reader: &mut Reader<'_>) -> Option<CheckKind> {
    let url = reader.text("http");
    let http = HttpKind {
        method: reader.text("method"),
        headers: one_value_each(reader.pairs("headers").unwrap_or_default()),
        body: reader.text("body").unwrap_or_default(),
        follow_redirects: reader.flag("follow_redirects").unwrap_or(true),
        tls: TlsKind {
            server_name: reader.text("tls_server_name"),
            skip_verify: reader.flag("tls_skip_verify").unwrap_or(false),
            ca_file: reader.path("tls_ca_file"),
        },
        ..HttpKind::get(String::new())
    };
    let over_tls = reader.flag("tls").unwrap_or(false);
    let tls = over_tls.then(|| http.tls.clone());
    let tcp = reader.text("tcp");
    let udp = reader.text("udp");
    let grpc = reader.text("grpc");
    let h2ping = reader.text("h2ping");
    let exec = reader.list("exec", "a string", |arg| Ok::<_, String>(arg.to_owned()));
    let systemd = reader.text("systemd");
    let ttl = reader.duration("ttl");
    let service = reader.parsed("alias_service", "an instance id", InstanceId::parse);
    let node = reader.parsed("alias_node", "a node name", NodeName::parse);
    let alias = service.is_some() || node.is_some();
    let kinds = [
        url.map(|url| CheckKind::Http(HttpKind { url, ..http })),
        tcp.map(|address| {
            let tls = tls.clone();
            CheckKind::Tcp { address, tls }
        }),
        udp.map(|address| CheckKind::Udp { address }),
        grpc.map(|target| {
            let tls = tls.clone();
            CheckKind::Grpc { target, tls }
        }),
        h2ping.map(|address| CheckKind::H2Ping { address, tls }),
        exec.map(|args| CheckKind::Exec { args }),
        systemd.map(|unit| CheckKind::Systemd { unit }),
        ttl.map(CheckKind::Ttl),
        alias.then_some(CheckKind::Alias { node, service }),
    ];
    kinds.into_iter().flatten().next()
}

fn one_value_each(pairs: BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let pairs = pairs.into_iter();
    pairs.map(|(name, value)| (name, vec![value])).collect()
}

fn quoted(keys: &[&str]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
    keys.join(", ")
}
