//! Consul's words in ours: what a document says, as the sections of a TOML file.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    config::tree::{Kind, Place, Problem, Table, Value},
    consul::decode::go_duration,
};

/// Keys that mean the same; a later line wins over an earlier one.
const SAME: &[(&str, &str, &str)] = &[
    ("node_name", "node", "name"),
    ("node_meta", "node", "meta"),
    ("datacenter", "node", "datacenter"),
    ("data_dir", "node", "data_dir"),
    ("ports.serf_lan", "ports", "gossip"),
    ("unix_sockets.mode", "addresses", "socket_mode"),
    ("unix_sockets.user", "addresses", "socket_user"),
    ("unix_sockets.group", "addresses", "socket_group"),
    ("recursors", "dns", "recursors"),
    ("dns_config.only_passing", "dns", "only_passing"),
    (
        "limits.http_max_conns_per_client",
        "limits",
        "http_max_conns_per_client",
    ),
    ("default_intention_policy", "intentions", "default"),
    ("acl.enabled", "acl", "enabled"),
    ("acl.default_policy", "acl", "default_policy"),
    ("acl.token_ttl", "acl", "token_ttl"),
];

/// The sections that the document asks for.
pub fn sections(
    document: Table,
    meaningless: &mut BTreeSet<String>,
    problems: &mut Vec<Problem>,
) -> Table {
    let mut from = Translation {
        document,
        sections: Table::default(),
        problems,
    };
    for (key, section, own) in SAME {
        if let Some(value) = from.take(key) {
            from.set(section, own, value);
        }
    }
    from.node();
    from.join();
    from.interfaces();
    from.tls(meaningless);
    from.dns();
    from.process();
    from.sections
}

struct Translation<'t> {
    document: Table,
    sections: Table,
    problems: &'t mut Vec<Problem>,
}

