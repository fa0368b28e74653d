//! The node's certificates from the cluster's signers: asked for with a bootstrap token at the first start, and renewed
//! before their end. Approving and signing are the cluster's; here is only what asks, waits and keeps.
//!
//! Source: "TLS bootstrapping" and "Configure Certificate Rotation for the Kubelet"; file names are upstream's.

mod bootstrap;
mod pair;
mod renewal;
mod request;
mod store;

pub use bootstrap::{Bootstrap, BootstrapError, Step};
pub use pair::{Pair, PairError, is_valid_at};
pub use renewal::Renewal;
pub use request::{RequestError, Template};
pub use store::{PairStore, write_private};
