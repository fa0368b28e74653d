//! `kakoi who-owns`: whose an ID, a range, a file or a process is. It reads the records and `/proc`, so that it answers
//! while the daemon is down, too.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kubelet::idspace::MachineFiles;
use serde::Serialize;
use userns::{IdRange, Ownership, Snapshot};

use crate::cli::{OutputFormat, WhoOwns};
use crate::ids::{self, IdsError};
use crate::output;
use crate::places::Places;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    User(u32),
    Group(u32),
    Range(IdRange),
    Path(PathBuf),
    Process(u32),
}

/// A word that names nothing that could be owned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no UID, `gid:N`, `FIRST-LAST`, absolute path or `pid:N`")]
pub(crate) struct BadSubject(String);

impl FromStr for Subject {
    type Err = BadSubject;

    fn from_str(text: &str) -> Result<Self, BadSubject> {
        let bad = || BadSubject(text.to_owned());
        let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
        if text.starts_with('/') {
            return Ok(Self::Path(text.into()));
        }
        if let Some((kind, rest)) = text.split_once(':') {
            return match kind {
                "uid" => number(rest).map(Self::User),
                "gid" => number(rest).map(Self::Group),
                "pid" => number(rest).map(Self::Process),
                _ => Err(bad()),
            };
        }
        match text.split_once('-') {
            None => number(text).map(Self::User),
            Some((first, last)) => {
                let (first, last) = (u64::from(number(first)?), u64::from(number(last)?));
                let length = (last + 1).checked_sub(first).ok_or_else(bad)?;
                IdRange::new(first, length).map(Self::Range).map_err(|_| bad())
            }
        }
    }
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    #[error(transparent)]
    Ids(#[from] IdsError),
    #[error("can't look at {what}: {cause}")]
    Look { what: String, cause: io::Error },
    #[error("there is no process {0}")]
    NoProcess(u32),
    #[error("can't print as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// One answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// What it is about: `131072`, `the owner of /srv/x (UID 131072)`.
    of: String,
    #[serde(flatten)]
    owner: Ownership,
}

/// Prints who owns what was named.
pub(crate) fn who_owns(query: &WhoOwns) -> Result<(), OwnerError> {
    let root = &query.query.instance.root;
    let desk = Desk { snapshot: ids::snapshot(root)?, places: Places::new(root) };
    let (answers, notes) = desk.answer(&query.what)?;
    if query.query.output.output == OutputFormat::Json {
        let text = match (&query.what, answers.as_slice()) {
            (Subject::User(_) | Subject::Group(_), [one]) => serde_json::to_string_pretty(&one.owner)?,
            _ => serde_json::to_string_pretty(&serde_json::json!({"owners": answers, "notes": notes}))?,
        };
        output::line(text);
        return Ok(());
    }
    for answer in &answers {
        output::line(format!("{}: {}", answer.of, answer.owner));
    }
    notes.iter().for_each(output::line);
    Ok(())
}

/// What answers are made from.
struct Desk {
    snapshot: Snapshot,
    places: Places,
}

impl Desk {
    fn answer(&self, subject: &Subject) -> Result<(Vec<Answer>, Vec<String>), OwnerError> {
        match subject {
            Subject::User(id) => Ok((vec![self.user(id.to_string(), *id)], Vec::new())),
            Subject::Group(id) => Ok((vec![self.group(id.to_string(), *id)], Vec::new())),
            Subject::Range(range) => {
                let parts = self.snapshot.who_owns_range(*range);
                let answers = parts.into_iter().map(|(part, owner)| Answer { of: part.to_string(), owner });
                Ok((answers.collect(), Vec::new()))
            }
            Subject::Path(path) => self.file(path),
            Subject::Process(pid) => self.process(*pid),
        }
    }

    fn user(&self, of: String, id: u32) -> Answer {
        Answer { of, owner: self.snapshot.who_owns(id) }
    }

    /// As [`user`](Self::user), but where an account would own the ID, the group of that number does.
    fn group(&self, of: String, id: u32) -> Answer {
        let groups = MachineFiles::default().accounts("group").unwrap_or_default();
        let named = groups.into_iter().find(|group| group.id == id).map(|group| group.name);
        let owner = match (self.snapshot.without_accounts().who_owns(id), named) {
            (Ownership::Free | Ownership::Outside { .. } | Ownership::Reserved(_), Some(name)) => {
                Ownership::Group { name }
            }
            (owner, _) => owner,
        };
        Answer { of, owner }
    }

