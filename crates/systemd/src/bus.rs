//! The connection to a message bus: made when it is needed, kept, and made anew when it was lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use zbus::connection::Builder;
use zbus::proxy::CacheProperties;
use zbus::{Connection, Proxy};

/// How long a service may take to answer: as long as `sd-bus` waits by default.
const PATIENCE: Duration = Duration::from_secs(25);

/// Why something could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no bus.
    #[error("cannot connect to {bus}: {source}; is it running (systemctl status dbus)?")]
    Connect {
        /// Which bus.
        bus: String,
        /// What the system said.
        source: zbus::Error,
    },
    /// The service is not there, or did not do it.
    #[error("cannot {action}: {service} says: {source}")]
    Call {
        /// What was tried.
        action: String,
        /// Who was asked.
        service: &'static str,
        /// The answer.
        source: zbus::Error,
    },
    /// A unit did not come up.
    #[error("the unit {unit} did not start: {result} (systemctl status {unit})")]
    Job {
        /// The unit.
        unit: String,
        /// The job's result, in the service manager's word.
        result: String,
    },
    /// The connection ended before the answer came.
    #[error("cannot {action}: the bus closed the connection to {service}")]
    Closed {
        /// What was tried.
        action: String,
        /// Who was asked.
        service: &'static str,
    },
}

impl BusError {
    /// The name of the D-Bus error that the service answered with, if it did.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Call { source: zbus::Error::MethodError(name, ..), .. } => Some(name.to_string()),
            _ => None,
        }
    }
}

/// A message bus. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Bus {
    /// `None` for the machine's system bus.
    address: Option<String>,
    connection: Arc<Mutex<Option<Connection>>>,
}

impl Bus {
    /// The machine's system bus: the one of `DBUS_SYSTEM_BUS_ADDRESS`, else the usual socket.
    pub fn system() -> Self {
        Self { address: None, connection: Arc::default() }
    }

    /// The bus of a D-Bus address, e.g. `unix:path=/run/bus`.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), connection: Arc::default() }
    }

    /// The connection, made anew if there is none or if it was lost.
    ///
    /// # Errors
    /// [`BusError::Connect`].
    pub(crate) async fn connection(&self) -> Result<Connection, BusError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let builder = match &self.address {
            None => Builder::system(),
            Some(address) => Builder::address(address.as_str()),
        };
        let made = builder.method_timeout(PATIENCE).build().await;
        let connection = made.map_err(|source| BusError::Connect { bus: self.name(), source })?;
        Ok(held.insert(connection).clone())
    }

    /// An object of a service; its properties are asked for each time.
    pub(crate) async fn object(&self, place: Place) -> Result<Proxy<'static>, BusError> {
        let connection = self.connection().await?;
        let Place { service, path, interface } = place;
        let built = zbus::proxy::Builder::<Proxy<'static>>::new(&connection)
            .destination(service)
            .path(path)
            .interface(interface)
            .cache_properties(CacheProperties::No)
            .build()
            .await;
        built.map_err(place.failed("be reached"))
    }

    fn name(&self) -> String {
        match &self.address {
            None => "the system's message bus".to_owned(),
            Some(address) => format!("the message bus {address}"),
        }
    }
}

/// An object's interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) service: &'static str,
    pub(crate) path: &'static str,
    pub(crate) interface: &'static str,
}

impl Place {
    /// The error of `action` from what zbus says.
    pub(crate) fn failed(self, action: impl Into<String>) -> impl FnOnce(zbus::Error) -> BusError {
        move |source| BusError::Call { action: action.into(), service: self.service, source }
    }
}
