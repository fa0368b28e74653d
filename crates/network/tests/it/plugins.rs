//! Debian's CNI plugins in a node of their own: its links, its addresses' state and its rules are the test's alone.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use network::{CniConfig, NetworkError, PodNetwork, PortMapping, Protocol, SandboxName};

use crate::world::{Netns, PATIENCE};

/// Where Debian's `containernetworking-plugins` puts them.
const PLUGINS: &str = "/usr/lib/cni";

/// A node whose Pods are connected by plugins.
struct World {
    node: Netns,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        assert!(
            Path::new(PLUGINS).join("bridge").exists(),
            "Debian's package containernetworking-plugins is missing: hack/prepare.sh test"
        );
        let world = Self { node: Netns::new(), dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.path("net.d")).unwrap();
        world.configure("10.77.0.0/24");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, subnet: &str) {
        let leases = self.path("leases");
        let list = format!(
            r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[
            {{"type":"bridge","bridge":"cni0","isGateway":true,
              "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"{subnet}"}}]],
                "routes":[{{"dst":"0.0.0.0/0"}}]}}}},
            {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#,
            leases.display()
        );
        fs::write(self.path("net.d/10-pods.conflist"), list).unwrap();
    }

    fn config(&self) -> CniConfig {
        CniConfig {
            conf_dir: self.path("net.d"),
            bin_dirs: vec![self.path("absent"), PLUGINS.into()],
            state_dir: self.path("state"),
            netns_dir: self.path("netns"),
        }
    }

    /// Runs `work` with the network, as the node's daemon would after a start: plugins are started in the node.
    fn run<T: Send>(&self, work: impl AsyncFnOnce(PodNetwork) -> T + Send) -> T {
        self.node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(PodNetwork::with_plugins(self.config()).await.unwrap()).await })
        })
    }

    fn leases(&self) -> Vec<String> {
        let all = fs::read_dir(self.path("leases/pods")).into_iter().flatten().flatten();
        let names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.parse::<Ipv4Addr>().is_ok()).collect()
    }

    /// Whatever a sandbox has left: leases, links, names, records, rules.
    fn left(&self) -> Vec<String> {
        let names = |dir: &str| -> Vec<String> {
            let all = fs::read_dir(self.path(dir)).into_iter().flatten().flatten();
            all.map(|entry| format!("{dir}/{}", entry.file_name().to_string_lossy())).collect()
        };
        let rules = self.node.shell("iptables -t nat -S 2>/dev/null | grep -e --dport || true");
        let links = self.node.shell("ip -o link show type veth");
        let text = rules.lines().chain(links.lines()).map(str::to_owned);
        [names("netns"), names("state/cni"), self.leases(), text.collect()].concat()
    }
}

fn port() -> PortMapping {
    PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp }
}

fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip} is not of the test's range"),
    }
}

/// A plugin of CNI 1.1, which Debian's are not yet: it notes what it is told, passes on what they know, and is out of
/// order while there is a file `broken` beside it.
const MODERN: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
input=$(cat)
printf '%s %s\n' "$CNI_COMMAND" "$input" >>told
case $CNI_COMMAND in
STATUS) [ ! -e broken ] || { echo '{"cniVersion":"1.1.0","code":50,"msg":"no more addresses"}'; exit 1; } ;;
GC) ;;
*) printf '%s' "$input" | sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/' | /usr/lib/cni/bridge ;;
esac
"#;

