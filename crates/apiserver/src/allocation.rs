//! Cluster addresses and node ports of Services. An address is taken when its `IPAddress` object is stored, and nobody
//! can store a second one; a node port is taken when a stored Service has it. So nothing is lost in a restart: what a
//! write left behind that never came to its end is found and given back at the next start.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::kind::service::{self, NodePort};
use api::kind::{self, Kind};
use api::status::Status;
use api::validation::{FieldErrors, Path};
use serde_json::{Value, json};
use store::{CommitError, Expect, Op};

use crate::cache::Table;
use crate::meta;
use crate::server::Server;
use crate::write::Write;

/// Node ports, both ends included; upstream's range.
const PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// How many random addresses are tried before the range is walked.
const GUESSES: usize = 32;
/// The name of the Service that stands for this server, which alone has the first address.
const OWN: (&str, &str) = ("default", "kubernetes");

/// What is being given out.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// The address of the server's own Service.
    own: Ipv4Addr,
    /// How many leading bits the range's addresses share.
    prefix: u8,
    /// Ports that writes hold which have not come to their end.
    held: Mutex<HashSet<NodePort>>,
}

/// What one write has taken. Dropping it gives the ports back; addresses are given back by [`Held::release`].
#[derive(Debug)]
pub(crate) struct Held<'a> {
    allocator: &'a Allocator,
    ports: Vec<NodePort>,
    addresses: Vec<String>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.allocator.held();
        for port in &self.ports {
            held.remove(port);
        }
    }
}

impl Held<'_> {
    /// Gives addresses back after a write that did not come to its end.
    pub(crate) async fn release(self, server: &Server) {
        for address in &self.addresses {
            forget(server, address).await;
        }
    }
}

impl Allocator {
    /// Gives out the addresses around the one of the server's own Service: 65,534 of them.
    pub(crate) fn new(own: IpAddr) -> Self {
        let own = match own {
            IpAddr::V4(own) => own,
            IpAddr::V6(_) => Ipv4Addr::new(10, 96, 0, 1),
        };
        Self { own, prefix: 16, held: Mutex::default() }
    }

    /// The range, such as `10.96.0.0/16`.
    pub(crate) fn range(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.first()), self.prefix)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<NodePort>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    fn first(&self) -> u32 {
        u32::from(self.own) & !(self.size() - 1)
    }

    /// The `index`th address, without the network's own and the broadcast address.
    fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first() + 1 + index % (self.size() - 2))
    }

    fn holds(&self, address: Ipv4Addr) -> bool {
        let index = u32::from(address).wrapping_sub(self.first());
        index > 0 && index < self.size() - 1
    }
}

/// Gives a new or changed Service what it wants and has not got; `old` is what it had.
pub(crate) async fn allocate<'a>(
    write: &Write<'a>,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Held<'a>, Status> {
    let name = meta::text(object, "name").to_owned();
    let errors = service::fill_families(object);
    if !errors.is_empty() {
        return Err(Status::invalid(write.kind, &name, &errors));
    }
    let server = write.server;
    let ports = hold_ports(server, write.kind, object, old);
    let mut held = ports.map_err(|errors| Status::invalid(write.kind, &name, &errors))?;
    if write.dry_run {
        return Ok(held);
    }
    let owned: Vec<&str> = old.map(service::addresses).unwrap_or_default();
    let wanted: Vec<String> = service::addresses(object)
        .into_iter()
        .filter(|address| !owned.contains(address))
        .map(str::to_owned)
        .collect();
    for address in wanted {
        match take(write, object, &address).await {
            Ok(()) => held.addresses.push(address),
            Err(status) => {
                held.release(server).await;
                return Err(status);
            }
        }
    }
    if service::wants_address(object) && service::addresses(object).is_empty() {
        match take_any(write, object).await {
            Ok(address) => {
                service::set_address(object, &address);
                held.addresses.push(address);
            }
            Err(status) => {
                held.release(server).await;
                return Err(status);
            }
        }
    }
    Ok(held)
}

/// Gives back what a changed or removed Service had and has no more.
pub(crate) async fn give_back(server: &Server, old: &Value, new: Option<&Value>) {
    let kept = new.map(service::addresses).unwrap_or_default();
    for address in service::addresses(old).into_iter().filter(|address| !kept.contains(address)) {
        forget(server, address).await;
    }
}

