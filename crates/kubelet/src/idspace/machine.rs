//! What the machine has given away: sub-ID files, accounts, systemd's ranges in use, user namespaces that run.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use userns::{Account, IdRange, Machine, Reserved, SubIdEntry, SubIdError};

/// The account whose subordinate IDs are the pool.
const KUBELET: &str = "kubelet";

/// The UID ranges and the GID ranges of an account.
type Ranges = (Vec<IdRange>, Vec<IdRange>);

/// Where the machine keeps what it says about IDs. Tests bring files of their own.
#[derive(Clone, Debug)]
pub struct MachineFiles {
    /// `/etc`: `passwd`, `group`, `subuid`, `subgid`, `nsswitch.conf`.
    pub etc: PathBuf,
    /// `/run`: systemd's ranges in use.
    pub run: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// The program asked when `nsswitch.conf` names a `subid` source other than files.
    pub getsubids: PathBuf,
}

impl Default for MachineFiles {
    fn default() -> Self {
        let path = PathBuf::from;
        Self { etc: path("/etc"), run: path("/run"), proc: path("/proc"), getsubids: path("getsubids") }
    }
}

/// Why the machine's word can't be taken. This is configuration, so the node does not start.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file can't be read.
    #[error("can't read {}: {cause}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file's content is not usable.
    #[error("{}: {cause}", .path.display())]
    Content {
        /// The file, or the program that printed it.
        path: PathBuf,
        /// What is wrong.
        cause: SubIdError,
    },
    /// `getsubids` can't be run.
    #[error(
        "/etc/nsswitch.conf says that `{source_name}` knows the subordinate IDs, so `getsubids` must be asked, but \
         it can't be run: {cause}; install it (Debian: `apt install uidmap`) or let `subid:` name `files`"
    )]
    NoGetsubids {
        /// The source that `nsswitch.conf` names.
        source_name: String,
        /// What the system said.
        cause: io::Error,
    },
    /// `getsubids` failed.
    #[error("`getsubids {arguments}` ended with {status}: {said}; the subordinate ID source can't be asked")]
    Getsubids {
        /// Its arguments.
        arguments: String,
        /// How it ended.
        status: String,
        /// What it printed as its error.
        said: String,
    },
}

impl MachineFiles {
    /// Reads what the machine has given away, and the `kubelet` user's ranges.
    ///
    /// # Errors
    /// When a source can't be read or makes no sense; see [`MachineError`].
    pub fn read(&self) -> Result<Machine, MachineError> {
        let (accounts, groups) = (self.accounts("passwd")?, self.accounts("group")?);
        let uid = accounts.iter().find(|account| account.name == KUBELET).map(|account| account.id);
        let (for_users, for_groups) = (self.subids("subuid", uid)?, self.subids("subgid", uid)?);
        let kubelet = match uid {
            Some(uid) => self.kubelet_ranges(uid, &for_users, &for_groups)?,
            None => None,
        };
        let mut reserved = Vec::new();
        for (file, entries) in [("subuid", &for_users), ("subgid", &for_groups)] {
            let others = entries.iter().filter(|e| !is_kubelets(&e.owner, uid));
            reserved.extend(others.map(|e| given_to(e, &self.etc.join(file))));
        }
        for (what, named) in [("account", &accounts), ("group", &groups)] {
            let high = named.iter().filter(|account| account.id > 65_535 && account.id < u32::MAX);
            reserved.extend(high.map(|a| single(a.id, format!("the {what} `{}`", a.name))));
        }
        reserved.extend(self.systemd_ranges());
        Ok(Machine { kubelet, reserved })
    }

    /// The accounts and groups of the node, for `who-owns`.
    ///
    /// # Errors
    /// When `/etc/passwd` can't be read.
    pub fn accounts(&self, file: &str) -> Result<Vec<Account>, MachineError> {
        let accounts = userns::parse_accounts(&self.text(file)?);
        Ok(accounts.into_iter().map(|(name, id)| Account { id, name }).collect())
    }

    /// The file's entries. A bad line of another user is named in the log and passed over.
    fn subids(&self, file: &str, kubelet: Option<u32>) -> Result<Vec<SubIdEntry>, MachineError> {
        let (text, path) = (self.text(file)?, self.etc.join(file));
        let mut entries = Vec::new();
        for entry in userns::parse_subids(&text) {
            match entry {
                Ok(entry) => entries.push(entry),
                Err(cause) if cause.owner().is_some_and(|owner| is_kubelets(owner, kubelet)) => {
                    return Err(MachineError::Content { path, cause });
                }
                Err(cause) => tracing::warn!(file = %path.display(), %cause, "a line is passed over"),
            }
        }
        Ok(entries)
    }

