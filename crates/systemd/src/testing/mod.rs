//! For tests: Debian's `dbus-daemon` on a socket of the test's own, and services behind it that the test plays itself.

mod bus;
mod login;

pub use bus::PrivateBus;
pub use login::FakeLogin;
