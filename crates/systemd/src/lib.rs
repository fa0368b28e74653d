//! The service manager and logind over D-Bus: [`Units`] are groups with limits, [`Login`] asks for time before a
//! shutdown.
//!
//! Nothing here decides which limits, or what is done with that time. Messages are written and read by `zbus`.

mod bus;
mod login;
mod name;
mod property;
#[cfg(feature = "testing")]
pub mod testing;
mod unit;

pub use bus::{Bus, BusError};
pub use login::{DelayLock, Login, ShutdownNotices, override_delay};
pub use name::Slice;
pub use property::plan_properties;
pub use unit::{Properties, Units, Value};