    fn file(&self, path: &Path) -> Result<(Vec<Answer>, Vec<String>), OwnerError> {
        let look = |cause| OwnerError::Look { what: path.display().to_string(), cause };
        let meta = fs::symlink_metadata(path).map_err(look)?;
        let shown = path.display();
        let answers = vec![
            self.user(format!("the owner of {shown} (UID {})", meta.uid()), meta.uid()),
            self.group(format!("the group of {shown} (GID {})", meta.gid()), meta.gid()),
        ];
        let note = self.pod_directory(path).map(|pod| {
            format!(
                "{shown} lies in the directory of {}; there, IDs are the Pod's own and mounts translate them",
                self.pod(&pod)
            )
        });
        Ok((answers, note.into_iter().collect()))
    }

    /// The UID of the Pod in whose directory a path lies.
    fn pod_directory(&self, path: &Path) -> Option<String> {
        let pods = self.places.kubelet().join("pods");
        let rest = path.canonicalize().ok()?.strip_prefix(pods.canonicalize().ok()?).ok()?.to_owned();
        Some(rest.components().next()?.as_os_str().to_str()?.to_owned())
    }

    fn pod(&self, uid: &str) -> String {
        let name = ids::pod_name(&self.places, uid);
        format!("the Pod {} (UID {uid})", name.as_deref().unwrap_or("of unknown name"))
    }

    fn process(&self, pid: u32) -> Result<(Vec<Answer>, Vec<String>), OwnerError> {
        let read = |name: &str| match fs::read_to_string(format!("/proc/{pid}/{name}")) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(OwnerError::NoProcess(pid)),
            Err(cause) => Err(OwnerError::Look { what: format!("/proc/{pid}/{name}"), cause }),
            Ok(text) => Ok(text),
        };
        let (status, groups) = (read("status")?, read("cgroup")?);
        let id = |field: &str| -> Option<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let name = status.lines().find_map(|line| line.strip_prefix("Name:\t")).unwrap_or_default();
        let head = format!("the process {pid} ({name})");
        let mut answers = Vec::new();
        answers.extend(id("Uid:").map(|id| self.user(format!("{head}, UID {id}"), id)));
        answers.extend(id("Gid:").map(|id| self.group(format!("{head}, GID {id}"), id)));
        let note = match pod_of_cgroup(&groups) {
            Some(uid) => format!("{head} is in the control group of {}", self.pod(uid)),
            None => format!("{head} is in no Pod's control group"),
        };
        Ok((answers, vec![note]))
    }
}

/// The UID of the Pod in whose control group a process is: `…/pod<uid>/…` in any hierarchy.
fn pod_of_cgroup(groups: &str) -> Option<&str> {
    let parts = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split('/'));
    let uids = parts.filter_map(|part| part.strip_prefix("pod"));
    uids.into_iter().find(|uid| userns::PodUid::parse(uid).is_ok() && uid.len() > 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_question_is_read() {
        let range = IdRange::new(131_072, 65_536).unwrap();
        for (text, expected) in [
            ("131072", Subject::User(131_072)),
            ("uid:5", Subject::User(5)),
            ("gid:5", Subject::Group(5)),
            ("131072-196607", Subject::Range(range)),
            ("/srv/data", Subject::Path("/srv/data".into())),
            ("pid:1", Subject::Process(1)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "x", "5-4", "sid:1", "4294967296", "-1"] {
            text.parse::<Subject>().unwrap_err();
        }
    }

    #[test]
    fn a_process_is_told_by_its_control_group_in_v1_and_v2() {
        let uid = "0b1c2d3e-0000-4000-8000-000000000000";
        for text in [
            format!("0::/kakoi/besteffort/pod{uid}/abc\n"),
            format!("5:memory:/kakoi-0a/pod{uid}\n1:name=systemd:/\n"),
        ] {
            assert_eq!(pod_of_cgroup(&text), Some(uid));
        }
        assert_eq!(pod_of_cgroup("0::/user.slice/podman\n"), None);
    }
}
