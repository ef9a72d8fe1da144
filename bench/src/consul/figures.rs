//! What Consul does, what is to be reached, and how far this is from it.

use crate::report::{Bar, Row};

/// Consul's figures (DESIGN of this project, §10): requests a second and µs of processor time.
const CONSUL: [(&str, Figures); 4] = [
    ("KV GET", Figures::new(42_000.0, 33.0)),
    ("KV PUT", Figures::new(17_000.0, 75.0)),
    ("health/service?passing", Figures::new(19_000.0, 85.0)),
    ("catalog/register", Figures::rate(2_800.0)),
];
/// hyper alone where those were taken.
pub const HELLO: Figures = Figures::new(230_000.0, 4.4);

/// What is to be reached: times Consul's rate, and of its processor time.
const BARS: [(&str, f64, Option<f64>); 4] = [
    ("KV GET", 3.0, Some(0.3)),
    ("KV PUT", 2.0, Some(0.4)),
    ("health/service?passing", 6.0, Some(0.167)),
    ("catalog/register", 5.0, None),
];

/// Requests a second, and µs of processor time of one.
#[derive(Clone, Copy)]
pub struct Figures {
    pub rate: f64,
    pub cpu: Option<f64>,
}

impl Figures {
    pub const fn new(rate: f64, cpu: f64) -> Self {
        Self {
            rate,
            cpu: Some(cpu),
        }
    }

    pub const fn rate(rate: f64) -> Self {
        Self { rate, cpu: None }
    }
}

/// By what was asked.
pub type Seen = Vec<(&'static str, Figures)>;

/// What this machine can do at best.
pub struct Floors {
    pub hello: Figures,
    pub log: f64,
}

/// What the project set itself: beside the peer, or beside Consul's figures as shares of what the machines can do.
pub fn judged(ours: &Seen, theirs: Option<&Seen>, floors: &Floors) -> Vec<Row> {
    fn find(all: &[(&'static str, Figures)], work: &str) -> Option<Figures> {
        let mut all = all.iter();
        all.find(|(name, _)| *name == work)
            .map(|(_, figures)| *figures)
    }
    let (whose, theirs, machine) = match theirs {
        Some(theirs) => ("peer", theirs.as_slice(), floors.hello),
        None => ("Consul's, as shares of hyper alone", &CONSUL[..], HELLO),
    };
    let mut rows = Vec::new();
    for (work, faster, cheaper) in BARS {
        let (Some(own), Some(other)) = (find(ours, work), find(theirs, work)) else {
            continue;
        };
        let speed = machine.rate / floors.hello.rate;
        let row = Row::new(
            format!("{work}, vs {whose}"),
            own.rate / other.rate * speed,
            "×",
        );
        let plain = format!("{:.0}/s beside {:.0}/s", own.rate, other.rate);
        rows.push(row.bar(Bar::AtLeast(faster)).note(plain));
        if let (Some(own), Some(other), Some(bar)) = (own.cpu, other.cpu, cheaper) {
            let speed = machine
                .cpu
                .zip(floors.hello.cpu)
                .map_or(1.0, |(there, here)| there / here);
            let row = Row::new(format!("{work}, cpu vs {whose}"), own / other * speed, "×");
            let plain = format!("{own:.1} µs beside {other:.1} µs");
            rows.push(row.bar(Bar::AtMost(bar)).note(plain));
        }
    }
    for (work, what, floor, bar) in [
        ("KV GET", "hyper alone", floors.hello.rate, 0.7),
        ("KV PUT", "the raw log", floors.log, 0.8),
    ] {
        rows.extend(find(ours, work).map(|own| {
            let name = format!("{work}, vs {what}");
            Row::new(name, own.rate / floor, "×").bar(Bar::AtLeast(bar))
        }));
    }
    rows
}
