//! Has the Pod's remote volumes mounted before the rest of it is set up: those of CSI drivers, and NFS.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use super::prepare::Problem;
use crate::csi::publish::{ForPod, Published};
use crate::event::Kind;
use crate::object::Snapshot;
use crate::userns::PodUserns;
use crate::volume::nfs::{mount_nfs, search_path};
use crate::volume::payload::fs_group;
use crate::volume::plan::{VolumeCause, VolumeError, plan_csi, plan_nfs_of};

/// How often a volume is published again whose driver wants that; upstream's kubelet does so at each of its rounds.
const REPUBLISH: SignedDuration = SignedDuration::from_mins(1);

impl Worker {
    /// Mounts every volume that lies elsewhere; what is mounted already is left alone.
    pub(super) async fn mount_remote(
        &mut self,
        pod: &Pod,
        objects: &Snapshot,
        userns: &PodUserns,
    ) -> Result<(), Problem> {
        let places = self.shared.places.of(&self.uid);
        for (name, volume) in plan_nfs_of(pod, objects, userns.mappings().is_some())? {
            let mounted = mount_nfs(&volume, &places.volume("nfs", &name), &search_path()).await;
            mounted.map_err(|error| VolumeError { volume: name, cause: Box::new(error.into()) })?;
        }
        self.publish_csi(pod, objects).await
    }

    /// Publishes every volume of a driver. What is published already is left alone, unless its driver wants it published
    /// again and it is time for that.
    pub(super) async fn publish_csi(&mut self, pod: &Pod, objects: &Snapshot) -> Result<(), Problem> {
        let now = self.shared.clock.now();
        let is_due = self.republish_at.is_none_or(|due| due <= now);
        let mut is_repeated = false;
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes {
            let wrong =
                |cause: VolumeCause| VolumeError { volume: volume.name.clone(), cause: Box::new(cause) };
            let planned = plan_csi(pod, volume, objects).map_err(|error| wrong(error.into()))?;
            let Some(planned) = planned else { continue };
            let places = self.shared.places.of(&self.uid);
            let at = ForPod { pod, places: &places, volume: &volume.name, fs_group: fs_group(pod), is_due };
            match self.shared.csi.publish(at, &planned).await.map_err(|error| wrong(error.into()))? {
                Published::Kept => {}
                Published::Repeated => is_repeated = true,
                // The Pod runs on with what is there.
                Published::Stale(error) => {
                    let text = wrong(error.into()).to_string();
                    self.shared.events.pod(pod, Kind::Warning, "FailedMount", text);
                    is_repeated = true;
                }
            }
        }
        if is_due {
            self.republish_at = is_repeated.then(|| now.saturating_add(REPUBLISH).ok()).flatten();
        }
        Ok(())
    }
}
