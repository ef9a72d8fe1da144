//! Durations as Vault reads and prints them.

use std::time::Duration;

const UNITS: [(&str, u128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Parse `"90"` (seconds), `"2d"` or a Go duration such as `"1h30m"` or `"1.5h"`. `None` for anything else, for
/// negative values and for what does not fit into 64 bits of nanoseconds.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return bounded(u128::from(text.parse::<u64>().ok()?).checked_mul(1_000_000_000)?);
    }
    if let Some(days) = text.strip_suffix('d') {
        if !days.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        return bounded(u128::from(days.parse::<u64>().ok()?).checked_mul(86_400_000_000_000)?);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (digits, tail) = rest.split_at(number);
        let unit = tail
            .chars()
            .take_while(|c| !c.is_ascii_digit() && *c != '.')
            .map(char::len_utf8)
            .sum();
        let (unit, tail) = tail.split_at(unit);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 19 {
            return None;
        }
        let whole: u128 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total.checked_add(whole.checked_mul(scale)?)?;
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let part: u128 = fraction.parse().ok()?;
            total = total.checked_add(part * scale / 10u128.pow(fraction.len() as u32))?;
        }
        rest = tail;
    }
    bounded(total)
}

/// Go's limit: nanoseconds in a signed 64-bit integer.
fn bounded(nanos: u128) -> Option<Duration> {
    let nanos = u64::try_from(nanos)
        .ok()
        .filter(|n| i64::try_from(*n).is_ok())?;
    Some(Duration::from_nanos(nanos))
}

/// Print like Go: `0s`, `1m30s`, `3h0m0s`, `250ms`, `1.5s`.
pub(crate) fn format(value: Duration) -> String {
    let nanos = value.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    if nanos < 1_000_000_000 {
        let (unit, scale) = match nanos {
            0..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return format!("{}{unit}", decimal(nanos, scale));
    }
    let seconds = value.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let tail = decimal(nanos % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{tail}s"),
        (0, m) => format!("{m}m{tail}s"),
        (h, m) => format!("{h}h{m}m{tail}s"),
    }
}

fn decimal(value: u128, scale: u128) -> String {
    let digits = scale.ilog10() as usize;
    if value.is_multiple_of(scale) {
        return (value / scale).to_string();
    }
    let text = format!("{}.{:0digits$}", value / scale, value % scale);
    text.trim_end_matches('0').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanos) in [
            ("90", 90_000_000_000u64),
            ("2d", 172_800_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("250ms", 250_000_000),
            ("0", 0),
            ("10us", 10_000),
        ] {
            assert_eq!(
                parse(text).map(|d| d.as_nanos()),
                Some(u128::from(nanos)),
                "{text}"
            );
        }
        for text in [
            "",
            "soon",
            "-1s",
            "1x",
            "1.2.3s",
            "1.5d",
            ".s",
            "99999999999999999999",
            "9999999999h",
            "s",
            "1s1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn prints_like_go() {
        for (nanos, text) in [
            (0u64, "0s"),
            (10_800_000_000_000, "3h0m0s"),
            (90_000_000_000, "1m30s"),
            (1_500_000_000, "1.5s"),
            (250_000_000, "250ms"),
            (1_500, "1.5µs"),
        ] {
            assert_eq!(format(Duration::from_nanos(nanos)), text);
        }
    }
}
