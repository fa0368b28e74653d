//! One line of a container log: `<time> <stream> <P|F> <content>`. Source: CRI's logging format.

use jiff::Timestamp;

/// Which of a container's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A parsed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) time: &'a [u8],
    pub(crate) stream: Stream,
    /// The container's line goes on in the next one.
    pub(crate) is_partial: bool,
    pub(crate) content: &'a [u8],
}

/// Parses a line with or without its newline. `None` for what is no log line.
pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = fields.next()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tags = fields.next()?;
    let is_partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    Some(Line { time, stream, is_partial, content: fields.next().unwrap_or_default() })
}

impl Line<'_> {
    /// The line's time, if it is one.
    pub(crate) fn timestamp(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let line = parse(b"2026-11-23T10:00:00.123456789Z stdout F hello  world\n").unwrap();
        assert_eq!(
            (line.stream, line.is_partial, line.content),
            (Stream::Stdout, false, &b"hello  world"[..])
        );
        assert_eq!(line.timestamp().unwrap().to_string(), "2026-11-23T10:00:00.123456789Z");
        assert!(parse(b"2026-11-23T10:00:00+02:00 stderr P x").unwrap().is_partial);
        assert_eq!(parse(b"2026-11-23T10:00:00Z stdout F ").unwrap().content, b"");
        assert_eq!(parse(b"2026-11-23T10:00:00Z stdout F").unwrap().content, b"");
        assert_eq!(parse(b"nonsense"), None);
        assert_eq!(parse(b"2026-11-23T10:00:00Z stdin F x"), None);
    }
}
