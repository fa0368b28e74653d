//! The difference of two values as a unified diff of their indented JSON.

use std::fmt::Write as _;

use serde::Serialize as _;
use serde_json::Value;

const CONTEXT: usize = 3;

/// One line of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Same(&'a str),
    Old(&'a str),
    New(&'a str),
}

/// The hunks that lead from `old` to `new`, with three lines of context; empty when they are equal.
pub(super) fn unified(old: &Value, new: &Value) -> String {
    let (old, new) = (pretty(old), pretty(new));
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let lines = compare(&old, &new);
    let mut out = String::new();
    for (start, end) in hunks(&lines) {
        write_hunk(&lines, start, end, &mut out);
    }
    out
}

fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // A JSON value always serializes, and a Vec takes every byte.
    let _ = value.serialize(&mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

/// Longest common subsequence of the lines that differ between a common head and a common tail.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (old.get(head..).unwrap_or_default(), new.get(head..).unwrap_or_default());
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let old_middle = old_rest.get(..old_rest.len() - tail).unwrap_or_default();
    let new_middle = new_rest.get(..new_rest.len() - tail).unwrap_or_default();
    let mut lines: Vec<Line<'_>> = old.iter().take(head).map(|l| Line::Same(l)).collect();
    lines.extend(middle(old_middle, new_middle));
    lines.extend(old_rest.iter().skip(old_middle.len()).map(|l| Line::Same(l)));
    lines
}

fn middle<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let width = new.len() + 1;
    let mut longest = vec![0_usize; (old.len() + 1) * width];
    let at = |table: &[usize], i: usize, j: usize| table.get(i * width + j).copied().unwrap_or_default();
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            let best = if a == b {
                at(&longest, i + 1, j + 1) + 1
            } else {
                at(&longest, i + 1, j).max(at(&longest, i, j + 1))
            };
            if let Some(cell) = longest.get_mut(i * width + j) {
                *cell = best;
            }
        }
    }
    let mut lines = Vec::new();
    let (mut i, mut j) = (0, 0);
    loop {
        match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) if a == b => {
                lines.push(Line::Same(a));
                (i, j) = (i + 1, j + 1);
            }
            (Some(a), other) if other.is_none() || at(&longest, i + 1, j) >= at(&longest, i, j + 1) => {
                lines.push(Line::Old(a));
                i += 1;
            }
            (_, Some(b)) => {
                lines.push(Line::New(b));
                j += 1;
            }
            _ => return lines,
        }
    }
}

/// Ranges of lines: each change with its context, joined where the contexts meet.
fn hunks(lines: &[Line<'_>]) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        if matches!(line, Line::Same(_)) {
            continue;
        }
        let (start, end) = (i.saturating_sub(CONTEXT), (i + CONTEXT + 1).min(lines.len()));
        match out.last_mut() {
            Some((_, last)) if start <= *last => *last = end,
            _ => out.push((start, end)),
        }
    }
    out
}

fn write_hunk(lines: &[Line<'_>], start: usize, end: usize, out: &mut String) {
    let count = |range: &[Line<'_>], old: bool| {
        range
            .iter()
            .filter(|l| if old { !matches!(l, Line::New(_)) } else { !matches!(l, Line::Old(_)) })
            .count()
    };
    let before = lines.get(..start).unwrap_or_default();
    let hunk = lines.get(start..end).unwrap_or_default();
    let range = |old: bool| match (count(before, old), count(hunk, old)) {
        (first, 1) => (first + 1).to_string(),
        (first, 0) => format!("{first},0"),
        (first, n) => format!("{},{n}", first + 1),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "@@ -{} +{} @@", range(true), range(false));
    for line in hunk {
        let (sign, text) = match line {
            Line::Same(text) => (' ', text),
            Line::Old(text) => ('-', text),
            Line::New(text) => ('+', text),
        };
        let _ = writeln!(out, "{sign}{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_changed_field_is_shown_with_its_neighbours() {
        let old = json!({"a": 1, "b": 2, "c": 3, "d": true, "e": 5, "f": 6, "g": 7});
        let new = json!({"a": 1, "b": 2, "c": 3, "d": false, "e": 5, "f": 6, "g": 7});
        assert_eq!(
            unified(&old, &new),
            "@@ -2,7 +2,7 @@\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3,\n- \"d\": true,\n+ \"d\": false,\n  \"e\": 5,\n  \"f\": 6,\n  \"g\": 7\n"
        );
        assert_eq!(unified(&old, &old), "");
    }

    #[test]
    fn far_changes_are_hunks_of_their_own() {
        let list = |first: i32, last: i32| {
            let mut values: Vec<i32> = (0..20).collect();
            values[0] = first;
            values[19] = last;
            json!(values)
        };
        let diff = unified(&list(100, 19), &list(0, 200));
        assert_eq!(diff.matches("@@ -").count(), 2);
        assert!(diff.contains("- 100,\n+ 0,\n") && diff.contains("- 19\n+ 200\n"), "{diff}");
    }
}
