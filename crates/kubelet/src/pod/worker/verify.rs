//! Over a runtime that is not ours: does the container really have the IDs that were asked for?
//!
//! Our own runtime compares the map before `execve`; another may have dropped the request without a word
//! (kubernetes#116707). What runs with other IDs than its record says is ended at once.

use std::time::Duration;

use cri::v1;
use userns::IdMappings;

use super::Worker;
use crate::idspace::host_ranges;
use crate::runtime::pid_of;

/// The name by which our own runtime calls itself.
const OURS: &str = "kakoi";

impl Worker {
    /// Ends the container and says why when its `uid_map` is not the Pod's.
    pub(super) async fn verify_map(&self, container_id: &str, mappings: &IdMappings) -> Result<(), String> {
        if self.shared.runtime.borrow().name == OURS {
            return Ok(());
        }
        let request = v1::ContainerStatusRequest { container_id: container_id.to_owned(), verbose: true };
        let answer = self.shared.cri.container_status(request).await.map_err(|error| error.message)?;
        let Some(pid) = pid_of(&answer.info) else {
            tracing::warn!(pod = %self.uid, "the runtime names no process: whether the Pod has its own IDs is not checked");
            return Ok(());
        };
        // A process that has ended already has no map any more.
        let Ok(map) = std::fs::read_to_string(format!("/proc/{pid}/uid_map")) else { return Ok(()) };
        if is_same(&map, mappings) {
            return Ok(());
        }
        if let Err(error) = self.shared.cri.stop_container(container_id, Duration::ZERO).await {
            tracing::error!(pod = %self.uid, %error, "a container with the wrong IDs is not ended");
        }
        let map = map.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(format!(
            "the runtime started the container with the uid_map `{map}`, which is not the Pod's: it was ended; use a runtime that supports user namespaces"
        ))
    }
}

/// The kernel's map has just the Pod's host ranges.
fn is_same(map: &str, mappings: &IdMappings) -> bool {
    let wanted = mappings.uids.iter().map(|line| (line.host_id, line.length));
    let real = host_ranges(map).into_iter().map(|range| (range.first(), range.length()));
    let (mut wanted, mut real): (Vec<_>, Vec<_>) = (wanted.collect(), real.collect());
    wanted.sort_unstable();
    real.sort_unstable();
    wanted == real
}

#[cfg(test)]
mod tests {
    use userns::IdRange;

    use super::*;

    #[test]
    fn only_the_pods_own_map_passes() {
        let mappings = IdMappings::of(IdRange::new(131_072, 65_536).unwrap());
        assert!(is_same("         0     131072      65536\n", &mappings));
        assert!(!is_same("         0     196608      65536\n", &mappings));
        assert!(!is_same("         0          0 4294967295\n", &mappings));
        assert!(!is_same("0 131072 65536\n65536 0 1\n", &mappings));
    }
}
