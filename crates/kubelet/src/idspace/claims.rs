//! The machine's register of host IDs: one file per instance below `/run/kakoi/ids`, changed under one lock.
//!
//! The ID space belongs to the kernel, so instances with roots of their own must still not meet in it. The files
//! live on a tmpfs: they are gone after a reboot, as are the processes, and each instance claims again what its
//! records say. A claim outlives its daemon, since the containers do; it is dropped only when its root is gone
//! and no process on the machine has a user namespace on its range.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};
use userns::{IdRange, Reserved};

use super::files::read_small_up_to;
use super::machine;

/// 65,534 claims of some 80 bytes fit.
const LARGEST: u64 = 8 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    root: PathBuf,
}

/// One instance's claims.
#[derive(Debug)]
pub(super) struct Claims {
    dir: PathBuf,
    instance: String,
    seen: Vec<(PathBuf, Stamp, Vec<Reserved>)>,
}

type Stamp = (i64, i64, u64, u64);

/// The machine-wide lock; dropped, it is free again, also when the process dies.
#[derive(Debug)]
pub(super) struct Locked(#[expect(dead_code, reason = "held for its lock")] File);

impl Claims {
    pub(super) fn open(dir: &Path, instance: &str) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), instance: instance.to_owned(), seen: Vec::new() })
    }

    /// Takes the machine-wide lock. Its holders do a few file operations, so waiting is short.
    pub(super) fn lock(&self) -> io::Result<Locked> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(self.dir.join(".lock"), flags, Mode::from_raw_mode(0o600))?);
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Locked(file))
    }

    /// What the other instances claim; a file is read again only when it has changed.
    pub(super) fn foreign(&mut self, _lock: &Locked) -> io::Result<Option<Vec<Reserved>>> {
        let mut now = Vec::new();
        for path in claim_files(&self.dir)? {
            if path.file_name().is_some_and(|name| name != self.instance.as_str()) {
                let stamp = stamp(&path)?;
                now.push((path, stamp));
            }
        }
        if now.iter().map(|(p, s)| (p, s)).eq(self.seen.iter().map(|(p, s, _)| (p, s))) {
            return Ok(None);
        }
        let read =
            |(path, stamp): (PathBuf, Stamp)| read_claims(&path).map(|(_, claims)| (path, stamp, claims));
        self.seen = now.into_iter().map(read).collect::<io::Result<_>>()?;
        Ok(Some(self.seen.iter().flat_map(|(_, _, claims)| claims.clone()).collect()))
    }

    /// Writes this instance's file anew with these ranges.
    pub(super) fn rewrite(&self, _lock: &Locked, root: &Path, ranges: &[IdRange]) -> io::Result<()> {
        let header = Header { root: root.to_owned() };
        let mut text = serde_json::to_string(&header)?;
        text.push('\n');
        for range in ranges {
            text.push_str(&line('+', *range));
        }
        let temporary = self.dir.join(format!(".{}", self.instance));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, self.path())
    }

    /// Adds a range to this instance's file.
    pub(super) fn claim(&self, _lock: &Locked, range: IdRange) -> io::Result<()> {
        self.append('+', range)
    }

    /// Takes a range out of this instance's file.
    pub(super) fn give_up(&self, _lock: &Locked, range: IdRange) -> io::Result<()> {
        self.append('-', range)
    }

    fn append(&self, sign: char, range: IdRange) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().append(true).open(self.path())?;
        file.write_all(line(sign, range).as_bytes())
    }

    /// Removes this instance's file; one that is absent is removed already.
    pub(super) fn remove(&self, _lock: &Locked) -> io::Result<()> {
        match fs::remove_file(self.path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(&self.instance)
    }

    /// Removes the claims of instances whose root is gone and on whose ranges nothing runs.
    pub(super) fn remove_abandoned(&self, _lock: &Locked, proc_dir: &Path) -> io::Result<()> {
        for path in claim_files(&self.dir)? {
            if path == self.path() {
                continue;
            }
            let (header, claims) = read_claims(&path)?;
            if header.is_none_or(|h| h.root.exists()) {
                continue;
            }
            let running = machine::mapped_ranges(proc_dir);
            if !claims.iter().any(|claim| running.iter().any(|range| range.overlaps(claim.range))) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// What every instance but `instance` claims, read without the lock: for printing.
pub(super) fn list_foreign(dir: &Path, instance: &str) -> io::Result<Vec<Reserved>> {
    let mut all = Vec::new();
    for path in claim_files(dir)?.iter().filter(|p| p.file_name().is_some_and(|name| name != instance)) {
        all.extend(read_claims(path)?.1);
    }
    Ok(all)
}

fn line(sign: char, range: IdRange) -> String {
    format!("{sign} {} {}\n", range.first(), range.length())
}

fn claim_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino()))
}

/// A claim file's ranges. A line that was cut off is passed over: its writer never used the range.
fn read_claims(path: &Path) -> io::Result<(Option<Header>, Vec<Reserved>)> {
    let bytes = match read_small_up_to(path, LARGEST) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((None, Vec::new())),
        bytes => bytes?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let header: Option<Header> = text.lines().next().and_then(|line| serde_json::from_str(line).ok());
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let owner = match &header {
        Some(header) => format!("the instance `{name}` with the root {}", header.root.display()),
        None => format!("the instance `{name}`"),
    };
    let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let claims = net_claims(complete).into_iter().map(|range| Reserved { range, owner: owner.clone() });
    Ok((header, claims.collect()))
}

fn net_claims(text: &str) -> Vec<IdRange> {
    let mut held = Vec::new();
    for line in text.lines() {
        match parse(line) {
            Some(('+', range)) => held.push(range),
            Some((_, range)) => {
                if let Some(at) = held.iter().position(|held| *held == range) {
                    held.swap_remove(at);
                }
            }
            None => {}
        }
    }
    held
}

fn parse(line: &str) -> Option<(char, IdRange)> {
    let mut words = line.split(' ');
    let sign = words.next().filter(|sign| matches!(*sign, "+" | "-"))?.chars().next()?;
    let first = words.next()?.parse().ok()?;
    let length = words.next()?.parse().ok()?;
    Some((sign, IdRange::new(first, length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_lines_that_add_and_take_away() {
        let ranges =
            net_claims("{\"root\":\"/\"}\n+ 131072 65536\n+ 196608 65536\n- 131072 65536\nnonsense\n+ 1\n");
        assert_eq!(ranges, [IdRange::new(196_608, 65_536).unwrap()]);
    }

    #[test]
    fn a_line_that_was_cut_off_is_no_claim() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "{\"root\":\"/\"}\n+ 131072 65536\n+ 196608 655").unwrap();
        let found = list_foreign(dir.path(), "b").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].owner, "the instance `a` with the root /");
    }

    #[test]
    fn an_abandoned_claim_goes_and_one_with_a_root_stays() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::open(&dir.path().join("ids"), "me").unwrap();
        let lock = claims.lock().unwrap();
        let write = |name: &str, root: &str| {
            fs::write(
                dir.path().join("ids").join(name),
                format!("{{\"root\":\"{root}\"}}\n+ 4000000000 65536\n"),
            )
            .unwrap();
        };
        write("gone", "/nonexistent-root");
        write("here", "/");
        claims.remove_abandoned(&lock, Path::new("/proc")).unwrap();
        let left: Vec<_> = claim_files(&dir.path().join("ids")).unwrap();
        assert_eq!(left, [dir.path().join("ids/here")]);
    }
}
