//! The durable record of a Pod's mapping: `<kubelet root>/pods/<uid>/userns`, byte for byte as the upstream
//! kubelet writes it, and read as tolerantly (unknown keys ignored, names matched without case).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::range::{IdRange, RangeError};

/// One line of a `uid_map`, in upstream's JSON form and key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// The first host ID.
    #[serde(rename = "hostId")]
    pub host_id: u32,
    /// The first ID inside the Pod.
    #[serde(rename = "containerId")]
    pub container_id: u32,
    /// How many IDs.
    pub length: u32,
}

/// A Pod's UID and GID maps: the record's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    /// The UID map.
    #[serde(rename = "uidMappings")]
    pub uids: Vec<IdMapping>,
    /// The GID map.
    #[serde(rename = "gidMappings")]
    pub gids: Vec<IdMapping>,
}

impl IdMappings {
    /// The maps that give a Pod `range` as its IDs from 0 on, the same for users and groups.
    pub fn of(range: IdRange) -> Self {
        let line = IdMapping { host_id: range.first(), container_id: 0, length: range.length() };
        Self { uids: vec![line], gids: vec![line] }
    }
}

/// What a record file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The file is empty, which counts as absent.
    Empty,
    /// The Pod's host IDs.
    Range(IdRange),
}

/// A record that can't be used, and the host IDs that it may stand for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{defect}")]
pub struct RecordError {
    /// What is wrong.
    pub defect: RecordDefect,
    /// Every interval that the record names; all stay reserved while the Pod exists.
    pub touched: Vec<IdRange>,
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordDefect {
    /// Not the JSON of two lists of mappings.
    #[error("it is not a record: {0}")]
    NotARecord(String),
    /// Not exactly one UID mapping and one GID mapping.
    #[error("it has {uids} UID mappings and {gids} GID mappings; a Pod has one of each")]
    Count {
        /// UID mappings found.
        uids: usize,
        /// GID mappings found.
        gids: usize,
    },
    /// The UID and the GID mapping differ.
    #[error("its UID mapping and its GID mapping differ")]
    UidsDifferFromGids,
    /// The mapping does not begin at the Pod's ID 0.
    #[error("it maps from the Pod's ID {0}; a Pod's IDs begin at 0")]
    ContainerId(u32),
    /// The host range is impossible.
    #[error(transparent)]
    Range(RangeError),
    /// The host range includes the node's own IDs.
    #[error("it gives the Pod the node's own IDs {0}; this would make the Pod's root a user of the node")]
    NodeIds(IdRange),
    /// The range does not lie on blocks of 65536.
    #[error("its range {0} does not begin and end on a multiple of 65536")]
    Unaligned(IdRange),
    /// The file could not be read as a regular file of a sane size.
    #[error("it can't be read: {0}")]
    Unreadable(String),
}

/// The record's exact bytes: compact, keys in upstream's order, no newline at the end.
pub fn encode(range: IdRange) -> Vec<u8> {
    let (host, length) = (range.first(), range.length());
    let line = format!(r#"[{{"hostId":{host},"containerId":0,"length":{length}}}]"#);
    format!(r#"{{"uidMappings":{line},"gidMappings":{line}}}"#).into_bytes()
}

impl Record {
    /// Reads a record file's bytes. A record of another `idsPerPod` is valid.
    ///
    /// # Errors
    /// What is wrong, with the intervals that the record touches.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.is_empty() {
            return Ok(Self::Empty);
        }
        let (uids, gids) = lists(bytes).map_err(|why| no_range(RecordDefect::NotARecord(why)))?;
        let touched = touched(&uids, &gids);
        match single_range(&uids, &gids) {
            Ok(range) => Ok(Self::Range(range)),
            Err(defect) => Err(RecordError { defect, touched }),
        }
    }
}

fn no_range(defect: RecordDefect) -> RecordError {
    RecordError { defect, touched: Vec::new() }
}

fn single_range(uids: &[IdMapping], gids: &[IdMapping]) -> Result<IdRange, RecordDefect> {
    let ([uid], [gid]) = (uids, gids) else {
        return Err(RecordDefect::Count { uids: uids.len(), gids: gids.len() });
    };
    if uid != gid {
        return Err(RecordDefect::UidsDifferFromGids);
    }
    if uid.container_id != 0 {
        return Err(RecordDefect::ContainerId(uid.container_id));
    }
    let range = IdRange::new(uid.host_id.into(), uid.length.into()).map_err(RecordDefect::Range)?;
    if range.first() < 65_536 {
        return Err(RecordDefect::NodeIds(range));
    }
    if range.first() % 65_536 != 0 || range.length() % 65_536 != 0 {
        return Err(RecordDefect::Unaligned(range));
    }
    Ok(range)
}

/// The intervals that the mappings name, widened to whole blocks of 65536, clipped to the ID space.
fn touched(uids: &[IdMapping], gids: &[IdMapping]) -> Vec<IdRange> {
    let mut ranges: Vec<IdRange> = uids.iter().chain(gids).filter_map(whole_blocks).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

fn whole_blocks(line: &IdMapping) -> Option<IdRange> {
    let first = u64::from(line.host_id) / 65_536 * 65_536;
    let end = (u64::from(line.host_id) + u64::from(line.length)).next_multiple_of(65_536).min(1 << 32);
    IdRange::new(first, end.saturating_sub(first)).ok()
}

fn lists(bytes: &[u8]) -> Result<(Vec<IdMapping>, Vec<IdMapping>), String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let object = value.as_object().ok_or("the JSON is not an object")?;
    Ok((list(object, "uidMappings")?, list(object, "gidMappings")?))
}

type Object = serde_json::Map<String, Value>;

/// The value under `name`: exactly so, or else without regard to case, as Go's decoder does.
fn member<'a>(object: &'a Object, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| object.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v))
}

