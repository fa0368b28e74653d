//! How far a pull is, for the person who waits: a bar that is drawn over itself on a terminal, a line for each layer
//! elsewhere. All of it goes to standard error; it decides nothing.

use std::io::{IsTerminal as _, Write as _};

use image::Progress;

use crate::images::size;
use crate::output;

/// Columns of the bar itself.
const BAR: usize = 30;

/// What a person has been shown of a pull. Dropped, it leaves no bar behind.
pub(crate) struct Shown<'a> {
    reference: &'a str,
    is_terminal: bool,
    last: Option<Progress>,
}

impl<'a> Shown<'a> {
    pub(crate) fn of(reference: &'a str) -> Self {
        Self { reference, is_terminal: std::io::stderr().is_terminal(), last: None }
    }

    /// Shows how far it is now, if something has to be fetched and has come.
    pub(crate) fn tell(&mut self, now: Progress) {
        let last = self.last.replace(now);
        if now.bytes == 0 || last == Some(now) {
            return;
        }
        if self.is_terminal {
            draw(&format!("{} {}", self.reference, bar(now)));
        } else if now.layers_done != last.map_or(0, |last| last.layers_done) {
            output::note(format!("{}: {}", self.reference, counts(now)));
        }
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if self.is_terminal && self.last.is_some() {
            draw("");
        }
    }
}

/// In the place of what the line shows. The cursor stays at its end.
fn draw(text: &str) {
    let mut error = std::io::stderr().lock();
    // The reader has closed its end: nobody is left to be shown anything.
    let _ = write!(error, "\r\x1b[2K{text}").and_then(|()| error.flush());
}

fn bar(now: Progress) -> String {
    let done = usize::try_from(now.bytes_done.saturating_mul(BAR as u64) / now.bytes.max(1)).unwrap_or(BAR);
    let done = done.min(BAR);
    format!("[{}{}] {}", "#".repeat(done), ".".repeat(BAR - done), counts(now))
}

fn counts(now: Progress) -> String {
    let Progress { layers, layers_done, bytes, bytes_done } = now;
    format!("{layers_done} of {layers} layers, {} of {}", size(bytes_done), size(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_the_bytes_are_here() {
        let at = |bytes_done, bytes| bar(Progress { layers: 3, layers_done: 1, bytes, bytes_done });
        assert_eq!(at(0, 0), "[..............................] 1 of 3 layers, 0 B of 0 B");
        assert_eq!(
            at(45_000_000, 90_000_000),
            "[###############...............] 1 of 3 layers, 45.0 MB of 90.0 MB"
        );
        assert!(at(u64::MAX, 1).starts_with("[##############################]"), "never longer than it is");
    }
}
