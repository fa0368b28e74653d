//! Where a pair is kept: a file for each one that was issued, and a link to the one in use. A kill at any instant leaves
//! the old link or the new one, each to a whole file; files that are not in use stay, as upstream leaves them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};

use super::pair::Pair;

/// The pairs of one use in the certificates' directory.
#[derive(Clone, Debug)]
pub struct PairStore {
    directory: PathBuf,
    name: &'static str,
}

impl PairStore {
    /// The client certificates: `kubelet-client-current.pem` is in use.
    pub fn client(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), name: "kubelet-client" }
    }

    /// The serving certificates: `kubelet-server-current.pem` is in use.
    pub fn serving(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), name: "kubelet-server" }
    }

    /// The link to the pair in use.
    pub fn current_path(&self) -> PathBuf {
        self.path("current.pem")
    }

    /// The pair in use and when it was written; one that cannot be read counts as none, and the log says why.
    pub fn current(&self) -> Option<(Pair, Timestamp)> {
        let path = self.current_path();
        let read = fs::read(&path).and_then(|pem| Ok((pem, fs::metadata(&path)?.modified()?)));
        let (pem, written) = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the certificate cannot be read; another is asked for");
                return None;
            }
        };
        match (Pair::from_pem(&pem), Timestamp::try_from(written)) {
            (Ok(pair), Ok(written)) => Some((pair, written)),
            (Err(error), _) => {
                tracing::warn!(path = %path.display(), %error, "the certificate is not used; another is asked for");
                None
            }
            (Ok(_), Err(_)) => None,
        }
    }

    /// Keeps a pair, and has the link lead to it.
    ///
    /// # Errors
    /// When it cannot be written; the pair in use stays then.
    pub fn update(&self, pair: &Pair, now: Timestamp) -> io::Result<()> {
        let name = format!("{}-{}.pem", self.name, now.strftime("%Y-%m-%d-%H-%M-%S"));
        write_private(&self.directory.join(&name), pair.pem())?;
        let new = self.path("updated.pem");
        remove_if_there(&new)?;
        symlink(name, &new)?;
        fs::rename(new, self.current_path())?;
        File::open(&self.directory)?.sync_all()
    }

    /// The key of a request that is not answered yet.
    pub(super) fn pending_key(&self) -> PathBuf {
        self.directory.join(format!("{}.key.tmp", self.name))
    }

    fn path(&self, end: &str) -> PathBuf {
        self.directory.join(format!("{}-{end}", self.name))
    }
}

/// Writes a file that only root reads, whole or not at all; its directory is made if it is missing.
///
/// # Errors
/// When it cannot be written; what was there stays then.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let new = path.with_added_extension("new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(&new, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(directory)?.sync_all()
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::pair::tests::made;
    use super::*;

    fn pair(name: &str) -> Pair {
        Pair::from_pem(&made(name, &[], (2027, 1, 1))).unwrap()
    }

    #[test]
    fn the_link_leads_to_the_newest_pair_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = PairStore::client(&dir.path().join("pki"));
        assert!(store.current().is_none());
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        store.update(&pair("one"), at("2026-11-28T07:00:00Z")).unwrap();
        // A kill between the two steps of the link leaves this.
        symlink("elsewhere", store.path("updated.pem")).unwrap();
        store.update(&pair("two"), at("2026-11-28T08:09:10Z")).unwrap();
        assert!(store.current().unwrap().0.is_for("two", &[]));
        let first = dir.path().join("pki/kubelet-client-2026-11-28-07-00-00.pem");
        assert!(Pair::from_pem(&fs::read(first).unwrap()).unwrap().is_for("one", &[]));
        let link = fs::read_link(dir.path().join("pki/kubelet-client-current.pem")).unwrap();
        assert_eq!(link, Path::new("kubelet-client-2026-11-28-08-09-10.pem"));
        assert_eq!(fs::metadata(store.current_path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_pair_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = PairStore::serving(dir.path());
        fs::write(store.current_path(), "half a pa").unwrap();
        assert!(store.current().is_none());
        fs::remove_file(store.current_path()).unwrap();
        symlink("gone.pem", store.current_path()).unwrap();
        assert!(store.current().is_none(), "a link that leads nowhere");
    }
}
