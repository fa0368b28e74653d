//! Scalars with a text form of their own: times, quantities and bytes, checked and brought to the canonical form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::civil::{Date, Time};
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

/// Layout of `metav1.Time`, as Go writes layouts.
pub(super) const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
/// Layout of `metav1.MicroTime`.
pub(super) const MICROS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Canonical text of a time in seconds: UTC, no fraction.
pub(crate) fn seconds(time: Timestamp) -> String {
    let floor = time.as_second() - i64::from(time.subsec_nanosecond() < 0);
    format!("{:.0}", Timestamp::from_second(floor).unwrap_or(time))
}

/// Canonical text of a time in microseconds: UTC, six digits.
pub(crate) fn micros(time: Timestamp) -> String {
    let micro = time.as_microsecond();
    format!("{:.6}", Timestamp::from_microsecond(micro).unwrap_or(time))
}

/// Reads a time by one of the two layouts; the message is Go's.
pub(super) fn time(text: &str, layout: &'static str) -> Result<Timestamp, String> {
    let mut cursor = Cursor { text, rest: text, layout };
    let year = cursor.digits("2006", 4)?;
    cursor.literal("-")?;
    let month = cursor.ranged("01", 1, 12, "month")?;
    cursor.literal("-")?;
    let day = cursor.ranged("02", 1, 31, "day")?;
    cursor.literal("T")?;
    let hour = cursor.ranged("15", 0, 23, "hour")?;
    cursor.literal(":")?;
    let minute = cursor.ranged("04", 0, 59, "minute")?;
    cursor.literal(":")?;
    let second = cursor.ranged("05", 0, 59, "second")?;
    let nanos = cursor.fraction()?;
    let offset = cursor.offset()?;
    if !cursor.rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {:?}", cursor.rest));
    }
    let out_of_range = || format!("parsing time {text:?}: day out of range");
    let small = |number: i32| i8::try_from(number).unwrap_or_default();
    let date = Date::new(i16::try_from(year).unwrap_or_default(), small(month), small(day))
        .map_err(|_| out_of_range())?;
    let clock = Time::new(small(hour), small(minute), small(second), nanos).map_err(|_| out_of_range())?;
    let local = Offset::UTC.to_timestamp(date.to_datetime(clock)).map_err(|_| out_of_range())?;
    local.checked_sub(offset).map_err(|_| out_of_range())
}

struct Cursor<'a> {
    text: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl Cursor<'_> {
    fn mismatch(&self, element: &str) -> String {
        format!(
            "parsing time {:?} as {:?}: cannot parse {:?} as {element:?}",
            self.text, self.layout, self.rest
        )
    }

    fn digits(&mut self, element: &str, count: usize) -> Result<i32, String> {
        let digits = self
            .rest
            .get(..count)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| self.mismatch(element))?;
        let number = digits.parse().map_err(|_| self.mismatch(element))?;
        self.rest = self.rest.get(count..).unwrap_or_default();
        Ok(number)
    }

    fn ranged(&mut self, element: &str, low: i32, high: i32, name: &str) -> Result<i32, String> {
        let number = self.digits(element, 2)?;
        if (low..=high).contains(&number) {
            Ok(number)
        } else {
            Err(format!("parsing time {:?}: {name} out of range", self.text))
        }
    }

    fn literal(&mut self, literal: &str) -> Result<(), String> {
        self.rest = self.rest.strip_prefix(literal).ok_or_else(|| self.mismatch(literal))?;
        Ok(())
    }

    /// Nanoseconds after the point: as many digits as there are, or exactly six by the layout of `MicroTime`.
    fn fraction(&mut self) -> Result<i32, String> {
        let exact = self.layout == MICROS;
        let Some(tail) = self.rest.strip_prefix('.') else {
            return if exact { Err(self.mismatch(".000000")) } else { Ok(0) };
        };
        let count = tail.bytes().take_while(u8::is_ascii_digit).count();
        let used = if exact { 6 } else { count };
        if count == 0 || count < used {
            return Err(self.mismatch(if exact { ".000000" } else { "Z07:00" }));
        }
        let digits: String = tail.chars().take(used).chain(std::iter::repeat('0')).take(9).collect();
        self.rest = tail.get(used..).unwrap_or_default();
        digits.parse().map_err(|_| self.mismatch("05"))
    }

    fn offset(&mut self) -> Result<SignedDuration, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(SignedDuration::ZERO);
        }
        let whole = self.rest;
        let sign = match whole.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(self.mismatch("Z07:00")),
        };
        let number = |range: std::ops::Range<usize>| {
            whole.get(range).filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse::<i64>().ok()
        };
        let (Some(hours), Some(":"), Some(minutes)) = (number(1..3), whole.get(3..4), number(4..6)) else {
            return Err(self.mismatch("Z07:00"));
        };
        self.rest = whole.get(6..).unwrap_or_default();
        Ok(SignedDuration::from_mins(sign * (hours * 60 + minutes)))
    }
}

/// Reads standard base64 with padding, ignoring line breaks; the message is Go's.
pub(super) fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let packed: String = text.chars().filter(|letter| !matches!(letter, '\r' | '\n')).collect();
    STANDARD.decode(&packed).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(length) => length,
            base64::DecodeError::InvalidPadding => packed.len(),
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// Standard base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_brought_to_utc_seconds() {
        for (text, canonical) in [
            ("2026-11-23T12:00:00Z", "2026-11-23T12:00:00Z"),
            ("2026-11-23T12:00:00.987Z", "2026-11-23T12:00:00Z"),
            ("2026-11-23T12:00:00+02:00", "2026-11-23T10:00:00Z"),
            ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(seconds(time(text, SECONDS).unwrap()), canonical, "{text}");
        }
        let micro = time("2026-11-23T12:00:00.000123Z", MICROS).unwrap();
        assert_eq!(micros(micro), "2026-11-23T12:00:00.000123Z");
    }

    #[test]
    fn bad_times_get_the_messages_that_users_know() {
        for (text, layout, message) in [
            (
                "abc",
                SECONDS,
                r#"parsing time "abc" as "2006-01-02T15:04:05Z07:00": cannot parse "abc" as "2006""#,
            ),
            (
                "2026-11-23",
                SECONDS,
                r#"parsing time "2026-11-23" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#,
            ),
            ("2026-13-01T00:00:00Z", SECONDS, r#"parsing time "2026-13-01T00:00:00Z": month out of range"#),
            ("2026-02-30T00:00:00Z", SECONDS, r#"parsing time "2026-02-30T00:00:00Z": day out of range"#),
            ("2026-02-03T00:00:00Zx", SECONDS, r#"parsing time "2026-02-03T00:00:00Zx": extra text: "x""#),
            (
                "2026-02-03T00:00:00Z",
                MICROS,
                r#"parsing time "2026-02-03T00:00:00Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#,
            ),
        ] {
            assert_eq!(time(text, layout).unwrap_err(), message);
        }
    }

    #[test]
    fn bad_base64_names_the_byte() {
        assert_eq!(bytes("YWJ$").unwrap_err(), "illegal base64 data at input byte 3");
        assert_eq!(bytes("YW\nJj").unwrap(), b"abc");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_time_or_a_message(text in "[0-9TZ:.+\\-é]{0,32}") {
            let _ = time(&text, SECONDS);
            let _ = time(&text, MICROS);
        }
    }
}
