//! Namespaces, and what is tried in them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use network::{ApiService, NetworkConfig, PodNetwork};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a connection that must come may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long one waits for a connection that must not come.
pub const REFUSED: Duration = Duration::from_millis(300);

pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 85, 0, 1);

/// A network namespace that lives as long as this.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo ready && cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let namespace = File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        Self(namespace)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                move_into_link_name_space(self.fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell script inside and returns what it prints.
    pub fn shell(&self, script: &str) -> String {
        self.run(|| shell(script))
    }

    /// Listens for TCP inside; answers each connection with the address of its peer.
    pub fn serve(&self, address: &str) -> Server {
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut greeting = [0; 2];
                if connection.read_exact(&mut greeting).is_err() || &greeting == b"q\n" {
                    return;
                }
                let peer = connection.peer_addr().unwrap();
                let _ = write!(connection, "{}", peer.ip());
            }
        });
        let stop = self.0.try_clone().map(Netns).unwrap();
        Server { namespace: stop, at: address.parse().unwrap(), port, thread: Some(thread) }
    }

    /// Connects from inside and returns how the server saw us; `None` when nothing answers in time.
    pub fn ask(&self, ip: impl Into<IpAddr>, port: u16, patience: Duration) -> Option<String> {
        let ip = ip.into();
        self.run(|| ask(ip, port, patience))
    }

    /// The same for UDP, with one datagram in each direction.
    pub fn ask_udp(&self, ip: impl Into<IpAddr>, port: u16, patience: Duration) -> Option<String> {
        let ip = ip.into();
        self.run(|| {
            let socket = UdpSocket::bind(if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.set_read_timeout(Some(patience)).unwrap();
            socket.connect((ip, port)).unwrap();
            socket.send(b"?").ok()?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).ok()?;
            Some(String::from_utf8_lossy(&answer[..length]).into_owned())
        })
    }

    /// Answers one datagram with the address of its sender.
    pub fn serve_one_udp(&self, address: &str) -> JoinHandle<()> {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        std::thread::spawn(move || {
            let (_, peer) = socket.recv_from(&mut [0; 16]).unwrap();
            socket.send_to(peer.ip().to_string().as_bytes(), peer).unwrap();
        })
    }
}

pub fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn ask(ip: IpAddr, port: u16, patience: Duration) -> Option<String> {
    let mut connection = TcpStream::connect_timeout(&SocketAddr::from((ip, port)), patience).ok()?;
    connection.set_read_timeout(Some(patience)).unwrap();
    connection.write_all(b"?\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A listener in a namespace; it ends when dropped.
pub struct Server {
    namespace: Netns,
    at: SocketAddr,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let ip = match self.at.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let port = self.port;
        self.namespace.run(|| {
            let at = SocketAddr::from((ip, port));
            if let Ok(mut connection) = TcpStream::connect_timeout(&at, PATIENCE) {
                let _ = connection.write_all(b"q\n");
            }
        });
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A node with an uplink to the world outside.
pub struct World {
    pub node: Netns,
    pub outside: Netns,
    pub state: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let (node, outside) = (Netns::new(), Netns::new());
        // A namespace is named by a thread that is in it.
        outside.run(|| {
            let thread = rustix::thread::gettid().as_raw_nonzero();
            node.shell(&format!(
                "ip link add uplink mtu 1400 type veth peer name uplink mtu 1400 netns {thread}"
            ));
        });
        node.shell("ip addr add 192.0.2.1/24 dev uplink && ip link set uplink up && ip route add default via 192.0.2.2");
        outside.shell("ip addr add 192.0.2.2/24 dev uplink && ip link set uplink up");
        Self { node, outside, state: tempfile::tempdir().unwrap() }
    }

    pub fn config(&self) -> NetworkConfig {
        NetworkConfig {
            instance: "kakoi".to_owned(),
            bridge: "kakoi0".to_owned(),
            table: "kakoi".to_owned(),
            pod_cidrs: "10.85.0.0/16".parse().unwrap(),
            api: Some(ApiService { address: "10.96.0.1:443".parse().unwrap(), port: 6443 }),
            state_dir: self.state.path().join("network"),
            machine_dir: self.state.path().join("run"),
        }
    }

    /// Runs `work` on the node, with a runtime of its own.
    pub fn on_node<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }

    /// Links, rules and the switch: all that a network may leave behind.
    pub fn footprint(&self) -> String {
        self.node.shell("ip -o link | awk '{print $2}'; nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra; ip route; ip -6 route")
    }
}

pub async fn attach(network: &PodNetwork, id: &str, pod: &Netns, ports: &[network::PortMapping]) -> Ipv4Addr {
    let addresses = network.attach(id, pod.fd(), ports).await.unwrap();
    match addresses.ips[..] {
        [std::net::IpAddr::V4(address)] => address,
        ref other => panic!("{other:?}"),
    }
}
