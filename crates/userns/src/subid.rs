//! `/etc/subuid`, `/etc/subgid`, `getsubids` and the account files, as text.

use crate::range::{IdRange, RangeError};

/// One line of `/etc/subuid` or `/etc/subgid` (`subuid(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubIdEntry {
    /// Login name, or a decimal UID.
    pub owner: String,
    /// The IDs given to the owner.
    pub range: IdRange,
}

/// A subordinate ID source that can't be used. The message names the line and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubIdError {
    /// A line that is not `owner:first:count`.
    #[error("`{line}` is not `owner:first:count`; correct the line")]
    Line {
        /// The line as it stands.
        line: String,
    },
    /// A range that leaves the ID space.
    #[error("`{line}`: {cause}; correct the line")]
    Range {
        /// The line as it stands.
        line: String,
        /// What is wrong with it.
        cause: RangeError,
    },
    /// `getsubids` answered with something else than one range.
    #[error("`getsubids` printed {lines} lines for the user `kubelet`; it must have exactly one range")]
    NotOneRange {
        /// How many lines it printed.
        lines: usize,
    },
    /// `getsubids` printed a line of another form.
    #[error("`getsubids` printed `{line}`, which is not `0: kubelet first count`")]
    GetsubidsLine {
        /// The line as printed.
        line: String,
    },
}

impl SubIdError {
    /// The owner that the bad line names: a stranger's bad line is nobody's reason not to start.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::Line { line } | Self::Range { line, .. } => line.split(':').next(),
            Self::NotOneRange { .. } | Self::GetsubidsLine { .. } => None,
        }
    }
}

/// The entries of a sub-ID file, each or what is wrong with it. Empty lines and comments are passed over.
pub fn parse_subids(text: &str) -> Vec<Result<SubIdEntry, SubIdError>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(parse_line).collect()
}

fn parse_line(line: &str) -> Result<SubIdEntry, SubIdError> {
    let malformed = || SubIdError::Line { line: line.to_owned() };
    let fields: Vec<&str> = line.split(':').collect();
    let [owner, first, count] = fields.as_slice() else { return Err(malformed()) };
    if owner.is_empty() {
        return Err(malformed());
    }
    let first = first.trim().parse::<u64>().map_err(|_| malformed())?;
    let count = count.trim().parse::<u64>().map_err(|_| malformed())?;
    let range =
        IdRange::new(first, count).map_err(|cause| SubIdError::Range { line: line.to_owned(), cause })?;
    Ok(SubIdEntry { owner: (*owner).to_owned(), range })
}

/// The entries that belong to the account with this name or this number.
pub fn subids_of<'a>(entries: &'a [SubIdEntry], name: &str, uid: u32) -> Vec<&'a SubIdEntry> {
    let number = uid.to_string();
    entries.iter().filter(|entry| entry.owner == name || entry.owner == number).collect()
}

/// The one range that `getsubids kubelet` printed, of the form `0: kubelet 327680 7208960`.
///
/// # Errors
/// Anything but exactly one line of that form with a range inside the ID space.
pub fn parse_getsubids(output: &str) -> Result<IdRange, SubIdError> {
    let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let [line] = lines.as_slice() else { return Err(SubIdError::NotOneRange { lines: lines.len() }) };
    let malformed = || SubIdError::GetsubidsLine { line: (*line).to_owned() };
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, first, count] = fields.as_slice() else { return Err(malformed()) };
    let first: u32 = first.parse().map_err(|_| malformed())?;
    let count: u32 = count.parse().map_err(|_| malformed())?;
    IdRange::new(first.into(), count.into())
        .map_err(|cause| SubIdError::Range { line: (*line).to_owned(), cause })
}

/// Names and numeric IDs of a `passwd(5)` or `group(5)` file; lines of another form are passed over.
pub fn parse_accounts(text: &str) -> Vec<(String, u32)> {
    text.lines().filter_map(account).collect()
}

fn account(line: &str) -> Option<(String, u32)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let id = fields.nth(1)?.parse().ok()?;
    Some((name.to_owned(), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_file_is_read() {
        let text = "# made by useradd\nann:100000:65536\n\n1001:165536:65536\n";
        let entries: Vec<_> = parse_subids(text).into_iter().map(Result::unwrap).collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].range.to_string(), "100000-165535");
        assert_eq!(subids_of(&entries, "bob", 1001).len(), 1);
        assert_eq!(subids_of(&entries, "ann", 1000).len(), 1);
    }

    #[test]
    fn bad_lines_are_named() {
        let refusal = |text| parse_subids(text).remove(0).unwrap_err();
        assert_eq!(refusal("ann:1"), SubIdError::Line { line: "ann:1".into() });
        assert_eq!(refusal("ann:1").owner(), Some("ann"));
        refusal("ann:x:1");
        refusal(":1:1");
        let text = refusal("kubelet:327680:4294836224").to_string();
        assert_eq!(
            text,
            "`kubelet:327680:4294836224`: the range of 4294836224 IDs from 327680 passes the last ID, 4294967295; correct the line"
        );
    }

    #[test]
    fn c10_getsubids_must_print_one_range() {
        assert_eq!(parse_getsubids("0: kubelet 65536 7208960\n").unwrap().length(), 7_208_960);
        for text in [
            "",
            "0: kubelet 1 2\n1: kubelet 3 4\n",
            "0: kubelet 1",
            "0: kubelet a b",
            "0: kubelet 1 4294967296",
        ] {
            assert!(parse_getsubids(text).is_err(), "{text}");
        }
    }

    #[test]
    fn accounts_are_read_from_passwd_and_group() {
        let found =
            parse_accounts("root:x:0:0:root:/root:/bin/bash\nbig:x:70000:70000::/:\n+nis\nbad:x:y:\n");
        assert_eq!(found, [("root".to_owned(), 0), ("big".to_owned(), 70_000)]);
        assert_eq!(parse_accounts("staff:x:50:ann,bob"), [("staff".to_owned(), 50)]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,80}") {
            let _ = (parse_subids(&text), parse_getsubids(&text), parse_accounts(&text));
        }
    }
}