impl Translation<'_> {
    /// The value at a dotted path.
    fn take(&mut self, path: &str) -> Option<Value> {
        let mut table = &mut self.document;
        let mut rest = path;
        while let Some((outer, inner)) = rest.split_once('.') {
            match &mut table.0.get_mut(outer)?.1.kind {
                Kind::Table(inside) => table = inside,
                _ => return None,
            }
            rest = inner;
        }
        table.0.remove(rest).map(|(_, value)| value)
    }

    fn text(&mut self, path: &str) -> Option<(Place, String)> {
        let Value { place, kind } = self.take(path)?;
        match kind {
            Kind::Text(text) => Some((place, text)),
            _ => None,
        }
    }

    fn flag(&mut self, path: &str) -> Option<(Place, bool)> {
        let Value { place, kind } = self.take(path)?;
        match kind {
            Kind::Flag(flag) => Some((place, flag)),
            _ => None,
        }
    }

    fn integer(&mut self, path: &str) -> Option<(Place, i64)> {
        let Value { place, kind } = self.take(path)?;
        match kind {
            Kind::Integer(number) => Some((place, number)),
            _ => None,
        }
    }

    fn set(&mut self, section: &str, key: &str, value: Value) {
        self.sections.set(section, key, &value.place, value.kind);
    }

    fn say(&mut self, section: &str, key: &str, place: &Place, text: impl Into<String>) {
        self.sections
            .set(section, key, place, Kind::Text(text.into()));
    }

    fn report(&mut self, place: Place, message: &str) {
        let message = message.to_owned();
        self.problems.push(Problem { place, message });
    }

    fn node(&mut self) {
        for (key, own) in [
            ("bind_addr", "bind"),
            ("serf_lan", "bind"),
            ("advertise_addr", "advertise"),
        ] {
            if let Some((place, text)) = self.text(key)
                && let Some(text) = self.no_template(&place, text)
            {
                let bare = text.trim_start_matches('[').trim_end_matches(']');
                self.say("node", own, &place, bare);
            }
        }
        for key in ["region", "zone"] {
            if let Some(value) = self.take(&format!("locality.{key}")) {
                let pair = Table([(key.to_owned(), (value.place.clone(), value.clone()))].into());
                let place = value.place;
                self.sections.set("node", "meta", &place, Kind::Table(pair));
            }
        }
        if let Some((place, leave)) = self.flag("leave_on_terminate") {
            let own = if leave { "leave" } else { "restart" };
            self.say("node", "on_term", &place, own);
        }
    }

    fn no_template(&mut self, place: &Place, text: String) -> Option<String> {
        if text.contains("{{") {
            self.report(place.clone(), "is a template; write the address");
            return None;
        }
        Some(text)
    }

    fn join(&mut self) {
        let mut seeds = Vec::new();
        let mut first = None;
        for key in ["start_join", "retry_join"] {
            let Some(Value { place, kind }) = self.take(key) else {
                continue;
            };
            first.get_or_insert(place);
            let Kind::List(items) = kind else { continue };
            for item in items {
                // Credentials of a cloud may stand there, so the value is not shown.
                match &item.kind {
                    Kind::Text(text) if text.contains("provider=") => self.report(
                        item.place,
                        "finding nodes through a cloud's API is not built; write addresses",
                    ),
                    Kind::Text(text) if text.contains("{{") => {
                        self.report(item.place, "is a template; write the address");
                    }
                    _ => seeds.push(item),
                }
            }
        }
        if let Some(place) = first {
            self.sections
                .set("join", "seeds", &place, Kind::List(seeds));
        }
    }

    fn interfaces(&mut self) {
        for key in ["http", "https", "dns"] {
            // What is not above 0 is off.
            if let Some((place, port)) = self.integer(&format!("ports.{key}")) {
                let kind = match port {
                    ..=0 => Kind::Flag(false),
                    port => Kind::Integer(port),
                };
                self.sections.set("ports", key, &place, kind);
            }
        }
        let all = self.text("client_addr");
        for key in ["http", "https", "dns"] {
            let own = self.text(&format!("addresses.{key}"));
            if let Some((place, text)) = own.or_else(|| all.clone()) {
                self.addresses(key, &place, text);
            }
        }
    }

    /// Addresses between spaces. A Unix socket is the agent's own, which serves the same.
    fn addresses(&mut self, key: &str, place: &Place, text: String) {
        let Some(text) = self.no_template(place, text) else {
            return;
        };
        let (sockets, ips): (Vec<_>, Vec<_>) = text
            .split_whitespace()
            .partition(|one| one.starts_with("unix://"));
        match (key, &sockets[..]) {
            (_, []) => {}
            ("http", [socket]) => {
                let path = socket.trim_start_matches("unix://");
                self.say("addresses", "socket", place, path);
                if ips.is_empty() {
                    self.sections.set("ports", key, place, Kind::Flag(false));
                }
            }
            ("http", _) => self.report(place.clone(), "names more than one Unix socket"),
            _ => self.report(place.clone(), "a Unix socket is served for `http` only"),
        }
        if !ips.is_empty() {
            let item = |ip: &str| Value {
                place: place.clone(),
                kind: Kind::Text(ip.trim_matches(['[', ']']).to_owned()),
            };
            let list = ips.into_iter().map(item).collect();
            self.sections.set("addresses", key, place, Kind::List(list));
        }
    }

    /// Of the port `https`; Consul has other certificates for the rest, and the mesh its own.
    fn tls(&mut self, meaningless: &mut BTreeSet<String>) {
        let mut first = |key: &str| {
            let own = self.text(&format!("tls.https.{key}"));
            let usual = self.text(&format!("tls.defaults.{key}"));
            let old = self.text(key);
            own.or(usual).or(old)
        };
        let (cert, key) = (first("cert_file"), first("key_file"));
        let (ca, ca_path) = (first("ca_file"), first("ca_path"));
        let least = first("tls_min_version");
        let own = self.flag("tls.https.verify_incoming");
        let usual = self.flag("tls.defaults.verify_incoming");
        let old = [
            self.flag("verify_incoming"),
            self.flag("verify_incoming_https"),
        ];
        let old = old.into_iter().flatten().find(|(_, on)| *on);
        let verify = own.or(usual).or(old).filter(|(_, on)| *on);

        let ports = self.sections.0.get("ports").map(|(_, ports)| &ports.kind);
        let https = match ports {
            Some(Kind::Table(ports)) => ports.0.get("https").map(|(_, port)| &port.kind),
            _ => None,
        };
        if !matches!(https, Some(Kind::Integer(_))) {
            if cert.is_some() || key.is_some() || ca.is_some() || verify.is_some() {
                meaningless.insert("tls (there is no ports.https)".to_owned());
            }
            return;
        }
        for (own, value) in [("cert_file", cert), ("key_file", key)] {
            if let Some((place, path)) = value {
                self.say("tls", own, &place, path);
            }
        }
        match (verify, ca, ca_path) {
            (None, ..) => {}
            (Some(_), Some((place, path)), _) => self.say("tls", "client_ca_file", &place, path),
            (Some(_), None, Some((place, _))) => self.report(
                place,
                "clients are checked against one file; write `ca_file`",
            ),
            (Some((place, _)), None, None) => self.report(place, "needs a `ca_file`"),
        }
        if let Some((place, version)) = least {
            match version.to_ascii_lowercase().as_str() {
                "" | "auto" | "tls_auto" | "tlsv1_0" | "tlsv1_1" | "tls10" | "tls11" => {}
                "tlsv1_2" | "tls12" => self.say("tls", "min_version", &place, "1.2"),
                "tlsv1_3" | "tls13" => self.say("tls", "min_version", &place, "1.3"),
                _ => self.report(place, "must be TLSv1_2 or TLSv1_3"),
            }
        }
    }

    fn dns(&mut self) {
        let (domain, other) = (self.text("domain"), self.text("alt_domain"));
        if let Some((place, _)) = domain.as_ref().or(other.as_ref()) {
            let place = place.clone();
            let domain = domain.map_or_else(|| "consul".to_owned(), |(_, domain)| domain);
            let mut all = vec![domain];
            for further in other
                .into_iter()
                .map(|(_, other)| other)
                .chain(["mesh".to_owned()])
            {
                let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
                let known = all.iter().any(|one| plain(one) == plain(&further));
                if !further.is_empty() && !known {
                    all.push(further);
                }
            }
            let item = |domain| Value {
                place: place.clone(),
                kind: Kind::Text(domain),
            };
            let list = all.into_iter().map(item).collect();
            self.sections
                .set("dns", "domains", &place, Kind::List(list));
        }
        if let Some((place, ttl)) = self.text("dns_config.node_ttl") {
            self.say("dns", "node_ttl", &place, own_duration(&ttl));
        }
        if let Some((place, timeout)) = self.text("dns_config.recursor_timeout")
            && go_duration(&timeout).is_ok_and(|timeout| !timeout.is_zero())
        {
            self.say("dns", "recursor_timeout", &place, own_duration(&timeout));
        }
        if let Some(Value { place, kind }) = self.take("dns_config.service_ttl")
            && let Kind::Table(mut services) = kind
        {
            for (_, ttl) in services.0.values_mut() {
                match &mut ttl.kind {
                    Kind::Text(text) if go_duration(text).is_ok() => *text = own_duration(text),
                    _ => self.problems.push(Problem {
                        place: ttl.place.clone(),
                        message: "must be a duration such as \"10s\"".to_owned(),
                    }),
                }
            }
            self.sections
                .set("dns", "service_ttl", &place, Kind::Table(services));
        }
        for (key, own) in [
            ("dns_config.udp_answer_limit", "udp_answer_limit"),
            ("dns_config.a_record_limit", "max_addresses"),
        ] {
            // 0 is no limit there.
            if let Some((place, limit)) = self.integer(key)
                && limit != 0
            {
                self.sections.set("dns", own, &place, Kind::Integer(limit));
            }
        }
        if let Some((place, seconds)) = self.integer("dns_config.soa.min_ttl") {
            match u32::try_from(seconds) {
                Ok(seconds) => self.say("dns", "negative_ttl", &place, format!("{seconds}s")),
                Err(_) => self.report(place, "must be a number of seconds"),
            }
        }
    }

    fn process(&mut self) {
        if let Some((place, level)) = self.text("log_level") {
            let level = level.to_ascii_lowercase();
            let own = if level == "err" { "error" } else { &level };
            self.say("log", "level", &place, own);
        }
        if let Some((place, true)) = self.flag("log_json") {
            self.say("log", "format", &place, "json");
        }
        let (local, all) = (
            self.flag("enable_local_script_checks"),
            self.flag("enable_script_checks"),
        );
        for (given, own) in [(local, "config"), (all, "api")] {
            if let Some((place, true)) = given {
                self.say("health", "exec_checks", &place, own);
            }
        }
    }
}

/// Was checked to be a duration of Go's.
fn own_duration(text: &str) -> String {
    let duration = go_duration(text).unwrap_or(Duration::ZERO);
    humantime::format_duration(duration).to_string()
}