fn list(object: &Object, name: &str) -> Result<Vec<IdMapping>, String> {
    match member(object, name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(lines)) => lines.iter().map(|line| mapping(name, line)).collect(),
        Some(_) => Err(format!("`{name}` is not a list")),
    }
}

fn mapping(list: &str, line: &Value) -> Result<IdMapping, String> {
    let object = line.as_object().ok_or_else(|| format!("`{list}` holds something that is not a mapping"))?;
    let number = |name| number(object, name).ok_or_else(|| format!("`{list}.{name}` is not a 32-bit number"));
    Ok(IdMapping {
        host_id: number("hostId")?,
        container_id: number("containerId")?,
        length: number("length")?,
    })
}

fn number(object: &Object, name: &str) -> Option<u32> {
    match member(object, name) {
        None | Some(Value::Null) => Some(0),
        Some(value) => value.as_u64().and_then(|n| u32::try_from(n).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &str = r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#;

    fn range(first: u64, length: u64) -> IdRange {
        IdRange::new(first, length).unwrap()
    }

    fn defect(text: &str) -> RecordDefect {
        Record::parse(text.as_bytes()).unwrap_err().defect
    }

    fn with(first: u64, container: u64, length: u64) -> String {
        let line = format!(r#"[{{"hostId":{first},"containerId":{container},"length":{length}}}]"#);
        format!(r#"{{"uidMappings":{line},"gidMappings":{line}}}"#)
    }

    #[test]
    fn e01_the_record_has_exactly_upstreams_bytes() {
        assert_eq!(encode(range(131_072, 65_536)), POST.as_bytes());
        assert_eq!(serde_json::to_vec(&IdMappings::of(range(131_072, 65_536))).unwrap(), POST.as_bytes());
    }

    #[test]
    fn e02_the_posts_record_is_read() {
        assert_eq!(Record::parse(POST.as_bytes()), Ok(Record::Range(range(131_072, 65_536))));
    }

    #[test]
    fn unknown_keys_and_other_case_are_tolerated() {
        let text = POST.replace("uidMappings", "UIDmappings").replace("\"length\"", "\"x\":1,\"Length\"");
        assert_eq!(Record::parse(text.as_bytes()), Ok(Record::Range(range(131_072, 65_536))));
    }

    #[test]
    fn e06_a_zero_byte_file_counts_as_absent() {
        assert_eq!(Record::parse(b""), Ok(Record::Empty));
    }

    #[test]
    fn e07_what_is_not_a_record_says_so_and_touches_nothing() {
        for text in ["{", "[]", "null", "\u{0}\u{1}", "7", r#"{"uidMappings":7}"#, r#"{"uidMappings":[7]}"#] {
            let error = Record::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error.defect, RecordDefect::NotARecord(_)), "{text}: {error}");
            assert!(error.touched.is_empty());
        }
        assert!(matches!(defect(&with(1 << 32, 0, 65_536)), RecordDefect::NotARecord(_)));
        assert!(matches!(defect(&POST.replace("131072", "-1")), RecordDefect::NotARecord(_)));
    }

    #[test]
    fn e08_two_mappings_or_none_are_refused_and_all_are_touched() {
        assert_eq!(defect("{}"), RecordDefect::Count { uids: 0, gids: 0 });
        let two = POST.replace(
            r#""uidMappings":["#,
            r#""uidMappings":[{"hostId":262144,"containerId":65536,"length":65536},"#,
        );
        let error = Record::parse(two.as_bytes()).unwrap_err();
        assert_eq!(error.defect, RecordDefect::Count { uids: 2, gids: 1 });
        assert_eq!(error.touched, [range(131_072, 65_536), range(262_144, 65_536)]);
    }

    #[test]
    fn e09_unequal_maps_are_refused() {
        let text = POST.replacen("131072", "196608", 1);
        assert_eq!(defect(&text), RecordDefect::UidsDifferFromGids);
    }

    #[test]
    fn e10_a_map_that_does_not_begin_at_0_is_refused() {
        assert_eq!(defect(&with(131_072, 1, 65_536)), RecordDefect::ContainerId(1));
    }

    #[test]
    fn e11_another_length_is_valid() {
        let parsed = Record::parse(with(131_072, 0, 131_072).as_bytes());
        assert_eq!(parsed, Ok(Record::Range(range(131_072, 131_072))));
    }

    #[test]
    fn e12_an_unaligned_range_touches_both_blocks() {
        let error = Record::parse(with(70_000, 0, 65_536).as_bytes()).unwrap_err();
        assert_eq!(error.defect, RecordDefect::Unaligned(range(70_000, 65_536)));
        assert_eq!(error.touched, [range(65_536, 131_072)]);
    }

    #[test]
    fn e13_the_nodes_own_ids_are_never_a_pods() {
        assert_eq!(defect(&with(0, 0, 65_536)), RecordDefect::NodeIds(range(0, 65_536)));
    }

    #[test]
    fn e23_the_terminal_block_is_read_as_it_stands() {
        let parsed = Record::parse(with(4_294_901_760, 0, 65_536).as_bytes());
        assert_eq!(parsed, Ok(Record::Range(range(4_294_901_760, 65_536))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = Record::parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read_back(block in 1u64..65_535, blocks in 1u64..4) {
            if let Ok(range) = IdRange::new(block * 65_536, blocks * 65_536) {
                proptest::prop_assert_eq!(Record::parse(&encode(range)), Ok(Record::Range(range)));
            }
        }
    }
}
