//! Figures as JSON in Consul's shape, and as text for Prometheus.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Map, Value, json};
use time::{OffsetDateTime, macros::format_description};

/// Figures of one name.
pub struct Family {
    /// With dots; without `mesh`, which all begin with.
    name: String,
    kind: Kind,
    help: &'static str,
    values: Vec<(Vec<(&'static str, String)>, f64)>,
    summary: Option<Summary>,
}

/// What a figure is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is now.
    Gauge,
    /// Counted one by one since the start.
    Counter,
    /// Many, summed up.
    Summary,
}

/// Many figures, summed up.
#[derive(Clone, Copy, Default)]
pub struct Summary {
    pub count: f64,
    pub sum: f64,
    pub least: f64,
    pub most: f64,
    pub mean: f64,
    pub deviation: f64,
}

impl Family {
    pub fn new(name: &str, kind: Kind, help: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            help,
            values: Vec::new(),
            summary: None,
        }
    }

    pub fn summary(name: &str, help: &'static str, summary: Summary) -> Self {
        Self {
            summary: Some(summary),
            ..Self::new(name, Kind::Summary, help)
        }
    }

    #[must_use]
    pub fn with(mut self, labels: &[(&'static str, &str)], value: f64) -> Self {
        let labels = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        self.values.push((labels.collect(), value));
        self
    }

    fn values(&self) -> impl Iterator<Item = (Value, f64)> {
        self.values.iter().map(|(labels, value)| {
            let labels = labels.iter();
            let labels: Map<_, _> = labels
                .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
                .collect();
            (Value::Object(labels), *value)
        })
    }
}

/// In Consul's shape. `age`: since when it was counted.
pub fn to_json(families: &[Family], age: Duration) -> Value {
    let of = |kind: Kind| families.iter().filter(move |family| family.kind == kind);
    let name = |family: &Family| format!("mesh.{}", family.name);
    let gauges = of(Kind::Gauge).flat_map(|family| {
        family
            .values()
            .map(|(labels, value)| json!({"Name": name(family), "Value": value, "Labels": labels}))
    });
    let rate = |value: f64| value / age.as_secs_f64().max(1e-3);
    let counters = of(Kind::Counter).flat_map(|family| {
        family.values().map(|(labels, value)| {
            // Each adds one.
            let one = f64::from(u8::from(value > 0.0));
            json!({
                "Name": name(family), "Count": value as u64, "Rate": rate(value), "Sum": value,
                "Min": one, "Max": one, "Mean": one, "Stddev": 0.0, "Labels": labels,
            })
        })
    });
    let samples = of(Kind::Summary).map(|family| {
        let all = family.summary.unwrap_or_default();
        json!({
            "Name": name(family), "Count": all.count as u64, "Rate": rate(all.count), "Sum": all.sum,
            "Min": all.least, "Max": all.most, "Mean": all.mean, "Stddev": all.deviation, "Labels": {},
        })
    });
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");
    json!({
        "Timestamp": OffsetDateTime::now_utc().format(format).unwrap_or_default(),
        "Gauges": gauges.collect::<Vec<_>>(),
        "Points": [],
        "Counters": counters.collect::<Vec<_>>(),
        "Samples": samples.collect::<Vec<_>>(),
    })
}

/// As text for Prometheus.
pub fn prometheus(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families {
        let base = format!("mesh_{}", family.name.replace('.', "_"));
        let (name, kind) = match family.kind {
            Kind::Gauge => (base, "gauge"),
            Kind::Counter => (format!("{base}_total"), "counter"),
            Kind::Summary => (base, "summary"),
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
        for (labels, value) in &family.values {
            let labels: Vec<_> = labels
                .iter()
                .map(|(name, value)| format!("{name}={value:?}"))
                .collect();
            let labels = match labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", labels.join(",")),
            };
            let _ = writeln!(out, "{name}{labels} {value}");
        }
        if let Some(all) = family.summary {
            let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", all.sum, all.count);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_to_both() {
        let families = [
            Family::new("members", Kind::Gauge, "Nodes.").with(&[("state", "alive")], 3.0),
            Family::new("dns.replies", Kind::Counter, "Replies.").with(&[], 7.0),
            Family::summary(
                "http.answer_seconds",
                "Time.",
                Summary {
                    count: 2.0,
                    sum: 0.5,
                    ..Summary::default()
                },
            ),
        ];
        assert_eq!(
            prometheus(&families),
            "# HELP mesh_members Nodes.\n# TYPE mesh_members gauge\nmesh_members{state=\"alive\"} 3\n\
             # HELP mesh_dns_replies_total Replies.\n# TYPE mesh_dns_replies_total counter\n\
             mesh_dns_replies_total 7\n\
             # HELP mesh_http_answer_seconds Time.\n# TYPE mesh_http_answer_seconds summary\n\
             mesh_http_answer_seconds_sum 0.5\nmesh_http_answer_seconds_count 2\n"
        );
        let shown = to_json(&families, Duration::from_secs(2));
        assert_eq!(
            shown["Gauges"],
            json!([{"Name": "mesh.members", "Value": 3.0, "Labels": {"state": "alive"}}])
        );
        assert_eq!(shown["Counters"][0]["Rate"], 3.5);
        assert_eq!(shown["Samples"][0]["Sum"], 0.5);
        // Go's client takes whole numbers only.
        assert!(shown["Counters"][0]["Count"].is_u64() && shown["Samples"][0]["Count"].is_u64());
    }
}
