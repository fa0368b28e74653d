//! The node agent: Pod workers, ID ranges, volumes, status, its HTTPS server.

mod clock;
mod env;
pub mod idspace;
mod object;
mod places;
mod pod;
mod quantity;
mod uid;
mod volume;

pub use clock::Clock;
pub use env::ApiService;
pub use uid::{BadPodUid, PodUid};
pub use volume::setup::VolumeProbe;
