//! Generates the schema table of the `api` crate: types and names from `k8s-openapi`,
//! protobuf numbers and markers from `k8s-pb`, the rest from a hand-kept overlay.
//! Only facts are taken (names, types, numbers, required fields); no text and no code.

use std::path::{Path, PathBuf};

mod join;
mod messages;
mod model;
mod openapi;
mod overlay;
mod source;
mod write;

/// What can go wrong while the table is made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// `cargo metadata` failed.
    #[error(
        "cannot list the workspace's packages with `cargo metadata`: {said}; run `cargo fetch` once with a network"
    )]
    Metadata {
        /// What cargo said.
        said: String,
    },
    /// A source crate is not in the lock file.
    #[error(
        "package `{name}` is not among the workspace's packages; it must stay an optional dependency of `xtask`"
    )]
    NoPackage {
        /// The package.
        name: &'static str,
    },
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The table cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of the overlay does not parse.
    #[error("overlay.txt line {line} is not understood: `{text}`")]
    Overlay {
        /// One-based line number.
        line: usize,
        /// The line.
        text: String,
    },
    /// The overlay names fields that do not exist.
    #[error("overlay.txt names fields that no type has: {}", names.join(", "))]
    Strays {
        /// `type.field` each.
        names: Vec<String>,
    },
    /// The committed table differs from the sources.
    #[error("{} is out of date; run `cargo xtask schema`", path.display())]
    Stale {
        /// The committed table.
        path: PathBuf,
    },
}

/// Writes the table, or with `--check` compares it.
pub(crate) fn run(check: bool) -> Result<(), Error> {
    let path = table_path();
    let table = generate()?;
    if check {
        return if source::read(&path)? == table { Ok(()) } else { Err(Error::Stale { path }) };
    }
    std::fs::write(&path, table).map_err(|source| Error::Write { path, source })
}

fn table_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/src/schema/table.txt")
}

fn generate() -> Result<String, Error> {
    let sources = source::find_sources()?;
    let mut types = openapi::read_types(&sources.openapi)?;
    // The kinds that are served by default: no alpha, no beta.
    types.retain(|name, _| {
        !name.contains(".v1alpha") && !name.contains(".v1beta") && !name.contains(".v2beta")
    });
    let messages = messages::read_messages(&sources.messages)?;
    let overlay = overlay::read_overlay()?;
    let strays = overlay.strays(&types);
    if !strays.is_empty() {
        return Err(Error::Strays { names: strays });
    }
    join::join(&mut types, &messages, &overlay);
    Ok(write::table(&types))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_table_is_what_the_sources_give() {
        if let Err(error) = super::run(true) {
            panic!("{error}");
        }
    }
}
