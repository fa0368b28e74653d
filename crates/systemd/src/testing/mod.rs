//! For tests: Debian's `dbus-daemon` on a socket of the test's own, and services behind it that the test plays itself.

mod bus;
mod login;
mod units;

pub use bus::PrivateBus;
pub use login::FakeLogin;
pub use units::{FakeUnits, Unit};