#[test]
fn a_network_of_cni_1_1_is_asked_whether_it_takes_pods_and_told_which_there_are() {
    use std::os::unix::fs::PermissionsExt as _;
    let (world, pod, other) = (World::new(), Netns::new(), Netns::new());
    fs::create_dir(world.path("absent")).unwrap();
    fs::write(world.path("absent/modern"), MODERN).unwrap();
    fs::set_permissions(world.path("absent/modern"), fs::Permissions::from_mode(0o755)).unwrap();
    // Both versions are offered: the newer one is spoken.
    let list = serde_json::json!({"name": "pods", "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"],
        "plugins": [{"type": "modern", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": world.path("leases"), "ranges": [[{"subnet": "10.77.0.0/24"}]]}}]});
    fs::write(world.path("net.d/10-pods.conflist"), list.to_string()).unwrap();
    let told = || fs::read_to_string(world.path("absent/told")).unwrap_or_default();
    world.run(async |network| {
        network.probe().await.unwrap();
        network.attach("one", pod.fd(), &[]).await.unwrap();
        network.attach("two", other.fd(), &[]).await.unwrap();
        fs::write(world.path("absent/broken"), "").unwrap();
        let refused = network.probe().await.unwrap_err().to_string();
        assert_eq!(refused, "the CNI plugin `modern` failed at STATUS: no more addresses (code 50)");
        network.reconcile(&["one".to_owned()]).await.unwrap();
        let lines = told();
        let newest = lines.lines().last().unwrap();
        assert!(newest.starts_with("GC ") && newest.contains(r#""cniVersion":"1.1.0""#), "{newest}");
        let valid = r#""cni.dev/valid-attachments":[{"containerID":"one","ifname":"eth0"}]"#;
        assert!(newest.contains(valid), "{newest}");
        network.teardown().await.unwrap();
    });
    assert!(told().lines().last().unwrap().contains(r#""cni.dev/valid-attachments":[]"#));
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn a_pod_has_the_address_the_routes_and_the_ports_that_the_plugins_gave() {
    let (world, pod, other) = (World::new(), Netns::new(), Netns::new());
    let [ip, far] = world.run(async |network| {
        network.probe().await.unwrap();
        let name = SandboxName { id: "one", namespace: "ns", name: "pod", uid: "u-1" };
        let one = network.attach(name, pod.fd(), &[port()]).await.unwrap();
        let two = network.attach("two", other.fd(), &[]).await.unwrap();
        assert_eq!(network.addresses("one"), Some(one.clone()));
        [v4(one.ips[0]), v4(two.ips[0])]
    });
    assert_eq!(ip.octets()[..3], [10, 77, 0]);
    assert!(pod.shell("ip -4 -o addr show dev eth0").contains(&ip.to_string()));
    assert!(pod.shell("ip route").contains("default via 10.77.0.1"));
    let _server = pod.serve("0.0.0.0:80");
    assert_eq!(other.ask(ip, 80, PATIENCE), Some(far.to_string()), "from Pod to Pod");
    assert!(world.node.ask(ip, 80, PATIENCE).is_some(), "from the node");
    assert!(other.ask(Ipv4Addr::new(10, 77, 0, 1), 8080, PATIENCE).is_some(), "through the node's port");
    world.run(async |network| network.teardown().await.unwrap());
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn a_restart_undoes_with_the_configuration_that_the_sandbox_was_made_with() {
    let (world, pod, other) = (World::new(), Netns::new(), Netns::new());
    let before = world.run(async |network| {
        network.attach("one", pod.fd(), &[port()]).await.unwrap();
        network.attach("two", other.fd(), &[]).await.unwrap()
    });
    world.configure("10.78.0.0/24");
    world.run(async |network| {
        network.reconcile(&["one".to_owned(), "two".to_owned()]).await.unwrap();
        // Without ports: the `portmap` of Debian 12 looks for IPv6 rules that it did not make, and fails at CHECK.
        let again = network.attach("two", other.fd(), &[]).await.unwrap();
        assert_eq!(again, before, "an attached sandbox stays as it is");
        network.reconcile(&[]).await.unwrap();
        assert_eq!((network.addresses("one"), network.addresses("two")), (None, None));
    });
    assert_eq!(world.left(), Vec::<String>::new());
    world.node.shell("ip link del cni0");
    let anew = world.run(async |network| network.attach("three", pod.fd(), &[]).await.unwrap());
    assert_eq!(v4(anew.ips[0]).octets()[..3], [10, 78, 0]);
    world.run(async |network| network.teardown().await.unwrap());
}

#[test]
fn a_sandbox_whose_link_was_taken_away_is_attached_anew() {
    let (world, pod) = (World::new(), Netns::new());
    world.run(async |network| network.attach("one", pod.fd(), &[]).await.unwrap());
    pod.shell("ip link del eth0");
    let again = world.run(async |network| network.attach("one", pod.fd(), &[]).await.unwrap());
    assert!(pod.shell("ip -4 -o addr show dev eth0").contains(&again.ips[0].to_string()));
    assert_eq!(world.leases().len(), 1);
    world.run(async |network| network.teardown().await.unwrap());
}

#[test]
fn a_namespace_that_is_gone_is_detached_all_the_same() {
    let world = World::new();
    {
        let pod = Netns::new();
        world.run(async |network| network.attach("one", pod.fd(), &[port()]).await.unwrap());
    }
    // As after a reboot: no name, no namespace.
    rustix::mount::unmount(world.path("netns/kakoi-one"), rustix::mount::UnmountFlags::DETACH).unwrap();
    fs::remove_file(world.path("netns/kakoi-one")).unwrap();
    world.run(async |network| {
        network.detach("one").await.unwrap();
        network.detach("one").await.unwrap();
    });
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn what_a_plugin_refuses_is_told_and_leaves_nothing() {
    let (world, pod) = (World::new(), Netns::new());
    // Room for a network, a gateway and a broadcast address, and one Pod.
    world.configure("10.79.0.0/30");
    world.run(async |network| {
        network.attach("one", pod.fd(), &[]).await.unwrap();
        let other = Netns::new();
        let refused = network.attach("two", other.fd(), &[]).await.unwrap_err().to_string();
        assert!(refused.contains("`bridge` failed at ADD for sandbox two"), "{refused}");
        assert!(refused.contains("no IP addresses available"), "{refused}");
        assert_eq!(network.addresses("two"), None);
        network.teardown().await.unwrap();
    });
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn what_is_missing_is_named_before_anything_is_made() {
    let (world, pod) = (World::new(), Netns::new());
    let conf = world.path("net.d/10-pods.conflist");
    world.run(async |network| {
        fs::write(&conf, r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"ptp"}]}"#).unwrap();
        let refused = network.attach("one", pod.fd(), &[port()]).await.unwrap_err();
        assert!(matches!(refused, NetworkError::CniPorts { .. }), "{refused}");
        fs::write(&conf, r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"cilium-cni"}]}"#)
            .unwrap();
        let refused = network.probe().await.unwrap_err().to_string();
        assert!(refused.contains("`cilium-cni` is in none of"), "{refused}");
        network.attach("one", pod.fd(), &[]).await.unwrap_err();
        fs::remove_file(&conf).unwrap();
        assert!(matches!(network.probe().await, Err(NetworkError::CniMissing { .. })));
        network.attach("one", pod.fd(), &[]).await.unwrap_err();
    });
    assert_eq!(world.left(), Vec::<String>::new());
}
