//! The cases of the behaviour's specification (user namespaces, section 7): each is in the name of a test, or a test
//! file's head says why there is none. It does not judge what a test shows.

use std::collections::BTreeSet;

/// The letters and how many cases each has, from 1 on.
const CASES: &[(char, u8)] = &[
    ('A', 18),
    ('B', 8),
    ('C', 16),
    ('D', 13),
    ('E', 23),
    ('F', 13),
    ('G', 22),
    ('H', 20),
    ('S', 20),
    ('T', 8),
];

/// Those without a test, and the file whose head says why.
const EXPLAINED: &[(&str, &str)] = &[
    ("D11", "crates/userns/src/ledger/tests.rs"),
    ("D12", "crates/userns/src/ledger/tests.rs"),
    ("G18", "crates/runtime/tests/it/roots.rs"),
    ("H08", "tests/tests/mounts.rs"),
];

/// What the files have shown so far.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    tested: BTreeSet<String>,
    explained: BTreeSet<&'static str>,
}

impl Cases {
    /// Takes a file's tests and the reasons in its head. `path` is relative to the workspace.
    pub(crate) fn note(&mut self, path: &str, text: &str) {
        self.tested.extend(test_names(text).flat_map(cases_of));
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        let reasons = EXPLAINED.iter().filter(|(case, file)| *file == path && head.contains(case));
        self.explained.extend(reasons.map(|(case, _)| *case));
    }

    /// What is missing, and which reason is one no more.
    pub(crate) fn faults(&self) -> Vec<String> {
        let all = CASES.iter().flat_map(|(letter, last)| (1..=*last).map(move |n| format!("{letter}{n:02}")));
        let missing =
            all.filter(|case| !self.tested.contains(case) && !self.explained.contains(case.as_str()));
        let stale = EXPLAINED.iter().filter(|(case, _)| self.tested.contains(*case));
        missing
            .map(|case| {
                format!("case {case} is in the name of no test, and no head of xtask/src/cases.rs's files says why")
            })
            .chain(stale.map(|(case, file)| {
                format!("case {case} has a test; {file} and xtask/src/cases.rs say that there is none")
            }))
            .collect()
    }
}

/// The names of a file's tests.
fn test_names(text: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if line.starts_with('#') {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            return None;
        }
        let line = line.strip_prefix("async ").unwrap_or(line);
        let name = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        let found = name.filter(|_| is_test);
        is_test = false;
        found
    })
}

/// The cases that a test's name begins with: `a06_…`, `h09_h10_…`, `c13_and_c16_…`, and `e07_to_e10_…` for all between.
fn cases_of(name: &str) -> Vec<String> {
    let mut cases: Vec<(char, u8)> = Vec::new();
    let mut is_range = false;
    for word in name.split('_') {
        match (word, case(word)) {
            (_, Some((letter, number))) => {
                let first = cases.last().filter(|_| is_range).map_or(number, |(_, before)| before + 1);
                cases.extend((first..=number).map(|number| (letter, number)));
                is_range = false;
            }
            ("to", None) => is_range = true,
            ("and", None) => {}
            _ => break,
        }
    }
    cases.into_iter().map(|(letter, number)| format!("{letter}{number:02}")).collect()
}

fn case(word: &str) -> Option<(char, u8)> {
    let mut letters = word.chars();
    let letter = letters.next().filter(char::is_ascii_lowercase)?.to_ascii_uppercase();
    let digits = letters.as_str();
    (digits.len() == 2).then(|| digits.parse().ok()).flatten().map(|number| (letter, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_cases() {
        let of = |name| cases_of(name).join(" ");
        assert_eq!(of("a06_the_nodes_processes"), "A06");
        assert_eq!(of("h09_h10_h18_volumes"), "H09 H10 H18");
        assert_eq!(of("e07_to_e10_e12_e13_a_bad_record"), "E07 E08 E09 E10 E12 E13");
        assert_eq!(of("c13_and_c16_a_pool"), "C13 C16");
        assert_eq!(of("a_test_of_a06"), "");
    }

    #[test]
    fn only_tests_count_and_only_the_named_files_head_explains() {
        let mut cases = Cases::default();
        cases.note("x.rs", "//! D11 is nothing.\n#[test]\n#[ignore]\nfn a01_is() {}\nfn a02_is_none() {}\n");
        assert_eq!(cases.tested, BTreeSet::from(["A01".to_owned()]));
        assert!(cases.explained.is_empty());
        cases.note("crates/userns/src/ledger/tests.rs", "//! D11 has no test.\n\n// D12\n");
        assert_eq!(cases.explained, BTreeSet::from(["D11"]));
        assert!(cases.faults().iter().any(|fault| fault.contains("A02")));
        assert!(!cases.faults().iter().any(|fault| fault.contains("A01") || fault.contains("D11")));
    }
}
