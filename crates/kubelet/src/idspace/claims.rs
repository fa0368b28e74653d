//! The machine's register of host IDs: one file per instance below `/run/kakoi/ids`, changed under one lock.
//!
//! The ID space belongs to the kernel, so instances with roots of their own must still not meet in it. The files
//! live on a tmpfs: they are gone after a reboot, as are the processes, and each instance claims again what its
//! records say. A claim outlives its daemon, since the containers do; it is dropped only when its root is gone,
//! no process on the machine has a user namespace on its range, and its daemon does not run: each holds a lock on
//! its file, for a root may be out of sight in another mount namespace.

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
    root: PathBuf,
    /// This instance's file, locked as long as the daemon lives.
    alive: Option<File>,
    seen: Vec<(PathBuf, Stamp, Vec<Reserved>)>,
}

type Stamp = (i64, i64, u64, u64);

/// The machine-wide lock; dropped, it is free again, also when the process dies.
#[derive(Debug)]
pub(super) struct Locked(#[expect(dead_code, reason = "held for its lock")] File);

impl Claims {
    pub(super) fn open(dir: &Path, instance: &str) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let (dir, instance) = (dir.to_owned(), instance.to_owned());
        Ok(Self { dir, instance, root: PathBuf::new(), alive: None, seen: Vec::new() })
    }

    /// Takes the machine-wide lock. Its holders do a few file operations, so waiting is short.
    pub(super) fn lock(&self) -> io::Result<Locked> {
        fs::create_dir_all(&self.dir)?;
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
    pub(super) fn rewrite(&mut self, _lock: &Locked, root: &Path, ranges: &[IdRange]) -> io::Result<()> {
        let header = Header { root: root.to_owned() };
        let mut text = serde_json::to_string(&header)?;
        text.push('\n');
        for range in ranges {
            text.push_str(&line('+', *range));
        }
        let temporary = self.dir.join(format!(".{}", self.instance));
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        flock(&file, FlockOperation::NonBlockingLockShared)?;
        fs::rename(&temporary, self.path())?;
        self.alive = Some(file);
        root.clone_into(&mut self.root);
        Ok(())
    }

    /// Adds a range to this instance's file. Where somebody has removed the file, it is made again with all that
    /// is `held`, this range included.
    pub(super) fn claim(
        &mut self,
        lock: &Locked,
        range: IdRange,
        held: impl FnOnce() -> Vec<IdRange>,
    ) -> io::Result<()> {
        match self.append('+', range) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.path().display(), "the claims of host IDs were removed; they are made again");
                self.rewrite(lock, &self.root.clone(), &held())
            }
            other => other,
        }
    }

    /// Takes a range out of this instance's file.
    pub(super) fn give_up(&self, _lock: &Locked, range: IdRange) -> io::Result<()> {
        match self.append('-', range) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
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

    /// Removes the claims of instances whose root is gone, whose daemon has ended and on whose ranges nothing runs.
    pub(super) fn remove_abandoned(&self, _lock: &Locked, proc_dir: &Path) -> io::Result<()> {
        for path in claim_files(&self.dir)? {
            if path == self.path() {
                continue;
            }
            let (header, claims) = read_claims(&path)?;
            if header.is_none_or(|h| h.root.exists()) || is_locked(&path)? {
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

/// Whether the daemon that wrote the file still runs.
fn is_locked(path: &Path) -> io::Result<bool> {
    match flock(File::open(path)?, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        other => Ok(other.map(|()| false)?),
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

    #[test]
    fn a_claim_whose_root_is_out_of_sight_stays_while_its_daemon_runs() {
        let dir = tempfile::tempdir().unwrap();
        let mut hidden = Claims::open(dir.path(), "hidden").unwrap();
        let other = Claims::open(dir.path(), "other").unwrap();
        let lock = other.lock().unwrap();
        let range = IdRange::new(4_000_000_000, 65_536).unwrap();
        hidden.rewrite(&lock, Path::new("/nonexistent-root"), &[range]).unwrap();
        other.remove_abandoned(&lock, Path::new("/proc")).unwrap();
        assert_eq!(list_foreign(dir.path(), "other").unwrap().len(), 1);
        drop(hidden);
        other.remove_abandoned(&lock, Path::new("/proc")).unwrap();
        assert_eq!(list_foreign(dir.path(), "other").unwrap().len(), 0);
    }

    #[test]
    fn claims_that_somebody_removed_are_made_again_with_all_that_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = Claims::open(&dir.path().join("ids"), "me").unwrap();
        let block = |number: u64| IdRange::new(number * 65_536, 65_536).unwrap();
        let lock = claims.lock().unwrap();
        claims.rewrite(&lock, Path::new("/"), &[block(2)]).unwrap();
        drop(lock);
        fs::remove_dir_all(dir.path().join("ids")).unwrap();
        let lock = claims.lock().unwrap();
        claims.give_up(&lock, block(9)).unwrap();
        claims.claim(&lock, block(3), || vec![block(2), block(3)]).unwrap();
        let found = list_foreign(&dir.path().join("ids"), "other").unwrap();
        assert_eq!(found.iter().map(|claim| claim.range).collect::<Vec<_>>(), [block(2), block(3)]);
    }
}