    /// A file's text; one that does not exist is empty.
    fn text(&self, file: &str) -> Result<String, MachineError> {
        let path = self.etc.join(file);
        match fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(cause) => Err(MachineError::Read { path, cause }),
        }
    }

    fn kubelet_ranges(
        &self,
        uid: u32,
        for_users: &[SubIdEntry],
        for_groups: &[SubIdEntry],
    ) -> Result<Option<Ranges>, MachineError> {
        if let Some(source) = foreign_source(&self.text("nsswitch.conf")?) {
            let ask = |arguments: &[&str]| self.ask_getsubids(&source, arguments);
            return Ok(Some((vec![ask(&[KUBELET])?], vec![ask(&["-g", KUBELET])?])));
        }
        let ranges =
            |entries| userns::subids_of(entries, KUBELET, uid).iter().map(|e| e.range).collect::<Vec<_>>();
        let (uids, gids) = (ranges(for_users), ranges(for_groups));
        Ok((!uids.is_empty() || !gids.is_empty()).then_some((uids, gids)))
    }

    fn ask_getsubids(&self, source: &str, arguments: &[&str]) -> Result<IdRange, MachineError> {
        let output = Command::new(&self.getsubids).args(arguments).output();
        let output =
            output.map_err(|cause| MachineError::NoGetsubids { source_name: source.to_owned(), cause })?;
        if !output.status.success() {
            return Err(MachineError::Getsubids {
                arguments: arguments.join(" "),
                status: output.status.to_string(),
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let content = |cause| MachineError::Content { path: self.getsubids.clone(), cause };
        userns::parse_getsubids(&text).map_err(content)
    }

    /// Ranges that `systemd-nspawn` (one lock file per range of 65536, named by its first ID) and
    /// `systemd-nsresourced` (one JSON file per user namespace) have in use.
    fn systemd_ranges(&self) -> Vec<Reserved> {
        let nspawn = names(&self.run.join("systemd/nspawn-uid")).into_iter().filter_map(|(name, _)| {
            let range = IdRange::new(name.parse().ok()?, 65_536).ok()?;
            Some(Reserved { range, owner: "a systemd-nspawn container".to_owned() })
        });
        let registry =
            names(&self.run.join("systemd/nsresource/registry")).into_iter().filter_map(|(_, path)| {
                let entry: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
                let number = |key: &str| entry.get(key).and_then(serde_json::Value::as_u64);
                let range = IdRange::new(number("start")?, number("size")?).ok()?;
                Some(Reserved { range, owner: "a user namespace of systemd-nsresourced".to_owned() })
            });
        nspawn.chain(registry).collect()
    }
}

fn single(id: u32, owner: String) -> Reserved {
    Reserved { range: IdRange::single(id), owner }
}

fn is_kubelets(owner: &str, uid: Option<u32>) -> bool {
    uid.is_some_and(|uid| owner == KUBELET || owner == uid.to_string())
}

fn given_to(entry: &SubIdEntry, file: &Path) -> Reserved {
    Reserved { range: entry.range, owner: format!("the user `{}` in {}", entry.owner, file.display()) }
}

fn names(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path()))).collect()
}

/// The first source of `subid:` in `nsswitch.conf`, when it is not `files`.
fn foreign_source(nsswitch: &str) -> Option<String> {
    let line = nsswitch.lines().find_map(|line| line.trim().strip_prefix("subid:"))?;
    let source = line.split('#').next()?.split_whitespace().next()?;
    (source != "files").then(|| source.to_owned())
}

/// Host ranges that user namespaces of running processes map, but for the whole space of the initial one.
pub(super) fn mapped_ranges(proc_dir: &Path) -> BTreeSet<IdRange> {
    let pids = names(proc_dir).into_iter().filter(|(name, _)| name.bytes().all(|b| b.is_ascii_digit()));
    let maps = pids.flat_map(|(_, path)| [path.join("uid_map"), path.join("gid_map")]);
    maps.filter_map(|path| fs::read_to_string(path).ok()).flat_map(|text| host_ranges(&text)).collect()
}

