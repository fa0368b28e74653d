//! The node's side: the bridge, its ports, the records and the rules, and the order in which they change.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::address::{Cidr, Family, Pool};
use crate::error::{First, NetworkError};
use crate::firewall::Passage;
use crate::forwarding::Forwarding;
use crate::guard::Guard;
use crate::link::{Link, Veth};
use crate::netlink::Netlink;
use crate::nfnetlink::Nfnetlink;
use crate::nft::Nft;
use crate::pod::{self, Place, PodSide, mac_of};
use crate::port::PortMapping;
use crate::record::{Record, Records, check_identifier};
use crate::ruleset::Rules;
use crate::{NetworkConfig, alias, from_alias, host_link};

/// The MTU when no default route names an uplink.
const DEFAULT_MTU: u32 = 1500;

/// The kernel's settings of IPv6; there only where it has IPv6.
const IPV6: &str = "/proc/sys/net/ipv6";

/// A node with its bridge.
#[derive(Debug)]
pub(crate) struct Node {
    config: NetworkConfig,
    netlink: Netlink,
    bridge: u32,
    mtu: u32,
    rules: Rules,
    passage: Passage,
    guard: Guard,
    /// Whether the guard's table is in the kernel: not every kernel has nftables for bridges.
    is_guarded: AtomicBool,
    /// One of each family.
    forwarding: Vec<Forwarding>,
    nft: Nft,
    /// Puts single elements into the rules and takes them out.
    elements: Nfnetlink,
    records: Records,
    state: Mutex<State>,
    /// One lock for each sandbox that is being attached or detached.
    busy: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

#[derive(Debug)]
struct State {
    /// One for each range.
    pools: Vec<Pool>,
    sandboxes: HashMap<String, Record>,
}

impl Node {
    pub(crate) fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let netlink = Netlink::open().map_err(NetworkError::kernel("open a netlink socket"))?;
        let api_port = config.api.map(|api| api.port);
        let has_ipv6 = Path::new(IPV6).exists();
        if let Some(cidr) = config.pod_cidrs.of(Family::V6).filter(|_| !has_ipv6) {
            return Err(NetworkError::NoIpv6 { cidr });
        }
        let rules = Rules::new((&config.table, &config.bridge), config.pod_cidrs, config.api, has_ipv6);
        let passage = Passage {
            bridge: config.bridge.clone(),
            table: config.table.clone(),
            api_port,
            has_ipv6: config.pod_cidrs.of(Family::V6).is_some(),
        };
        let guard = Guard { table: config.table.clone() };
        let families = config.pod_cidrs.iter().map(|cidr| cidr.family());
        let forwarding =
            families.map(|family| Forwarding::new(family, &config.machine_dir, &config.instance)).collect();
        let mtu = check_routes(&netlink, &config)?;
        let records = Records::open(&config.state_dir)?;
        let bridge = apply_bridge(&netlink, &config, mtu)?;
        let mut sandboxes = records.load()?;
        recover(&netlink, bridge, &records, &mut sandboxes)?;
        let cursors = records.cursors();
        let pool = |cidr: Cidr| {
            let taken = sandboxes.values().flat_map(|record| record.addresses.iter().copied());
            Pool::new(cidr, taken, cursors.iter().copied().find(|address| cidr.contains(*address)))
        };
        let pools = config.pod_cidrs.iter().map(pool).collect();
        let state = Mutex::new(State { pools, sandboxes });
        let (nft, elements, busy) = (Nft::default(), Nfnetlink::default(), Mutex::default());
        let is_guarded = AtomicBool::new(false);
        let node = Self {
            config,
            netlink,
            bridge,
            mtu,
            rules,
            passage,
            guard,
            is_guarded,
            forwarding,
            nft,
            elements,
            records,
            state,
            busy,
        };
        node.forwarding.iter().try_for_each(Forwarding::acquire)?;
        node.apply_rules()?;
        Ok(node)
    }

    pub(crate) fn addresses_of(&self, id: &str) -> Option<Vec<IpAddr>> {
        self.state().sandboxes.get(id).map(|record| record.addresses.clone())
    }

    pub(crate) fn attach(
        &self,
        id: &str,
        netns: BorrowedFd<'_>,
        ports: &[PortMapping],
    ) -> Result<Vec<IpAddr>, NetworkError> {
        check_identifier(id)?;
        let busy = self.lock_for(id);
        let guard = lock(&busy);
        let outcome = self.reserve(id, ports).and_then(|record| {
            let connected = self.connect(id, netns, &record);
            connected.map(|()| record.addresses).inspect_err(|_| self.undo(id))
        });
        drop(guard);
        self.unlock(id, busy);
        outcome
    }

