//! PAX extended headers: records of `<length> <key>=<value>\n`, whose values may hold any byte.

use super::tar::{Piece, Time};

const XATTR: &str = "SCHILY.xattr.";
const SPARSE: &str = "GNU.sparse.";

/// The records of one extended header, in order; a later one with the same key takes the earlier one's place,
/// but for the repeated keys of sparse format 0.0.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax(Vec<(String, Vec<u8>)>);

impl Pax {
    /// Reads the records.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let mut records = Vec::new();
        while !bytes.is_empty() && bytes.iter().any(|byte| *byte != 0) {
            let (key, value, rest) =
                record(bytes).ok_or_else(|| "an extended header is malformed".to_owned())?;
            records.push((key, value.to_vec()));
            bytes = rest;
        }
        Ok(Self(records))
    }

    /// Adds the records of a nearer header.
    pub(super) fn merge(&mut self, nearer: Self) {
        self.0.extend(nearer.0);
    }

    /// The last value of `key`. An empty value deletes the key.
    pub(super) fn value(&self, key: &str) -> Option<&[u8]> {
        let last = self.0.iter().rev().find(|(name, _)| name == key);
        last.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    /// The value of `key` as a decimal number.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| format!("`{key}` is not a number"))
    }

    /// Extended attributes, `(name, value)`.
    pub(super) fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(XATTR) {
                found.retain(|(known, _)| known != name.as_bytes());
                found.push((name.as_bytes().to_vec(), value.clone()));
            }
        }
        found
    }

    /// The map of a sparse file of format 0.0 (repeated offset and length) or 0.1 (one list).
    pub(super) fn pieces(&self) -> Result<Option<Vec<Piece>>, String> {
        let refused = || "a sparse file's map is not a list of numbers".to_owned();
        let numbers: Vec<u64> = match self.value("GNU.sparse.map") {
            Some(list) => {
                list.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>().ok_or_else(refused)?
            }
            None => self
                .0
                .iter()
                .filter(|(key, _)| matches!(key.strip_prefix(SPARSE), Some("offset" | "numbytes")))
                .map(|(_, value)| decimal(value))
                .collect::<Option<_>>()
                .ok_or_else(refused)?,
        };
        if numbers.is_empty() && self.value("GNU.sparse.size").is_none() {
            return Ok(None);
        }
        let pairs = numbers.chunks(2).map(|pair| match pair {
            [offset, length] => Ok(Piece { offset: *offset, length: *length }),
            _ => Err(refused()),
        });
        pairs.collect::<Result<_, _>>().map(Some)
    }
}

/// A PAX time: seconds with a fraction, possibly negative.
pub(super) fn time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Time { seconds, nanoseconds })
}

fn record(bytes: &[u8]) -> Option<(String, &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (whole, rest) = bytes.split_at_checked(length)?;
    let body = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let key = String::from_utf8(body.get(..equals)?.to_vec()).ok()?;
    Some((key, body.get(equals + 1..)?, rest))
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte_and_the_last_one_counts() {
        let pax = Pax::parse(b"9 path=a\n9 path=b\n27 SCHILY.xattr.user.x=\n\0\n\n").unwrap();
        assert_eq!(pax.value("path"), Some(b"b".as_slice()));
        assert_eq!(pax.xattrs(), [(b"user.x".to_vec(), b"\n\0\n".to_vec())]);
    }

    #[test]
    fn a_record_that_lies_about_its_length_is_refused() {
        for bytes in
            [b"9 path=ab\n".as_slice(), b"99 path=a\n", b"x path=a\n", b"0 path=a\n", b"7 path\n", b"3 \n"]
        {
            assert!(Pax::parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn times_have_nanoseconds_and_may_lie_before_1970() {
        assert_eq!(time(b"1.5"), Some(Time { seconds: 1, nanoseconds: 500_000_000 }));
        assert_eq!(time(b"-1.25"), Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(time(b"7"), Some(Time { seconds: 7, nanoseconds: 0 }));
        assert_eq!(time(b"1.123456789999"), Some(Time { seconds: 1, nanoseconds: 123_456_789 }));
        assert_eq!(time(b"1.x"), None);
    }
}
