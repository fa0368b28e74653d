//! The one place that prints for people and scripts: results to standard output, everything else to standard
//! error. A reader that has gone away is no error.

use std::io::{self, Write};

/// Prints a line of a command's result.
pub(crate) fn line(text: impl AsRef<str>) {
    write(&mut io::stdout().lock(), text.as_ref());
}

/// Prints a line that is not the result.
pub(crate) fn note(text: impl AsRef<str>) {
    write(&mut io::stderr().lock(), text.as_ref());
}

fn write(to: &mut impl Write, text: &str) {
    // The reader has closed its end: nobody is left to be told.
    let _ = writeln!(to, "{text}").and_then(|()| to.flush());
}
