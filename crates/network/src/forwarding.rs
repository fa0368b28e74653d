//! The machine's switches for forwarding, one of each family, which all instances share: the first remembers how they
//! were found, the last puts them back.
//!
//! A node that forwards IPv6 takes no more router advertisements, and so loses its own way out where that came by one,
//! unless its links take them nevertheless (`accept_ra` 2). Source: the kernel's `ip-sysctl.rst`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::address::Family;
use crate::error::NetworkError;
use crate::record::{absent_is_fine, replace};

/// The links with settings for IPv6.
const LINKS: &str = "/proc/sys/net/ipv6/conf";

/// Take router advertisements while the node forwards nothing.
const AS_A_HOST: &str = "1";
/// Take them although it forwards.
const ALWAYS: &str = "2";

/// The machine-wide directory in which instances say that they need forwarding of a family.
#[derive(Debug)]
pub(crate) struct Forwarding {
    family: Family,
    directory: PathBuf,
    instance: String,
}

impl Forwarding {
    pub(crate) fn new(family: Family, machine: &Path, instance: &str) -> Self {
        let directory = match family {
            Family::V4 => "ip-forward",
            Family::V6 => "ip6-forward",
        };
        Self { family, directory: machine.join(directory), instance: instance.to_owned() }
    }

    fn switch(&self) -> &'static Path {
        Path::new(match self.family {
            Family::V4 => "/proc/sys/net/ipv4/ip_forward",
            Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
        })
    }

    /// Turns forwarding on for as long as this instance exists.
    pub(crate) fn acquire(&self) -> Result<(), NetworkError> {
        let users = self.users();
        fs::create_dir_all(&users).map_err(NetworkError::file("create the directory", &users))?;
        let _lock = self.lock()?;
        let former = self.directory.join("former");
        if !former.exists() {
            replace(&former, self.found()?.as_bytes())?;
        }
        replace(&users.join(&self.instance), b"")?;
        if read(self.switch())?.trim() != "0" {
            return Ok(());
        }
        for link in read(&former)?.lines().skip(1) {
            change_link(link, AS_A_HOST, ALWAYS)?;
        }
        write(self.switch(), "1\n")
    }

    /// How the machine is now: the switch, and the links that take router advertisements as a host does.
    fn found(&self) -> Result<String, NetworkError> {
        let switch = read(self.switch())?;
        let mut lines = vec![switch.trim().to_owned()];
        if self.family == Family::V6 {
            let directory = fs::read_dir(LINKS).map_err(NetworkError::file("read the directory", LINKS))?;
            let names = directory.flatten().filter_map(|link| link.file_name().into_string().ok());
            lines.extend(
                names.filter(|name| read(&accept_ra(name)).is_ok_and(|text| text.trim() == AS_A_HOST)),
            );
        }
        Ok(lines.join("\n") + "\n")
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
        let mut lines = former.lines();
        if lines.next() == Some("0") {
            write(self.switch(), "0\n")?;
            lines.try_for_each(|link| change_link(link, ALWAYS, AS_A_HOST))?;
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

fn write(path: &Path, value: &str) -> Result<(), NetworkError> {
    fs::write(path, value).map_err(NetworkError::file("write", path))
}

fn accept_ra(link: &str) -> PathBuf {
    Path::new(LINKS).join(link).join("accept_ra")
}

/// Changes what a link does with router advertisements, if it is as expected; a link may be gone.
fn change_link(link: &str, from: &str, to: &str) -> Result<(), NetworkError> {
    let path = accept_ra(link);
    match fs::read_to_string(&path) {
        Ok(present) if present.trim() == from => write(&path, to),
        _ => Ok(()),
    }
}
