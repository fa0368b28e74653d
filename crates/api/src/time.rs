//! Times as the API writes them, and ages as `kubectl` shows them.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// `metav1.Time`: RFC 3339 in UTC with whole seconds, such as `2026-11-23T12:00:00Z`.
pub fn format_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: RFC 3339 in UTC with six digits after the point.
pub fn format_micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads either form, with any offset.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// The time in a JSON value, if there is one.
pub fn of(value: Option<&Value>) -> Option<Timestamp> {
    value.and_then(Value::as_str).and_then(parse)
}

/// Time since `from`, such as `7m42s`; `<unknown>` when there is none.
pub fn age(from: Option<Timestamp>, now: Timestamp) -> String {
    from.map_or_else(|| "<unknown>".to_owned(), |from| human_duration(now.duration_since(from)))
}

/// A duration in two units at most, coarser the longer it is: `53s`, `7m42s`, `3d4h`, `2y18d`.
/// Two seconds of clock difference are forgiven; anything further in the future is `<invalid>`.
pub fn human_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two_units(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two_units(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two_units(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => two_units(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

fn two_units(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_coarser_the_longer_they_are() {
        let day = 86_400;
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (53, "53s"),
            (119, "119s"),
            (120, "2m"),
            (462, "7m42s"),
            (600, "10m"),
            (179 * 60 + 59, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (47 * 3600, "47h"),
            (2 * day, "2d"),
            (3 * day + 4 * 3600, "3d4h"),
            (8 * day + 3600, "8d"),
            (729 * day, "729d"),
            (730 * day, "2y"),
            (748 * day, "2y18d"),
            (365 * 8 * day, "8y"),
        ] {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn times_are_written_in_seconds_and_in_micros() {
        let time = parse("2026-11-23T13:00:00.123456+01:00").unwrap();
        assert_eq!(format_seconds(time), "2026-11-23T12:00:00Z");
        assert_eq!(format_micros(time), "2026-11-23T12:00:00.123456Z");
        assert_eq!(age(None, time), "<unknown>");
    }
}
