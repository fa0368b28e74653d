//! What the network remembers on disk: one small file for each attached sandbox, written before the kernel is
//! touched and removed after. A file is complete or absent, whenever the program dies.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::port::PortMapping;

/// Characters of the longest address: each has a line of this length.
const ADDRESS: usize = 39;

/// What one sandbox has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// One of each family that Pods had when it was attached; the first is the Pod's `status.podIP`.
    pub(crate) addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<PortMapping>,
}

impl Record {
    /// The ports, each with the Pod's addresses.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (&[IpAddr], &PortMapping)> {
        self.ports.iter().map(|port| (self.addresses.as_slice(), port))
    }
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    sandboxes: PathBuf,
    cursor: PathBuf,
}

impl Records {
    pub(crate) fn open(state: &Path) -> Result<Self, NetworkError> {
        let (sandboxes, cursor) = (state.join("sandboxes"), state.join("cursor"));
        fs::create_dir_all(&sandboxes).map_err(NetworkError::file("create the directory", &sandboxes))?;
        Ok(Self { sandboxes, cursor })
    }

    /// All records. What cannot be read is removed and told: a bad record never stops the node, and what it stood
    /// for is found again on the bridge.
    pub(crate) fn load(&self) -> Result<HashMap<String, Record>, NetworkError> {
        let listing = fs::read_dir(&self.sandboxes)
            .map_err(NetworkError::file("read the directory", &self.sandboxes))?;
        let mut records = HashMap::new();
        for entry in listing {
            let path = entry.map_err(NetworkError::file("read the directory", &self.sandboxes))?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            let record = fs::read(&path).map_err(NetworkError::file("read", &path))?;
            match serde_json::from_slice(&record) {
                Ok(record) => drop(records.insert(id, record)),
                // A name with a leading dot is a file that was being written when the program died.
                Err(error) => {
                    if !id.starts_with('.') {
                        tracing::warn!(path = %path.display(), %error, "an unreadable network record is dropped");
                    }
                    fs::remove_file(&path).map_err(NetworkError::file("remove", &path))?;
                }
            }
        }
        records.retain(|id, _| !id.starts_with('.'));
        Ok(records)
    }

    pub(crate) fn write(&self, id: &str, record: &Record) -> Result<(), NetworkError> {
        let path = self.sandboxes.join(id);
        let text =
            serde_json::to_vec(record).map_err(|error| NetworkError::file("encode", &path)(error.into()))?;
        replace(&path, &text)
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), NetworkError> {
        let path = self.sandboxes.join(id);
        absent_is_fine(fs::remove_file(&path)).map_err(NetworkError::file("remove", path))
    }

    /// The addresses given out last, one of each family; a hint only.
    pub(crate) fn cursors(&self) -> Vec<IpAddr> {
        let text = fs::read_to_string(&self.cursor).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// Remembers the addresses given out last. Losing them costs only the order, so they are written over in place: a
    /// rename onto a file that exists waits for the disk on ext4 (`auto_da_alloc`), with each Pod that comes.
    pub(crate) fn write_cursors(&self, addresses: &[IpAddr]) {
        let lines: Vec<String> = addresses.iter().map(|address| format!("{address:<ADDRESS$}\n")).collect();
        let file = fs::File::options().write(true).create(true).truncate(false).open(&self.cursor);
        if let Err(error) = file.and_then(|mut file| file.write_all(lines.concat().as_bytes())) {
            tracing::debug!(%error, "the cursor of Pod addresses was not saved");
        }
    }

    /// Removes all that this wrote.
    pub(crate) fn remove_all(&self) -> Result<(), NetworkError> {
        absent_is_fine(fs::remove_file(&self.cursor)).map_err(NetworkError::file("remove", &self.cursor))?;
        absent_is_fine(fs::remove_dir_all(&self.sandboxes))
            .map_err(NetworkError::file("remove", &self.sandboxes))
    }
}

/// Whether `id` can be a record's file name.
pub(crate) fn check_identifier(id: &str) -> Result<(), NetworkError> {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if (1..=128).contains(&id.len()) && id.chars().all(is_plain) && !id.starts_with('.') {
        Ok(())
    } else {
        Err(NetworkError::Identifier { id: id.to_owned() })
    }
}

/// Writes a file whole. No fsync: after a power cut the sandboxes are gone too, and an empty file is dropped.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), NetworkError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    fs::write(&temporary, bytes).map_err(NetworkError::file("write", &temporary))?;
    fs::rename(&temporary, path).map_err(NetworkError::file("write", path))
}

pub(crate) fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::port::Protocol;

    #[test]
    fn records_survive_and_broken_ones_are_dropped() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        let port =
            PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp };
        let record = Record { addresses: vec![Ipv4Addr::new(10, 0, 0, 2).into()], ports: vec![port] };
        records.write("one", &record).unwrap();
        fs::write(state.path().join("sandboxes/.two"), "{\"addr").unwrap();
        fs::write(state.path().join("sandboxes/three"), "").unwrap();
        let again = Records::open(state.path()).unwrap();
        assert_eq!(again.load().unwrap(), HashMap::from([("one".to_owned(), record)]));
        assert!(!state.path().join("sandboxes/.two").exists());
        again.remove("one").unwrap();
        again.remove("one").unwrap();
        assert!(again.load().unwrap().is_empty());
    }

    #[test]
    fn nothing_shows_of_the_cursors_before() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        assert!(records.cursors().is_empty());
        let long: IpAddr = "fd85:1111:2222:3333:4444:5555:6666:7777".parse().unwrap();
        let cases = [
            ["10.85.255.254".parse().unwrap(), long],
            ["10.85.0.2".parse().unwrap(), "fd85::2".parse().unwrap()],
        ];
        for addresses in cases {
            records.write_cursors(&addresses);
            assert_eq!(records.cursors(), addresses);
        }
    }

    #[test]
    fn the_record_is_a_line_of_json() {
        let port =
            PortMapping { host_ip: None, host_port: 53, container_port: 5353, protocol: Protocol::Udp };
        let record = Record { addresses: vec![Ipv4Addr::new(10, 0, 0, 2).into()], ports: vec![port] };
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"addresses":["10.0.0.2"],"ports":[{"hostPort":53,"containerPort":5353,"protocol":"udp"}]}"#
        );
    }

    #[test]
    fn identifiers_that_are_paths_are_refused() {
        for id in ["", ".", "..", ".hidden", "a/b", "a b", &"x".repeat(129)] {
            assert!(check_identifier(id).is_err(), "{id:?}");
        }
        check_identifier("8f14e45f-ceea_467a.b").unwrap();
    }
}
