//! The machine's `ip_forward` switch, which all instances share: the first remembers how it was found, the last
//! puts it back.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::NetworkError;
use crate::record::{absent_is_fine, replace};

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// The machine-wide directory in which instances say that they need forwarding.
#[derive(Debug)]
pub(crate) struct Forwarding {
    directory: PathBuf,
    instance: String,
}

impl Forwarding {
    pub(crate) fn new(machine: &Path, instance: &str) -> Self {
        Self { directory: machine.join("ip-forward"), instance: instance.to_owned() }
    }

    /// Turns forwarding on for as long as this instance exists.
    pub(crate) fn acquire(&self) -> Result<(), NetworkError> {
        let users = self.users();
        fs::create_dir_all(&users).map_err(NetworkError::file("create the directory", &users))?;
        let _lock = self.lock()?;
        let current = read(Path::new(SWITCH))?;
        let former = self.directory.join("former");
        if !former.exists() {
            replace(&former, current.as_bytes())?;
        }
        replace(&users.join(&self.instance), b"")?;
        if current.trim() == "0" { write_switch("1\n") } else { Ok(()) }
    }

    /// Lets go of forwarding, and puts it back as it was found when no other instance needs it.
    pub(crate) fn release(&self) -> Result<(), NetworkError> {
        let users = self.users();
        if !users.exists() {
            return Ok(());
        }
        let lock = self.lock()?;
        let mine = users.join(&self.instance);
        absent_is_fine(fs::remove_file(&mine)).map_err(NetworkError::file("remove", &mine))?;
        let mut others = fs::read_dir(&users).map_err(NetworkError::file("read the directory", &users))?;
        if others.next().is_some() {
            return Ok(());
        }
        let former = read(&self.directory.join("former"))?;
        if former.trim() == "0" {
            write_switch(&former)?;
        }
        drop(lock);
        fs::remove_dir_all(&self.directory).map_err(NetworkError::file("remove", &self.directory))
    }

    fn users(&self) -> PathBuf {
        self.directory.join("users")
    }

    /// Held until dropped; a program that dies lets go of it.
    fn lock(&self) -> Result<File, NetworkError> {
        let open = File::open(&self.directory).map_err(NetworkError::file("open", &self.directory))?;
        let locked = flock(&open, FlockOperation::LockExclusive);
        locked.map_err(|error| NetworkError::file("lock", &self.directory)(error.into()))?;
        Ok(open)
    }
}

fn read(path: &Path) -> Result<String, NetworkError> {
    fs::read_to_string(path).map_err(NetworkError::file("read", path))
}

fn write_switch(value: &str) -> Result<(), NetworkError> {
    fs::write(SWITCH, value).map_err(NetworkError::file("write", SWITCH))
}
