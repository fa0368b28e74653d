//! Texts held in the files of `golden/`, without what no two runs share. `UPDATE_GOLDEN=1` writes the files anew; the
//! difference is to be read before it is committed.

use std::path::{Path, PathBuf};

/// Where a text is held.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares a text with its file.
#[track_caller]
pub(crate) fn golden(name: &str, text: &str) {
    let path = path(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let first = kept.lines().zip(text.lines()).position(|(kept, now)| kept != now);
    let at = first.unwrap_or_else(|| kept.lines().count().min(text.lines().count()));
    let (kept_line, line) = (kept.lines().nth(at), text.lines().nth(at));
    assert!(
        text == kept,
        "{name} has changed; UPDATE_GOLDEN=1 writes it anew. Line {}: {line:?}, was {kept_line:?}",
        at + 1
    );
}

/// A text with a name for each age, time, UID, port, token and temporary file, and without the widths of its columns.
pub(crate) fn steady(text: &str) -> String {
    text.lines().map(|line| steady_line(line) + "\n").collect()
}

fn steady_line(line: &str) -> String {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let mut steady: Vec<String> = Vec::new();
    let mut rest = words.as_slice();
    while let Some((word, after)) = rest.split_first() {
        let taken = words_of_time(rest);
        let is_version = steady.last().is_some_and(|before| before == "resourceVersion:");
        steady.push(match taken {
            0 if is_version => "REVISION".to_owned(),
            0 => stand_in(word),
            _ => "TIME".to_owned(),
        });
        rest = rest.get(taken..).filter(|_| taken > 0).unwrap_or(after);
    }
    steady.join(" ")
}

/// How many words at the beginning are one date with its time.
fn words_of_time(words: &[&str]) -> usize {
    match words {
        // `Mon, 02 Jan 2006 15:04:05 +0000`
        [day, _, _, _, time, zone, ..] if day.len() == 4 && is_clock(time) && zone.starts_with('+') => 6,
        // `2006-01-02 15:04:05.999 +0000`
        [day, time, zone, ..] if is_day(day) && is_clock(time) && zone.starts_with('+') => 3,
        _ => 0,
    }
}

fn is_clock(word: &str) -> bool {
    word.split(':').count() == 3 && word.starts_with(|first: char| first.is_ascii_digit())
}

fn is_day(word: &str) -> bool {
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    lengths == [4, 2, 2] && word.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit())
}

fn stand_in(word: &str) -> String {
    let bare = word.trim_matches(['"', ',', '(', ')']);
    if bare.contains("127.0.0.1:") {
        return without_port(word);
    }
    let name = match bare {
        _ if is_age(bare) => "AGE",
        _ if is_stamp(bare) => "TIME",
        _ if bare.len() > 200 && bare.split('.').count() == 3 => "TOKEN",
        _ if bare.starts_with("/tmp/") => "FILE",
        _ if bare.starts_with("node-debugger-") => "DEBUGGER",
        _ if bare.starts_with("kube-api-access-") => "TOKEN-VOLUME",
        _ if bare.contains("X509SHA256=") => "CREDENTIAL",
        _ => return without_uid(word),
    };
    word.replace(bare, name)
}

/// `5s`: no session takes the two minutes after which ages are in minutes.
fn is_age(word: &str) -> bool {
    let digits = word.strip_suffix('s').unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// `2006-01-02T15:04:05Z`
fn is_stamp(word: &str) -> bool {
    word.split_once('T').is_some_and(|(day, time)| is_day(day) && is_clock(time))
}

fn without_port(word: &str) -> String {
    let (head, port) = word.split_once("127.0.0.1:").unwrap_or((word, ""));
    format!("{head}127.0.0.1:PORT{}", port.trim_start_matches(|digit: char| digit.is_ascii_digit()))
}

fn without_uid(word: &str) -> String {
    let is_part = |c: char| c == '-' || c.is_ascii_hexdigit();
    let uid = word.split(|c| !is_part(c)).find(|part| part.len() == 36 && part.matches('-').count() == 4);
    uid.map_or_else(|| word.to_owned(), |uid| word.replace(uid, "UID"))
}
