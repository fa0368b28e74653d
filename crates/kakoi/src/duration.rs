//! Durations as Go writes them, `1h30m` or `20s`: in `KubeletConfiguration` and in flags named as upstream's.

use std::time::Duration;

use jiff::SignedDuration;

/// Reads a duration that is not negative.
///
/// # Errors
/// A sentence, when it is none.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let is_go = text.chars().all(|c| c.is_ascii_digit() || ".hmsnuµ".contains(c));
    let parsed = match text {
        "0" => Some(SignedDuration::ZERO),
        text if is_go => text.parse().ok(),
        _ => None,
    };
    let duration = parsed.and_then(|parsed: SignedDuration| Duration::try_from(parsed).ok());
    duration.ok_or_else(|| format!("{text:?} is no duration such as `20s` or `1h30m`"))
}

/// For serde: an optional field.
pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Option<Duration>, D::Error> {
    let text: Option<String> = serde::Deserialize::deserialize(reader)?;
    text.map(|text| parse(&text)).transpose().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, milliseconds) in
            [("20s", 20_000), ("1h30m", 5_400_000), ("1m0s", 60_000), ("300ms", 300), ("0s", 0), ("0", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(parse("8760h0m0s"), Ok(Duration::from_hours(8760)));
        for text in ["", "20", "1d", "-5s", "soon", "PT1H", "1 hour"] {
            assert!(parse(text).unwrap_err().contains("is no duration"), "{text}");
        }
    }
}
