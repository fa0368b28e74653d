//! Where an instance keeps everything: paths below its root, and names and numbers derived from the root's path,
//! so that several instances can run side by side on one machine.

use std::path::{Path, PathBuf};

/// An instance's paths. The default root is `/`.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    root: PathBuf,
    hash: u32,
}

impl Places {
    /// The places below `root`, an absolute path.
    pub(crate) fn new(root: &Path) -> Self {
        let hash = fnv(root.as_os_str().as_encoded_bytes());
        Self { root: root.to_owned(), hash }
    }

    fn is_default(&self) -> bool {
        self.root == Path::new("/")
    }

    fn below(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `kakoi`, or `kakoi-` and eight hexadecimal digits: names the cgroup, the nftables table and the claims.
    pub(crate) fn instance(&self) -> String {
        if self.is_default() { "kakoi".to_owned() } else { format!("kakoi-{:08x}", self.hash) }
    }

    /// The slice that holds all Pods where systemd makes their groups, without `.slice`: `kubepods`, as upstream's, for the
    /// default root.
    pub(crate) fn slice(&self) -> String {
        if self.is_default() { "kubepods".to_owned() } else { format!("kubepods_{:08x}", self.hash) }
    }

    /// The bridge: at most 15 characters, as the kernel demands.
    pub(crate) fn bridge(&self) -> String {
        if self.is_default() { "kakoi0".to_owned() } else { format!("kk{:08x}", self.hash) }
    }

    /// Store, certificates, images, containers.
    pub(crate) fn state(&self) -> PathBuf {
        self.below("var/lib/kakoi")
    }

    /// The kubelet's directory.
    pub(crate) fn kubelet(&self) -> PathBuf {
        self.below("var/lib/kubelet")
    }

    /// Sockets and what lives as long as the processes.
    pub(crate) fn run(&self) -> PathBuf {
        self.below("run/kakoi")
    }

    /// Pods' log files.
    pub(crate) fn pod_logs(&self) -> PathBuf {
        self.below("var/log/pods")
    }

    /// Manifests of static Pods.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.below("etc/kubernetes/manifests")
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.below("etc/kakoi/config.yaml")
    }

    /// Registries, in containerd's `hosts.toml` layout.
    pub(crate) fn registries(&self) -> PathBuf {
        self.below("etc/kakoi/certs.d")
    }

    /// The admin's kubeconfig.
    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.state().join("admin.kubeconfig")
    }

    /// The CRI socket.
    pub(crate) fn cri_socket(&self) -> PathBuf {
        self.run().join("kakoi.sock")
    }

    /// The register of host IDs: the machine's, whatever the root.
    pub(crate) fn claims() -> PathBuf {
        PathBuf::from("/run/kakoi/ids")
    }

    /// The API server's port: 6443 for the default root.
    pub(crate) fn secure_port(&self) -> u16 {
        if self.is_default() { 6443 } else { self.derived_port(0) }
    }

    /// The kubelet's port: 10250 for the default root.
    pub(crate) fn kubelet_port(&self) -> u16 {
        if self.is_default() { 10250 } else { self.derived_port(1) }
    }

    /// 16384-32767, which is below the kernel's range for outgoing connections.
    fn derived_port(&self, which: u16) -> u16 {
        let [_, _, high, low] = self.hash.to_be_bytes();
        let slot = u16::from_be_bytes([high, low]) % 4096;
        16_384 + slot * 4 + which
    }

    /// The Pods' addresses: 10.210.0.0/24 for the default root, else one of 10.211.0.0-10.218.255.0.
    pub(crate) fn pod_cidr(&self) -> String {
        if self.is_default() {
            return "10.210.0.0/24".to_owned();
        }
        let [_, high, _, low] = self.hash.to_be_bytes();
        format!("10.{}.{low}.0/24", 211 + high % 8)
    }
}

/// FNV-1a, 32 bits: stable across versions and machines, which is all that is asked of it.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_root_has_the_names_that_users_know() {
        let places = Places::new(Path::new("/"));
        assert_eq!(places.state(), Path::new("/var/lib/kakoi"));
        assert_eq!((places.instance().as_str(), places.bridge().as_str()), ("kakoi", "kakoi0"));
        assert_eq!((places.secure_port(), places.kubelet_port()), (6443, 10250));
    }

    #[test]
    fn another_root_shares_nothing_but_the_register_of_ids() {
        let (a, b) = (Places::new(Path::new("/srv/a")), Places::new(Path::new("/srv/b")));
        assert_eq!(a.admin_kubeconfig(), Path::new("/srv/a/var/lib/kakoi/admin.kubeconfig"));
        assert_ne!(a.instance(), b.instance());
        assert_ne!(a.bridge(), b.bridge());
        assert_ne!(a.secure_port(), b.secure_port());
        assert_ne!(a.pod_cidr(), b.pod_cidr());
        assert!(a.bridge().len() <= 15);
        assert!((16_384..32_768).contains(&a.kubelet_port()));
        assert_ne!(a.kubelet_port(), a.secure_port());
    }
}