/// The host side of a `uid_map`, read by a process of the initial user namespace.
pub fn host_ranges(uid_map: &str) -> Vec<IdRange> {
    let lines = uid_map.lines().filter_map(|line| {
        let numbers: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [_, host, length] = numbers.as_slice() else { return None };
        IdRange::new(*host, *length).ok().filter(|range| !(range.first() == 0 && range.length() == u32::MAX))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(contents: &[(&str, &str)]) -> (tempfile::TempDir, MachineFiles) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in contents {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let root = dir.path();
        let files = MachineFiles {
            etc: root.join("etc"),
            run: root.join("run"),
            proc: root.join("proc"),
            getsubids: root.join("getsubids"),
        };
        (dir, files)
    }

    fn script(dir: &tempfile::TempDir, body: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join("getsubids");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    const KUBELET_PASSWD: (&str, &str) =
        ("etc/passwd", "root:x:0:0::/:/bin/sh\nkubelet:x:999:999::/:/bin/false\n");
    const LDAP: (&str, &str) = ("etc/nsswitch.conf", "passwd: files\nsubid: sss # remote\n");

    #[test]
    fn c06_a_machine_without_files_has_given_nothing_away() {
        let (_dir, files) = files(&[]);
        let machine = files.read().unwrap();
        assert!(machine.kubelet.is_none() && machine.reserved.is_empty());
    }

    #[test]
    fn the_kubelets_ranges_are_read_natively_and_not_reserved() {
        let line = "ann:100000:65536\nkubelet:655360:7208960\n";
        let (_dir, files) = files(&[KUBELET_PASSWD, ("etc/subuid", line), ("etc/subgid", line)]);
        let machine = files.read().unwrap();
        let range = IdRange::new(655_360, 7_208_960).unwrap();
        assert_eq!(machine.kubelet, Some((vec![range], vec![range])));
        assert!(machine.reserved.iter().all(|r| r.owner.contains("`ann`")));
        assert_eq!(machine.reserved.len(), 2);
    }

    #[test]
    fn accounts_groups_and_systemds_containers_are_reserved() {
        let (_dir, files) = files(&[
            ("etc/passwd", "big:x:200000:200000::/:\nnobody:x:65534:65534::/:\n"),
            ("etc/group", "bigger:x:300000:\n"),
            ("run/systemd/nspawn-uid/1048576", ""),
            ("run/systemd/nsresource/registry/n1.userns", r#"{"start":917504,"size":65536}"#),
        ]);
        let owners: Vec<_> =
            files.read().unwrap().reserved.into_iter().map(|r| (r.range.first(), r.owner)).collect();
        assert_eq!(owners.len(), 4);
        assert_eq!(owners[0], (200_000, "the account `big`".to_owned()));
        assert_eq!(owners[1], (300_000, "the group `bigger`".to_owned()));
        assert_eq!((owners[2].0, owners[3].0), (1_048_576, 917_504));
    }

    #[test]
    fn c07_a_remote_source_without_getsubids_is_refused_with_the_packages_name() {
        let (_dir, files) = files(&[KUBELET_PASSWD, LDAP]);
        let text = files.read().unwrap_err().to_string();
        assert!(text.contains("`sss`") && text.contains("uidmap"), "{text}");
    }

    #[test]
    fn c08_a_failing_getsubids_is_refused() {
        let (dir, files) = files(&[KUBELET_PASSWD, LDAP]);
        script(&dir, "echo unreachable >&2; exit 1");
        let text = files.read().unwrap_err().to_string();
        assert!(text.contains("getsubids kubelet") && text.contains("unreachable"), "{text}");
    }

    #[test]
    fn c09_getsubids_answers_for_users_and_groups_are_kept_apart() {
        let (dir, files) = files(&[KUBELET_PASSWD, LDAP]);
        script(&dir, r#"[ "$1" = -g ] && echo "0: kubelet 131072 65536" || echo "0: kubelet 65536 65536""#);
        let (uids, gids) = files.read().unwrap().kubelet.unwrap();
        assert_ne!(uids, gids);
    }

    #[test]
    fn c10_getsubids_nonsense_is_refused() {
        let (dir, files) = files(&[KUBELET_PASSWD, LDAP]);
        for output in ["0: kubelet 1", "0: kubelet a b", "0: kubelet 65536 4294967296", ""] {
            script(&dir, &format!("echo '{output}'"));
            files.read().unwrap_err();
        }
    }

    #[test]
    fn c14_a_range_that_passes_the_end_is_refused_with_its_line() {
        let line = "kubelet:327680:4294836224\n";
        let (_dir, files) = files(&[KUBELET_PASSWD, ("etc/subuid", line), ("etc/subgid", line)]);
        let text = files.read().unwrap_err().to_string();
        assert!(text.contains("kubelet:327680:4294836224") && text.contains("passes the last ID"), "{text}");
    }

    #[test]
    fn the_initial_namespaces_map_is_nobodys_range() {
        assert_eq!(host_ranges("         0          0 4294967295\n"), []);
        assert_eq!(host_ranges("0 131072 65536\n"), [IdRange::new(131_072, 65_536).unwrap()]);
    }
}
