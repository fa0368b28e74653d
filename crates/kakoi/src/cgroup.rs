//! The cgroup driver by upstream's names, for the configuration files, the command line, the runtime and the kubelet.

use kubelet::CgroupRoots;
use serde::Deserialize;

use crate::places::Places;

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    /// Directories below `/sys/fs/cgroup`
    #[default]
    Cgroupfs,
    /// Slices and scopes of systemd, over D-Bus (cgroup v2)
    Systemd,
}

impl CgroupDriver {
    /// What the runtime tells kubelets.
    pub(crate) const fn of_runtime(self) -> runtime::CgroupDriver {
        match self {
            Self::Cgroupfs => runtime::CgroupDriver::Cgroupfs,
            Self::Systemd => runtime::CgroupDriver::Systemd,
        }
    }

    /// Where an instance's Pods are.
    pub(crate) fn roots(self, places: &Places) -> CgroupRoots {
        CgroupRoots {
            cgroupfs: format!("/{}", places.instance()),
            systemd: format!("/{}", places.slice()),
            driver: match self {
                Self::Cgroupfs => kubelet::CgroupDriver::Cgroupfs,
                Self::Systemd => kubelet::CgroupDriver::Systemd,
            },
        }
    }
}
