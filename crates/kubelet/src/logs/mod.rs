//! Container logs: the CRI line format, reading with the options of `kubectl logs`, following, rotation.

pub(crate) mod line;
pub(crate) mod read;
pub(crate) mod rotate;
pub(crate) mod watch;

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Bytes of a log that may become a termination message, and its lines.
const MESSAGE_BYTES: u64 = 2048;
const MESSAGE_LINES: usize = 80;

/// Removes the log of one run of a container, with what rotation made of it.
pub(crate) fn remove_run(directory: &Path, restart_count: i32) {
    let prefix = format!("{restart_count}.log");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_string_lossy().strip_prefix(&prefix).map(str::to_owned);
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::debug!(file = %entry.path().display(), %error, "old log not removed");
        }
    }
}

/// The end of a log as a termination message: at most 80 lines and 2048 bytes.
pub(crate) fn tail_for_message(log: &Path) -> Vec<u8> {
    let text = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        // Twice the bytes: each line carries its time and stream.
        file.seek(SeekFrom::Start(length.saturating_sub(4 * MESSAGE_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = text().unwrap_or_default();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let from = lines.len().saturating_sub(MESSAGE_LINES);
    let contents = lines.get(from..).unwrap_or_default().iter().filter_map(|line| line::parse(line));
    let mut message: Vec<u8> = Vec::new();
    for parsed in contents {
        message.extend_from_slice(parsed.content);
        if !parsed.is_partial {
            message.push(b'\n');
        }
    }
    let limit = usize::try_from(MESSAGE_BYTES).unwrap_or(usize::MAX);
    let from = message.len().saturating_sub(limit);
    message.split_off(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_logs_go_with_their_rotations_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1.log", "1.log.20260101-000000", "10.log", "11.log.x"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        remove_run(directory.path(), 1);
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["10.log", "11.log.x"]);
    }

    #[test]
    fn the_end_of_a_log_becomes_a_message() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        let lines: Vec<_> = (0..100).map(|n| format!("2026-01-01T00:00:00Z stderr F line {n}\n")).collect();
        fs::write(&log, lines.concat()).unwrap();
        let message = String::from_utf8(tail_for_message(&log)).unwrap();
        assert!(message.ends_with("line 99\n"));
        assert!(message.starts_with("line 20\n"), "{message}");
        assert_eq!(tail_for_message(&directory.path().join("none")), b"");
    }
}
