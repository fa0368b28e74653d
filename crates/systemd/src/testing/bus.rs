//! A `dbus-daemon` with one socket in a directory of its own; it ends with its owner, also when that is killed.

use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use zbus::Connection;
use zbus::connection::Builder;

use crate::Bus;

/// A running bus that everybody may use as they like.
#[derive(Debug)]
pub struct PrivateBus {
    daemon: Child,
    address: String,
}

impl PrivateBus {
    /// Starts the daemon with its socket in `directory`, and waits until it listens.
    ///
    /// # Errors
    /// When `dbus-daemon` or `setpriv` is missing or does not start.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let socket = directory.join("bus");
        let configuration = directory.join("bus.conf");
        // What an earlier daemon left.
        let _ = std::fs::remove_file(&socket);
        std::fs::write(
            &configuration,
            format!(
                r#"<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context="default">
                <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
                </policy></busconfig>"#,
                socket.display()
            ),
        )?;
        let mut daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "dbus-daemon", "--nofork", "--nopidfile", "--print-address=1"])
            .arg(format!("--config-file={}", configuration.display()))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = daemon.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        if line.is_empty() {
            return Err(io::Error::other("dbus-daemon says no address"));
        }
        Ok(Self { daemon, address: format!("unix:path={}", socket.display()) })
    }

    /// The bus, for what is tested.
    pub fn bus(&self) -> Bus {
        Bus::at(self.address.as_str())
    }

    /// Its D-Bus address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A connection that is known by `name`.
    ///
    /// # Errors
    /// When the bus is gone or the name is taken.
    pub(crate) async fn connect_as(&self, name: &str) -> zbus::Result<Connection> {
        Builder::address(self.address.as_str()).name(name).build().await
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
