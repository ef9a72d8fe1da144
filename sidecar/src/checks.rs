//! From what was configured or registered to the checks that libmesh runs.
//!
//! The configuration files and the Consul-compatible interface say the same things in different words; both end here.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use libmesh::{
    health::{
        Alias, Check, ExecProbe, GrpcProbe, H2PingProbe, HttpProbe, Probe, ProbeTls, SystemdProbe,
        TcpProbe, UdpProbe,
    },
    model::{InstanceId, InvalidField, NodeName},
};

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    /// Ask over HTTP: 2xx passes, 429 warns, all else fails.
    Http(HttpKind),
    /// Connect.
    Tcp {
        /// `host:port`
        address: String,
        /// Over TLS.
        tls: Option<TlsKind>,
    },
    /// Send a datagram; a refusal fails.
    Udp {
        /// `host:port`
        address: String,
    },
    /// Ask by gRPC's health protocol.
    Grpc {
        /// `host:port` or `host:port/service`
        target: String,
        /// Over TLS.
        tls: Option<TlsKind>,
    },
    /// Send an HTTP/2 PING frame.
    H2Ping {
        /// `host:port`
        address: String,
        /// Over TLS.
        tls: Option<TlsKind>,
    },
    /// Run a program: 0 passes, 1 warns, all else fails.
    Exec {
        /// The program and its arguments; no shell.
        args: Vec<String>,
    },
    /// Ask systemd.
    Systemd {
        /// The unit.
        unit: String,
    },
    /// The service reports itself at least this often.
    Ttl(Duration),
    /// Follow the checks of another instance or node.
    Alias {
        /// The node; `None` = this one.
        node: Option<NodeName>,
        /// The instance; `None` = the node itself.
        service: Option<InstanceId>,
    },
}

/// What an HTTP check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpKind {
    /// The URL.
    pub url: String,
    /// Default GET.
    pub method: Option<String>,
    /// Further headers.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Sent with the question.
    pub body: String,
    /// Whether redirects are followed. Default true.
    pub follow_redirects: bool,
    /// For `https://` URLs.
    pub tls: TlsKind,
}

impl HttpKind {
    /// A GET of `url` with nothing else set.
    pub fn get(url: String) -> HttpKind {
        HttpKind {
            url,
            method: None,
            headers: BTreeMap::new(),
            body: String::new(),
            follow_redirects: true,
            tls: TlsKind::default(),
        }
    }
}

/// Whom a check trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsKind {
    /// The name to ask for, instead of the host's.
    pub server_name: Option<String>,
    /// Take every certificate.
    pub skip_verify: bool,
    /// PEM file with the authorities to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// A check of the node that does `kind`, with nothing else set.
///
/// # Errors
/// What is wrong with which field.
pub fn make(
    id: &str,
    kind: &CheckKind,
    timing: Timing,
    output_max: Option<usize>,
) -> Result<Check, InvalidField> {
    let probe: Arc<dyn Probe> = match kind {
        CheckKind::Ttl(ttl) => return Ok(Check::ttl(id, *ttl)),
        CheckKind::Alias { node, service } => {
            let (node, instance) = (node.clone(), service.clone());
            return Ok(Check::alias(id, Alias { node, instance }));
        }
        CheckKind::Http(http) => Arc::new(http_probe(http, output_max)?),
        CheckKind::Tcp { address, tls } => {
            let probe = TcpProbe::new(address)?;
            match tls {
                Some(tls) => Arc::new(probe.tls(probe_tls(tls)?)),
                None => Arc::new(probe),
            }
        }
        CheckKind::Udp { address } => {
            // Silence must have passed before the look is given up.
            let wait = (timing.timeout / 2).min(Duration::from_millis(500));
            Arc::new(UdpProbe::new(address)?.wait(wait))
        }
        CheckKind::Grpc { target, tls } => {
            let probe = GrpcProbe::new(target)?;
            match tls {
                Some(tls) => Arc::new(probe.tls(probe_tls(tls)?)),
                None => Arc::new(probe),
            }
        }
        CheckKind::H2Ping { address, tls } => {
            let probe = H2PingProbe::new(address)?;
            match tls {
                Some(tls) => Arc::new(probe.tls(probe_tls(tls)?)),
                None => Arc::new(probe),
            }
        }
        CheckKind::Exec { args } => {
            let probe = ExecProbe::new(args.clone())?;
            match output_max {
                Some(bytes) => Arc::new(probe.output_max(bytes)),
                None => Arc::new(probe),
            }
        }
        CheckKind::Systemd { unit } => Arc::new(SystemdProbe::new(unit)?),
    };
    let mut check = Check::looking(id, timing.interval, probe).within(timing.timeout);
    check.output_max = output_max.unwrap_or(check.output_max);
    Ok(check)
}

/// How often and how long a check looks.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two looks.
    pub interval: Duration,
    /// For one look.
    pub timeout: Duration,
}

fn http_probe(http: &HttpKind, output_max: Option<usize>) -> Result<HttpProbe, InvalidField> {
    let mut probe = HttpProbe::new(&http.url)?.tls(probe_tls(&http.tls)?);
    if let Some(method) = &http.method {
        probe = probe.method(method)?;
    }
    for (name, values) in &http.headers {
        for value in values {
            probe = probe.header(name, value)?;
        }
    }
    if !http.follow_redirects {
        probe = probe.without_redirects();
    }
    if let Some(bytes) = output_max {
        probe = probe.output_max(bytes);
    }
    Ok(probe.body(http.body.clone()))
}

fn probe_tls(tls: &TlsKind) -> Result<ProbeTls, InvalidField> {
    let mut made = ProbeTls::default();
    if let Some(name) = &tls.server_name {
        made = made.server_name(name)?;
    }
    if let Some(file) = &tls.ca_file {
        let failed = |reason| InvalidField::new("tls_ca_file", reason);
        let pem = fs::read(file);
        let pem = pem.map_err(|error| failed(format!("{}: {error}", file.display())))?;
        made = made
            .roots(&pem)
            .map_err(|error| failed(format!("{}: {}", file.display(), error.reason)))?;
    }
    Ok(match tls.skip_verify {
        true => made.skip_verify(),
        false => made,
    })
}
