//! The node agent: Pod workers, ID ranges, volumes, status, its HTTPS server.

mod apiwatch;
mod cgroup;
mod clock;
mod env;
mod event;
pub mod idspace;
mod logs;
mod metrics;
mod object;
mod places;
mod pod;
mod quantity;
mod runtime;
mod shared;
mod token;
mod uid;
mod userns;
mod volume;

pub use crate::userns::IdAllocator;
pub use clock::Clock;
pub use env::ApiService;
pub use pod::dns::ClusterDns;
pub use uid::{BadPodUid, PodUid};
pub use volume::setup::VolumeProbe;
