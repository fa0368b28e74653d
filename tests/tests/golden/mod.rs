//! Texts held in files beside this one: what differs from run to run is replaced by a name first. `UPDATE_GOLDEN=1`
//! writes the files anew; read the difference before you commit it.

use std::fs;
use std::path::Path;

/// Compares a text with its file.
#[track_caller]
pub(crate) fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    let wrong: Vec<String> = difference(&held, text);
    assert!(
        wrong.is_empty(),
        "{} differs (`-` the file, `+` now; UPDATE_GOLDEN=1 writes it anew):\n{}",
        path.display(),
        wrong.join("\n")
    );
}

/// The lines that only one of the two texts has, from the first difference to the last.
fn difference(held: &str, now: &str) -> Vec<String> {
    let (held, now): (Vec<&str>, Vec<&str>) = (held.lines().collect(), now.lines().collect());
    let same = held.iter().zip(&now).take_while(|(a, b)| a == b).count();
    let tail = held.iter().rev().zip(now.iter().rev()).take_while(|(a, b)| a == b).count();
    let tail = tail.min(held.len() - same).min(now.len() - same);
    let gone = held[same..held.len() - tail].iter().map(|line| format!("-{line}"));
    gone.chain(now[same..now.len() - tail].iter().map(|line| format!("+{line}"))).collect()
}

/// A text without what no two runs share: `names` (a text and what stands for it), UIDs, digests, Pod addresses,
/// durations, PIDs and other large numbers.
pub(crate) fn normalise(text: &str, names: &[(&str, &str)]) -> String {
    let text = names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-');
    let mut out = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(&stand_in(word));
        let next = after.find(is_word).unwrap_or(after.len());
        out.push_str(&after[..next]);
        rest = &after[next..];
    }
    out
}

/// What stands for a word.
fn stand_in(word: &str) -> String {
    let bare = word.trim_end_matches(['.', ':']);
    let tail = &word[bare.len()..];
    if let Some((before, _)) = bare.rsplit_once(':').filter(|(_, hex)| is_hex(hex, 64)) {
        return format!("{before}:DIGEST{tail}");
    }
    let name = match bare {
        _ if is_uuid(bare) => "UID",
        _ if is_hex(bare, 64) => "ID",
        _ if is_duration(bare) => "TIME",
        _ if bare.len() >= 6 && bare.bytes().all(|b| b.is_ascii_digit()) => "NUMBER",
        _ if bare.starts_with("10.2") && bare.split('.').count() == 4 => "POD-IP",
        _ => bare,
    };
    format!("{name}{tail}")
}

fn is_hex(word: &str, length: usize) -> bool {
    word.len() == length && word.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_uuid(word: &str) -> bool {
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && word.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

fn is_duration(word: &str) -> bool {
    let number = word.strip_suffix("ms").or_else(|| word.strip_suffix('s'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b == b'.' || b.is_ascii_digit()))
}