    pub(crate) fn detach(&self, id: &str) -> Result<(), NetworkError> {
        check_identifier(id)?;
        let busy = self.lock_for(id);
        let guard = lock(&busy);
        let outcome = self.disconnect(id);
        drop(guard);
        self.unlock(id, busy);
        outcome
    }

    pub(crate) fn reconcile(&self, live: &HashSet<String>) -> Result<(), NetworkError> {
        let mut first = First::default();
        let recorded: Vec<String> = self.state().sandboxes.keys().cloned().collect();
        for id in recorded.iter().filter(|id| !live.contains(*id)) {
            first.note(self.detach(id));
        }
        first.note(self.remove_strays(live));
        first.note(self.apply_rules());
        first.into_result()
    }

    pub(crate) fn teardown(&self) -> Result<(), NetworkError> {
        let mut first = First::default();
        let ports = first.note(self.ports());
        for link in ports.iter().map(|port| port.name.as_str()).chain([self.config.bridge.as_str()]) {
            first.note(self.remove_link(link));
        }
        let foreign = first.note(self.passage.list());
        let guard = if self.is_guarded() { self.guard.removal() } else { String::new() };
        let removal = self.rules.removal() + &guard + &self.passage.plan_remove(&foreign);
        first.note(self.nft.apply(removal));
        self.state().sandboxes.clear();
        for forwarding in &self.forwarding {
            first.note(forwarding.release());
        }
        first.note(self.records.remove_all());
        first.into_result()
    }

    /// The record of a sandbox: what it has already, with these ports, or new addresses. On disk before it counts.
    fn reserve(&self, id: &str, ports: &[PortMapping]) -> Result<Record, NetworkError> {
        let ports: Vec<PortMapping> = ports.iter().filter(|port| port.host_port != 0).copied().collect();
        let mut state = self.state();
        check_ports(&state.sandboxes, id, &ports)?;
        if let Some(present) = state.sandboxes.get(id).filter(|present| present.ports == ports) {
            return Ok(present.clone());
        }
        let former = state.sandboxes.get(id).cloned();
        let addresses = match &former {
            Some(former) => former.addresses.clone(),
            None => state.take(id)?,
        };
        let record = Record { addresses, ports };
        let written = check_families(id, &record).and_then(|()| self.records.write(id, &record));
        if let Err(error) = written {
            if former.is_none() {
                state.give_back(&record.addresses);
            }
            return Err(error);
        }
        state.sandboxes.insert(id.to_owned(), record.clone());
        drop(state);
        if let Some(former) = former.filter(|former| !former.ports.is_empty()) {
            self.nft.apply(self.rules.close(&former.addresses, &former.ports))?;
        } else {
            self.records.write_cursors(&record.addresses);
        }
        Ok(record)
    }

    fn connect(&self, id: &str, netns: BorrowedFd<'_>, record: &Record) -> Result<(), NetworkError> {
        let name = host_link(&self.config.bridge, id);
        if !record.ports.is_empty() {
            self.open_ports(record)?;
        }
        self.permit(&name, &record.addresses)?;
        let side = self.side_of(&record.addresses);
        if self.link(&name)?.is_some() {
            let probed = side
                .probe(netns)
                .map_err(NetworkError::kernel(format!("look into sandbox {id}'s network")))?;
            if probed {
                return self.set_port_up(id, &name, record);
            }
            self.remove_link(&name)?;
        }
        let veth = Veth {
            name: &name,
            bridge: self.bridge,
            mtu: self.mtu,
            pod: netns,
            pod_name: pod::LINK,
            pod_mac: mac_of(&record.addresses),
        };
        tracing::debug_span!(target: "path", "network: veth pair")
            .in_scope(|| self.netlink.add_veth(&veth).map_err(|error| self.veth_error(id, error)))?;
        let failed = |error| NetworkError::kernel(format!("set up `{}` in sandbox {id}", pod::LINK))(error);
        let inside = tracing::debug_span!(target: "path", "network: Pod's side")
            .in_scope(|| side.apply(netns).map_err(failed))?;
        self.set_port_up(id, &name, record)?;
        let _step = tracing::debug_span!(target: "path", "network: links operational").entered();
        self.await_operational(&name).and_then(|()| inside.await_operational(pod::LINK)).map_err(failed)?;
        // Without ports it has no carrier: the first one's comes to it later, and it answers nothing before.
        self.await_operational(&self.config.bridge).map_err(NetworkError::kernel("wait for the bridge"))
    }

