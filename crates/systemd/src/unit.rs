//! Transient units of the service manager: slices with limits, and scopes whose groups are handed over (`Delegate`).
//!
//! Source: `org.freedesktop.systemd1(5)`, and "Control Group APIs and Delegation" of systemd: of the tree of groups, only
//! what lies below a delegated unit may be changed by others.

use futures::StreamExt as _;
use tokio::runtime::Handle;
use zbus::{OwnedObjectPath, Proxy, Variant};

use crate::bus::{Bus, BusError, Place};
use crate::name::Slice;

pub(crate) const MANAGER: Place = Place {
    service: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// Errors that say that a unit is there already, or is not there.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const ABSENT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// A property's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `t`
    Number(u64),
    /// `b`
    Flag(bool),
    /// `s`
    Text(String),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
}

impl Value {
    fn variant(&self) -> Variant<'_> {
        match self {
            Self::Number(number) => (*number).into(),
            Self::Flag(flag) => (*flag).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Numbers(numbers) => numbers.into(),
            Self::Bytes(bytes) => bytes.into(),
        }
    }
}

/// A unit's properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(Vec<(&'static str, Value)>);

impl Properties {
    pub(crate) fn set(&mut self, name: &'static str, value: Value) {
        self.0.push((name, value));
    }

    fn variants(&self) -> Vec<(&'static str, Variant<'_>)> {
        self.0.iter().map(|(name, value)| (*name, value.variant())).collect()
    }

    /// A property's value.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The service manager's units, on a bus.
#[derive(Clone, Debug)]
pub struct Units(Bus);

impl Units {
    /// The units of the service manager on `bus`.
    pub fn new(bus: Bus) -> Self {
        Self(bus)
    }

    /// Waits for one of the calls below from a thread that may block: not from one that runs tasks.
    pub fn wait<T>(call: impl Future<Output = T>) -> T {
        Handle::current().block_on(call)
    }

    /// Starts a slice with `properties`, or sets them on the one that is there. It lives until it is stopped.
    ///
    /// # Errors
    /// When there is no bus or no service manager, or when it refuses.
    pub async fn start_slice(&self, slice: &Slice, properties: &Properties) -> Result<(), BusError> {
        let mut all = properties.clone();
        all.set("Description", Value::Text(format!("Pods of Kubernetes ({})", slice.name())));
        all.set("DefaultDependencies", Value::Flag(false));
        match self.start(slice.name(), &all).await {
            Err(error) if error.name().as_deref() == Some(EXISTS) => self.set(slice.name(), properties).await,
            other => other,
        }
    }

    /// Starts a scope in `slice` around a process, and hands its group over. `false` if it is there already: then the
    /// process is where it was.
    ///
    /// # Errors
    /// When there is no bus or no service manager, or when it refuses.
    pub async fn start_scope(&self, name: &str, slice: &Slice, pid: u32) -> Result<bool, BusError> {
        let mut properties = Properties::default();
        properties.set("Description", Value::Text(format!("kakoi ({name})")));
        properties.set("Slice", Value::Text(slice.name().to_owned()));
        properties.set("Delegate", Value::Flag(true));
        properties.set("PIDs", Value::Numbers(vec![pid]));
        // Pods end when whoever runs them says so, not with the first step of a shutdown.
        properties.set("DefaultDependencies", Value::Flag(false));
        properties.set("CollectMode", Value::Text("inactive-or-failed".to_owned()));
        match self.start(name, &properties).await {
            Err(error) if error.name().as_deref() == Some(EXISTS) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Changes properties of a unit until the next start of the machine.
    ///
    /// # Errors
    /// When there is no bus, no service manager or no such unit.
    pub async fn set(&self, name: &str, properties: &Properties) -> Result<(), BusError> {
        if properties.is_empty() {
            return Ok(());
        }
        let manager = self.0.object(MANAGER).await?;
        let set = manager.call("SetUnitProperties", &(name, true, properties.variants())).await;
        set.map_err(MANAGER.failed(format!("change the unit {name}")))
    }

    /// Ends a unit with all in it, and waits until it has ended. One that is not there is as wanted.
    ///
    /// # Errors
    /// When there is no bus or no service manager.
    pub async fn stop(&self, name: &str) -> Result<(), BusError> {
        let action = || format!("stop the unit {name}");
        let stopped = self.job(action, "StopUnit", &(name, "replace")).await;
        match stopped {
            Err(error) if error.name().as_deref() == Some(ABSENT) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                // A unit that failed would be remembered; mostly there is none by now.
                let manager = self.0.object(MANAGER).await?;
                let _: zbus::Result<()> = manager.call("ResetFailedUnit", &(name,)).await;
                Ok(())
            }
        }
    }

    async fn start(&self, name: &str, properties: &Properties) -> Result<(), BusError> {
        let action = || format!("start the unit {name}");
        let none: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let result =
            self.job(action, "StartTransientUnit", &(name, "replace", properties.variants(), none)).await?;
        match result.as_str() {
            "done" => Ok(()),
            other => Err(BusError::Job { unit: name.to_owned(), result: other.to_owned() }),
        }
    }

    /// Calls what answers with a job, and waits for the job's end: its result, e.g. `done`.
    async fn job<B>(
        &self,
        action: impl Fn() -> String,
        method: &'static str,
        body: &B,
    ) -> Result<String, BusError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let manager: Proxy<'static> = self.0.object(MANAGER).await?;
        // The service manager tells of jobs only whom it knows to listen.
        let subscribed: zbus::Result<()> = manager.call("Subscribe", &()).await;
        if let Err(error) = subscribed {
            tracing::debug!(%error, "subscribed before");
        }
        let mut ends = manager.receive_signal("JobRemoved").await.map_err(MANAGER.failed(action()))?;
        let job: OwnedObjectPath = manager.call(method, body).await.map_err(MANAGER.failed(action()))?;
        while let Some(message) = ends.next().await {
            let body = message.body();
            let ended: zbus::Result<(u32, OwnedObjectPath, String, String)> = body.deserialize();
            match ended {
                Ok((_, path, _, result)) if path == job => return Ok(result),
                _ => {}
            }
        }
        Err(BusError::Closed { action: action(), service: MANAGER.service })
    }
}