fn addresses_kind() -> Result<&'static Kind, Status> {
    kind::find("networking.k8s.io", "v1", "ipaddresses").ok_or_else(Status::unknown_path)
}

/// Takes an address that the Service asks for.
async fn take(write: &Write<'_>, object: &Value, address: &str) -> Result<(), Status> {
    let server = write.server;
    let refuse = |detail: String| {
        let mut errors = FieldErrors::new();
        let list = object.pointer("/spec/clusterIPs").cloned().unwrap_or_default();
        errors.invalid(&Path::new("spec").child("clusterIPs"), list, detail);
        Err(Status::invalid(write.kind, meta::text(object, "name"), &errors))
    };
    let is_own = (meta::text(object, "namespace"), meta::text(object, "name")) == OWN;
    match address.parse::<Ipv4Addr>() {
        Ok(parsed) if !server.allocator.holds(parsed) => {
            let range = server.allocator.range();
            refuse(format!(
                "failed to allocate IP {address}: the provided network does not contain the IP: the valid range is {range}"
            ))
        }
        Ok(parsed) if parsed == server.allocator.own && !is_own => {
            refuse(format!("failed to allocate IP {address}: provided IP is already allocated"))
        }
        // What is no address the rules refuse.
        Err(_) => Ok(()),
        Ok(_) => match store(server, object, address).await {
            Ok(true) => Ok(()),
            Ok(false) => refuse(format!("failed to allocate IP {address}: provided IP is already allocated")),
            Err(status) => Err(status),
        },
    }
}

/// Takes a free address: some at random, then one after the other.
async fn take_any(write: &Write<'_>, object: &Value) -> Result<String, Status> {
    let allocator = &write.server.allocator;
    let guesses = std::iter::repeat_with(rand::random::<u32>).take(GUESSES);
    for index in guesses.chain(0..allocator.size() - 2) {
        let address = allocator.address(index);
        if address != allocator.own && store(write.server, object, &address.to_string()).await? {
            return Ok(address.to_string());
        }
    }
    Err(Status::internal(format!(
        "failed to allocate a serviceIP: range {} is full; delete Services that nobody uses",
        allocator.range()
    )))
}

/// Stores the object that takes an address; false when it is taken.
async fn store(server: &Server, service: &Value, address: &str) -> Result<bool, Status> {
    let kind = addresses_kind()?;
    let table = server.cache.table(kind).ok_or_else(Status::unknown_path)?;
    if table.get(address).is_some() {
        return Ok(false);
    }
    let value = table.encoder().stored(&owner(service, address));
    let commit = server.cache.commit(table, address, Expect::Absent, Op::Put(value)).await;
    match commit {
        Ok(_) => Ok(true),
        Err(CommitError::Conflict { .. }) => Ok(false),
        Err(CommitError::Store(error)) => Err(Status::internal(error.to_string())),
    }
}

/// The `IPAddress` object that says whose an address is.
fn owner(service: &Value, address: &str) -> Value {
    json!({
        "metadata": {
            "name": address,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": api::time::format_seconds(jiff::Timestamp::now()),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": MANAGER,
            },
        },
        "spec": {"parentRef": {
            "group": "",
            "resource": "services",
            "namespace": meta::text(service, "namespace"),
            "name": meta::text(service, "name"),
        }},
    })
}

const MANAGER: &str = "ipallocator.k8s.io";

async fn forget(server: &Server, address: &str) {
    let Some(table) = addresses_kind().ok().and_then(|kind| server.cache.table(kind)) else { return };
    remove(server, table, address).await;
}

async fn remove(server: &Server, table: &Table, address: &str) {
    if let Some(found) = table.get(address) {
        let expect = Expect::Revision(found.revision());
        if let Err(error) = server.cache.commit(table, address, expect, Op::Delete).await {
            tracing::warn!(%error, address, "a service address could not be given back; the next start does it");
        }
    }
}

