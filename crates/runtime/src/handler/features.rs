//! What an OCI runtime says that it can do: `features` where it has that verb (the OCI runtime specification's document),
//! else its version, for runc and crun had user namespaces and recursive read-only mounts long before it.
//!
//! ID-mapped mounts are no condition: what these runtimes mount is mapped already when they see it.

use std::path::Path;

use serde::Deserialize;

use super::command::run;

/// What a handler can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandlerFeatures {
    /// Pods in user namespaces of their own.
    pub(crate) user_namespaces: bool,
    /// Read-only mounts whose submounts are read-only too.
    pub(crate) recursive_read_only: bool,
    /// Why there are no user namespaces; empty where there are.
    pub(crate) reason: String,
    /// The first line of what it says of its version; empty where it said nothing.
    pub(crate) version: String,
}

/// The document, as far as it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    mount_options: Vec<String>,
    #[serde(default)]
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<String>,
}

impl HandlerFeatures {
    /// Asks the program.
    pub(super) fn probe(program: &Path) -> Self {
        let version = match run(program, &["--version"]) {
            Ok(text) => text.lines().next().unwrap_or_default().trim().to_owned(),
            Err(error) => return Self { reason: error.to_string(), ..Self::default() },
        };
        decide(version, run(program, &["features"]).ok().as_deref())
    }
}

fn decide(version: String, features: Option<&str>) -> HandlerFeatures {
    let document = features.and_then(|text| serde_json::from_str::<Document>(text).ok());
    let Some(document) = document else {
        let is_known = ["runc version ", "crun version "].iter().any(|known| version.starts_with(known));
        let reason = format!(
            "it has no `features` verb, and its version ({version:?}) is neither runc's nor crun's, so nothing is known \
             of its user namespaces"
        );
        return HandlerFeatures {
            user_namespaces: is_known,
            recursive_read_only: is_known,
            reason: if is_known { String::new() } else { reason },
            version,
        };
    };
    let user_namespaces = document.linux.namespaces.iter().any(|kind| kind == "user");
    let reason = "its `features` do not list the namespace \"user\"".to_owned();
    HandlerFeatures {
        user_namespaces,
        recursive_read_only: document.mount_options.iter().any(|option| option == "rro"),
        reason: if user_namespaces { String::new() } else { reason },
        version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_count_where_there_are_any_and_else_the_version_of_runc_and_crun() {
        let of = |version: &str, features| decide(version.to_owned(), features);
        let whole = r#"{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["mount", "user"]}}"#;
        let runc = of("runc version 1.1.5", Some(whole));
        assert!(runc.user_namespaces && runc.recursive_read_only && runc.reason.is_empty());
        let crun = of("crun version 1.8.1", None);
        assert!(crun.user_namespaces && crun.recursive_read_only && crun.reason.is_empty());

        let without = of("x 1", Some(r#"{"linux": {"namespaces": ["mount"]}}"#));
        assert!(!without.user_namespaces && !without.recursive_read_only);
        assert!(without.reason.contains("\"user\""), "{}", without.reason);
        let unknown = of("runsc version release-1", Some("unknown command"));
        assert!(!unknown.user_namespaces && unknown.reason.contains("runsc"), "{}", unknown.reason);
    }

    #[test]
    fn a_program_that_fails_has_no_features_and_its_words_are_the_reason() {
        let features = HandlerFeatures::probe(Path::new("/bin/false"));
        assert!(!features.user_namespaces && features.version.is_empty());
        assert!(features.reason.contains("/bin/false"), "{}", features.reason);
    }
}
