//! Has the Pod's CSI volumes mounted before the rest of it is set up.

use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use super::prepare::Problem;
use crate::csi::publish::ForPod;
use crate::object::Snapshot;
use crate::volume::payload::fs_group;
use crate::volume::plan::{VolumeCause, VolumeError, plan_csi};

impl Worker {
    /// Publishes every volume of a driver; what is published already is left alone.
    pub(super) async fn publish_csi(&self, pod: &Pod, objects: &Snapshot) -> Result<(), Problem> {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes {
            let wrong =
                |cause: VolumeCause| VolumeError { volume: volume.name.clone(), cause: Box::new(cause) };
            let planned = plan_csi(pod, volume, objects).map_err(|error| wrong(error.into()))?;
            let Some(planned) = planned else { continue };
            let places = self.shared.places.of(&self.uid);
            let at = ForPod { pod, places: &places, volume: &volume.name, fs_group: fs_group(pod) };
            let published = self.shared.csi.publish(at, &planned).await;
            published.map_err(|error| wrong(error.into()))?;
        }
        Ok(())
    }
}