/// Chooses the node ports that a Service wants, and holds them.
fn hold_ports<'a>(
    server: &'a Server,
    kind: &Kind,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Held<'a>, FieldErrors> {
    let allocator = &server.allocator;
    let mut taken = stored_ports(server, kind, object);
    let mut held = allocator.held();
    taken.extend(held.iter().cloned());
    let owned = old.map(service::node_ports).unwrap_or_default();
    let mut mine = Vec::new();
    let mut errors = FieldErrors::new();
    for port in service::node_ports(object).into_iter().filter(|port| !owned.contains(port)) {
        let path = Path::new("spec").child("ports").index(0).child("nodePort");
        if !PORTS.contains(&port.number) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                PORTS.start(),
                PORTS.end()
            );
            errors.invalid(&path, port.number, detail);
        } else if taken.contains(&port) {
            errors.invalid(&path, port.number, "provided port is already allocated");
        } else {
            mine.push(port);
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    taken.extend(mine.iter().cloned());
    taken.extend(owned);
    for (position, protocol) in service::ports_without_number(object) {
        let Some(port) = free_port(&taken, &protocol) else {
            errors.push(
                api::validation::ErrorKind::Internal,
                &Path::new("spec").child("ports"),
                None,
                "failed to allocate a nodePort: range is full",
            );
            return Err(errors);
        };
        service::set_node_port(object, position, port.number);
        taken.insert(port.clone());
        mine.push(port);
    }
    held.extend(mine.iter().cloned());
    drop(held);
    Ok(Held { allocator, ports: mine, addresses: Vec::new() })
}

/// The node ports of all other Services.
fn stored_ports(server: &Server, kind: &Kind, object: &Value) -> HashSet<NodePort> {
    let Some(table) = server.cache.table(kind) else { return HashSet::new() };
    let own = meta::key(true, meta::text(object, "namespace"), meta::text(object, "name"));
    let snapshot = server.cache.snapshot(table);
    let others = snapshot.objects.iter().filter(|(key, _)| ***key != *own);
    others.flat_map(|(_, other)| service::node_ports(&other.value())).collect()
}

fn free_port(taken: &HashSet<NodePort>, protocol: &str) -> Option<NodePort> {
    let count = PORTS.end() - PORTS.start() + 1;
    let begin = rand::random::<u16>() % count;
    (0..count)
        .map(|i| NodePort { protocol: protocol.to_owned(), number: PORTS.start() + (begin + i) % count })
        .find(|port| !taken.contains(port))
}

/// Gives back the addresses of writes that never came to their end: those whose Service is not there or has another.
pub(crate) async fn repair(server: &Arc<Server>) {
    let Some(services) = kind::find("", "v1", "services").and_then(|kind| server.cache.table(kind)) else {
        return;
    };
    let Some(table) = addresses_kind().ok().and_then(|kind| server.cache.table(kind)) else { return };
    let snapshot = server.cache.snapshot(table);
    for address in snapshot.objects.values() {
        let object = address.value();
        let parent = |name: &str| {
            object.pointer(&format!("/spec/parentRef/{name}")).and_then(Value::as_str).unwrap_or_default()
        };
        let is_ours = object
            .pointer("/metadata/labels/ipaddress.kubernetes.io~1managed-by")
            .is_some_and(|m| m == MANAGER);
        let owner = services.get(&meta::key(true, parent("namespace"), parent("name")));
        let is_used =
            owner.is_some_and(|owner| service::addresses(&owner.value()).contains(&&**address.key()));
        if is_ours && !is_used {
            remove(server, table, address.key()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_around_the_servers_own_address() {
        let allocator = Allocator::new("10.96.0.1".parse().unwrap());
        assert_eq!(allocator.range(), "10.96.0.0/16");
        assert_eq!(allocator.address(0), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(allocator.address(65_533), Ipv4Addr::new(10, 96, 255, 254));
        assert_eq!(allocator.address(65_534), allocator.address(0));
        assert!(allocator.holds(Ipv4Addr::new(10, 96, 1, 0)));
        for outside in ["10.96.0.0", "10.96.255.255", "10.97.0.1"] {
            assert!(!allocator.holds(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn the_last_free_port_is_found() {
        let port = |number| NodePort { protocol: "TCP".to_owned(), number };
        let mut taken: HashSet<NodePort> = PORTS.map(port).collect();
        assert_eq!(free_port(&taken, "TCP"), None);
        assert!(free_port(&taken, "UDP").is_some());
        taken.remove(&port(31_000));
        assert_eq!(free_port(&taken, "TCP"), Some(port(31_000)));
    }
}
