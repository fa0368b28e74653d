//! The service manager and logind over D-Bus: [`Login`] asks for time before a shutdown.
//!
//! Nothing here decides what is done with that time. Messages are written and read by `zbus`.

mod bus;
mod login;
#[cfg(feature = "testing")]
pub mod testing;

pub use bus::{Bus, BusError};
pub use login::{DelayLock, Login, ShutdownNotices, override_delay};