    /// What a Pod with these addresses is to have. One of a range that the node has no more has no way out.
    fn side_of(&self, addresses: &[IpAddr]) -> PodSide {
        let range = |address: &IpAddr| self.config.pod_cidrs.of(Family::of(*address));
        let place = |address: &IpAddr| {
            let cidr = range(address)?;
            Some(Place { address: *address, prefix: cidr.prefix(), gateway: cidr.gateway() })
        };
        PodSide { places: addresses.iter().filter_map(place).collect() }
    }

    fn set_port_up(&self, id: &str, name: &str, record: &Record) -> Result<(), NetworkError> {
        let up = self.netlink.set_port_up(name, &alias(id, &record.addresses));
        up.map_err(NetworkError::kernel(format!("set the link {name} of sandbox {id} up")))
    }

    /// The node's own socket is not kept from others by waiting on it.
    fn await_operational(&self, name: &str) -> std::io::Result<()> {
        match self.netlink.link(name)? {
            Some(link) if !link.is_operational => Netlink::open()?.await_operational(name),
            _ => Ok(()),
        }
    }

    /// Opens host ports; when the table is gone (`nft flush ruleset`), puts all of it back.
    fn open_ports(&self, record: &Record) -> Result<(), NetworkError> {
        match self.nft.apply(self.rules.open(&record.addresses, &record.ports)) {
            Err(NetworkError::NftRefused { .. }) => self.apply_rules(),
            other => other,
        }
    }

    /// Lets a bridge port speak with its Pod's addresses; when the table is gone, puts all of it back.
    fn permit(&self, link: &str, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        if !self.is_guarded() {
            return Ok(());
        }
        match self.elements.add(&self.guard.elements_of(link, addresses)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.apply_rules(),
            other => other.map_err(NetworkError::kernel(format!("open the bridge to the link {link}"))),
        }
    }

    fn is_guarded(&self) -> bool {
        self.is_guarded.load(Ordering::Relaxed)
    }

    fn veth_error(&self, id: &str, error: std::io::Error) -> NetworkError {
        let (sandbox, bridge) = (id.to_owned(), self.config.bridge.clone());
        if error.raw_os_error() == Some(rustix::io::Errno::XFULL.raw_os_error()) {
            return NetworkError::BridgeFull { sandbox, bridge };
        }
        NetworkError::kernel(format!("connect sandbox {sandbox} to the bridge {bridge}"))(error)
    }

    /// Takes back a failed attachment.
    fn undo(&self, id: &str) {
        if let Err(error) = self.disconnect(id) {
            tracing::warn!(sandbox = id, %error, "a failed attachment is not undone yet");
        }
    }

    fn disconnect(&self, id: &str) -> Result<(), NetworkError> {
        let name = host_link(&self.config.bridge, id);
        self.remove_link(&name)?;
        let Some(record) = self.without_ports(id) else { return self.records.remove(id) };
        let elements = self.guard.elements_of(&name, &record.addresses);
        self.elements
            .delete(&elements)
            .map_err(NetworkError::kernel(format!("close the bridge to sandbox {id}")))
            .inspect_err(|_| self.put_back(id, &record))?;
        if !record.ports.is_empty() {
            self.close_ports(&record).inspect_err(|_| self.put_back(id, &record))?;
        }
        self.records.remove(id)?;
        let mut state = self.state();
        state.sandboxes.remove(id);
        state.give_back(&record.addresses);
        Ok(())
    }

    /// The record of a sandbox, whose ports are no part of the rules any more when these are written anew.
    fn without_ports(&self, id: &str) -> Option<Record> {
        let mut state = self.state();
        let present = state.sandboxes.get_mut(id)?;
        Some(Record { addresses: present.addresses.clone(), ports: std::mem::take(&mut present.ports) })
    }

    fn put_back(&self, id: &str, record: &Record) {
        self.state().sandboxes.insert(id.to_owned(), record.clone());
    }

    /// Closes host ports; a table that is gone has none.
    fn close_ports(&self, record: &Record) -> Result<(), NetworkError> {
        match self.nft.apply(self.rules.close(&record.addresses, &record.ports)) {
            Err(NetworkError::NftRefused { what, message })
                if !message.contains("No such file or directory") =>
            {
                Err(NetworkError::NftRefused { what, message })
            }
            Err(NetworkError::NftRefused { .. }) => Ok(()),
            other => other,
        }
    }

