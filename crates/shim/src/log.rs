//! A container's log in the CRI format: `2026-11-23T12:00:00.000000000Z stdout F text`, one line each.
//!
//! `P` marks a piece of a line: one longer than [`MAX_LINE`], or a last one without a newline.

use std::fs::File;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longer lines are split; the field's runtimes use the same length.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// Which stream a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The log of one container.
#[derive(Debug, Default)]
pub(crate) struct Log {
    file: Option<File>,
    /// Unfinished lines of both streams.
    pending: [Vec<u8>; 2],
    out: Vec<u8>,
    /// Bytes that could not be written (full disk); the container goes on.
    lost: u64,
}

impl Log {
    pub(crate) fn new(file: Option<File>) -> Self {
        Log { file, ..Self::default() }
    }

    /// Goes on in another file.
    pub(crate) fn reopen(&mut self, file: File) {
        self.file = Some(file);
        self.lost = 0;
    }

    /// Takes output as it was read.
    pub(crate) fn write(&mut self, stream: Stream, mut bytes: &[u8], now: SystemTime) {
        if self.file.is_none() {
            return;
        }
        let stamp = timestamp(now);
        while !bytes.is_empty() {
            let pending = self.pending.get(usize::from(stream == Stream::Stderr)).map_or(0, Vec::len);
            let room = (MAX_LINE - pending).min(bytes.len());
            let (head, _) = bytes.split_at(room);
            let newline = head.iter().position(|byte| *byte == b'\n');
            let (line, rest) = bytes.split_at(newline.unwrap_or(room));
            if let Some(pending) = self.pending.get_mut(usize::from(stream == Stream::Stderr)) {
                pending.extend_from_slice(line);
            }
            bytes = rest;
            if newline.is_some() {
                bytes = rest.get(1..).unwrap_or_default();
                self.emit(stream, 'F', &stamp);
            } else if pending + line.len() == MAX_LINE {
                self.emit(stream, 'P', &stamp);
            }
        }
        self.flush();
    }

    /// The stream has ended: a line without newline is written as a piece.
    pub(crate) fn end(&mut self, stream: Stream, now: SystemTime) {
        if self.pending.get(usize::from(stream == Stream::Stderr)).is_some_and(|pending| !pending.is_empty())
        {
            self.emit(stream, 'P', &timestamp(now));
            self.flush();
        }
    }

    fn emit(&mut self, stream: Stream, tag: char, stamp: &str) {
        let Some(pending) = self.pending.get_mut(usize::from(stream == Stream::Stderr)) else { return };
        let _ = write!(self.out, "{stamp} {} {tag} ", stream.name());
        self.out.append(pending);
        self.out.push(b'\n');
    }

    fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(&self.out) {
            if self.lost == 0 {
                crate::complain(&format!("cannot write a container's log, lines are lost: {error}"));
            }
            self.lost = self.lost.saturating_add(u64::try_from(self.out.len()).unwrap_or(u64::MAX));
        }
        self.out.clear();
    }
}

/// Nanoseconds since 1970.
pub(crate) fn nanoseconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// RFC 3339 in UTC with nine decimals.
fn timestamp(now: SystemTime) -> String {
    let nanos = nanoseconds(now);
    let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// The Gregorian date of a day since 1970-01-01, counted in eras of 400 years that begin on 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// A file for appending from a descriptor.
pub(crate) fn file_from(fd: std::os::fd::OwnedFd) -> io::Result<File> {
    let file = File::from(fd);
    file.metadata()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const STAMP: &str = "2026-11-23T12:00:00.000000007Z";

    fn noon() -> SystemTime {
        UNIX_EPOCH + Duration::new(1_795_435_200, 7)
    }

    fn logged(write: impl FnOnce(&mut Log)) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&mut Log::new(Some(file.reopen().unwrap())));
        std::fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(timestamp(noon()), STAMP);
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(47_482), (2100, 1, 1));
    }

    #[test]
    fn lines_are_whole_and_streams_do_not_mix() {
        let text = logged(|log| {
            log.write(Stream::Stdout, b"one\ntw", noon());
            log.write(Stream::Stderr, b"error\n", noon());
            log.write(Stream::Stdout, b"o\n", noon());
        });
        assert_eq!(text, format!("{STAMP} stdout F one\n{STAMP} stderr F error\n{STAMP} stdout F two\n"));
    }

    #[test]
    fn a_long_line_comes_in_pieces() {
        let text = logged(|log| {
            log.write(Stream::Stdout, &vec![b'x'; MAX_LINE + 3], noon());
            log.write(Stream::Stdout, b"\n", noon());
        });
        let tags: Vec<&str> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "F"]);
        assert!(text.ends_with("F xxx\n"));
    }

    #[test]
    fn a_last_line_without_newline_is_not_lost() {
        let text = logged(|log| {
            log.write(Stream::Stdout, b"end", noon());
            log.end(Stream::Stdout, noon());
        });
        assert_eq!(text, format!("{STAMP} stdout P end\n"));
    }
}