    /// Removes ports of the bridge that belong to no live sandbox.
    fn remove_strays(&self, live: &HashSet<String>) -> Result<(), NetworkError> {
        let known: HashSet<String> = live.iter().map(|id| host_link(&self.config.bridge, id)).collect();
        let mut first = First::default();
        for port in
            self.ports()?.iter().filter(|port| port.name.starts_with("veth") && !known.contains(&port.name))
        {
            first.note(self.remove_link(&port.name));
        }
        first.into_result()
    }

    fn ports(&self) -> Result<Vec<Link>, NetworkError> {
        self.netlink.ports_of(self.bridge).map_err(NetworkError::kernel("list the bridge's ports"))
    }

    /// The whole table, and the passages through foreign firewalls, in one transaction.
    fn apply_rules(&self) -> Result<(), NetworkError> {
        let chains = self.passage.list()?;
        let passages = self.passage.plan_open(&chains);
        for line in passages.lines() {
            tracing::info!(
                rule = line,
                "a firewall on this machine drops what it does not know; Pods are let through"
            );
        }
        // Under the lock, so that no port opened meanwhile is lost with the former table.
        let state = self.state();
        let ports: Vec<_> = state.sandboxes.values().flat_map(Record::mapped).collect();
        let rules = self.rules.whole(&ports) + &passages;
        let link_of = |id: &String| host_link(&self.config.bridge, id);
        let pods: Vec<_> =
            state.sandboxes.iter().map(|(id, record)| (link_of(id), record.addresses.clone())).collect();
        self.apply_guarded(&rules, &self.guard.whole(&pods))
    }

    /// Applies the rules with the guard, or without it where the kernel has no nftables for bridges.
    fn apply_guarded(&self, rules: &str, guard: &str) -> Result<(), NetworkError> {
        let guarded = self.nft.apply(format!("{rules}{guard}"));
        self.is_guarded.store(guarded.is_ok(), Ordering::Relaxed);
        let Err(refusal @ NetworkError::NftRefused { .. }) = guarded else { return guarded };
        self.nft.apply(rules.to_owned()).inspect(|()| {
            tracing::warn!(
                error = %refusal,
                "Pods of this node can take each other's addresses; load the kernel module `nf_tables` for bridges (CONFIG_NF_TABLES_BRIDGE)"
            );
        })
    }

    fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        self.netlink.link(name).map_err(NetworkError::kernel(format!("look for the link {name}")))
    }

    fn remove_link(&self, name: &str) -> Result<(), NetworkError> {
        self.netlink.remove_link(name).map_err(NetworkError::kernel(format!("remove the link {name}")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn lock_for(&self, id: &str) -> Arc<Mutex<()>> {
        Arc::clone(lock(&self.busy).entry(id.to_owned()).or_default())
    }

    /// Forgets a sandbox's lock when nobody else waits for it.
    fn unlock(&self, id: &str, busy: Arc<Mutex<()>>) {
        let mut all = lock(&self.busy);
        drop(busy);
        if all.get(id).is_some_and(|last| Arc::strong_count(last) == 1) {
            all.remove(id);
        }
    }
}

impl State {
    /// A free address of each range.
    fn take(&mut self, id: &str) -> Result<Vec<IpAddr>, NetworkError> {
        let mut taken = Vec::new();
        for pool in &mut self.pools {
            let Some(address) = pool.take() else {
                let cidr = pool.cidr();
                self.give_back(&taken);
                return Err(NetworkError::NoAddress { sandbox: id.to_owned(), cidr });
            };
            taken.push(address);
        }
        Ok(taken)
    }

    fn give_back(&mut self, addresses: &[IpAddr]) {
        for pool in &mut self.pools {
            for address in addresses {
                pool.give_back(*address);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_ports(
    sandboxes: &HashMap<String, Record>,
    id: &str,
    ports: &[PortMapping],
) -> Result<(), NetworkError> {
    for (holder, record) in sandboxes.iter().filter(|(holder, _)| *holder != id) {
        let taken = ports.iter().find(|port| record.ports.iter().any(|held| held.collides_with(port)));
        if let Some(port) = taken {
            return Err(NetworkError::taken(port, id, holder));
        }
    }
    Ok(())
}

/// Refuses a port on an address of a family of which the Pod has none.
fn check_families(id: &str, record: &Record) -> Result<(), NetworkError> {
    let has = |family| record.addresses.iter().any(|address| Family::of(*address) == family);
    for (port, host_ip) in record.ports.iter().filter_map(|port| Some((port.host_port, port.host_ip?))) {
        let family = Family::of(host_ip);
        if !has(family) {
            return Err(NetworkError::PortFamily { port, host_ip, family, sandbox: id.to_owned() });
        }
    }
    Ok(())
}

/// Refuses ranges that are in use on the machine; returns the uplink's MTU.
fn check_routes(netlink: &Netlink, config: &NetworkConfig) -> Result<u32, NetworkError> {
    let mtus: Result<Vec<_>, _> =
        config.pod_cidrs.iter().map(|cidr| check_range(netlink, &config.bridge, cidr)).collect();
    Ok(mtus?.into_iter().flatten().min().unwrap_or(DEFAULT_MTU))
}

/// Refuses a range that is in use on the machine; returns the MTU of its family's uplink, if there is one.
fn check_range(netlink: &Netlink, bridge: &str, cidr: Cidr) -> Result<Option<u32>, NetworkError> {
    let failed = |error| NetworkError::kernel("list the machine's routes")(error);
    let ours = netlink.link(bridge).map_err(failed)?.map(|link| link.index);
    let routes = netlink.routes(cidr.family()).map_err(failed)?;
    let name_of =
        |index| netlink.link_at(index).map(|link| link.map_or_else(|| "?".to_owned(), |link| link.name));
    let foreign = routes.iter().filter(|route| Some(route.index) != ours && route.destination.prefix() > 0);
    if let Some(route) = foreign.into_iter().find(|route| route.destination.overlaps(&cidr)) {
        let device = name_of(route.index).map_err(failed)?;
        return Err(NetworkError::Overlap { cidr, route: route.destination, device });
    }
    let uplink = routes.iter().find(|route| route.destination.prefix() == 0).map(|route| route.index);
    let link = uplink.map(|index| netlink.link_at(index)).transpose().map_err(failed)?.flatten();
    Ok(link.map(|link| link.mtu))
}

/// The bridge, with its addresses, up; as it was when it is there.
fn apply_bridge(netlink: &Netlink, config: &NetworkConfig, mtu: u32) -> Result<u32, NetworkError> {
    let name = config.bridge.as_str();
    let gateways: Vec<IpAddr> = config.pod_cidrs.iter().map(|cidr| cidr.gateway()).collect();
    let failed = |error| NetworkError::kernel(format!("make the bridge {name}"))(error);
    if netlink.link(name).map_err(failed)?.is_none() {
        netlink.add_bridge(name, mtu, mac_of(&gateways)).map_err(failed)?;
    }
    let link = netlink.link(name).map_err(failed)?.filter(|link| link.is_bridge);
    let link = link.ok_or_else(|| NetworkError::NotABridge { bridge: name.to_owned() })?;
    // Where the machine's links have no IPv6 by default, this one has.
    if config.pod_cidrs.of(Family::V6).is_some() {
        set(&format!("{IPV6}/conf/{name}/disable_ipv6"), "0")?;
    }
    for cidr in config.pod_cidrs.iter() {
        netlink.add_address(link.index, cidr.gateway(), cidr.prefix()).map_err(failed)?;
    }
    if Path::new(IPV6).exists() {
        pod::sole_router(name).map_err(failed)?;
    }
    netlink.set_up(link.index).map_err(failed)?;
    // Replies to 127.0.0.1 come back over the bridge; the rules drop what Pods send there themselves.
    set(&format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")?;
    Ok(link.index)
}

fn set(path: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(path, value).map_err(NetworkError::file("write", path))
}

/// Takes over connected sandboxes whose record was lost; their ports are known no more.
fn recover(
    netlink: &Netlink,
    bridge: u32,
    records: &Records,
    sandboxes: &mut HashMap<String, Record>,
) -> Result<(), NetworkError> {
    let ports = netlink.ports_of(bridge).map_err(NetworkError::kernel("list the bridge's ports"))?;
    for (id, addresses) in ports.iter().filter_map(|port| from_alias(&port.alias)) {
        if !sandboxes.contains_key(&id) && check_identifier(&id).is_ok() {
            tracing::warn!(
                sandbox = id,
                ?addresses,
                "a network record was lost and is found again on the bridge"
            );
            let record = Record { addresses, ports: Vec::new() };
            records.write(&id, &record)?;
            sandboxes.insert(id, record);
        }
    }
    Ok(())
}
