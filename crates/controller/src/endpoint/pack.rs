//! Distributes endpoints over slices so that as few slices as possible change. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::desired::Desired;
use super::model::{Endpoint, Port, Slice};

/// The most endpoints of one slice.
const FULL: usize = 100;

/// What to do with the slices of one Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<Value>,
    /// Whole objects, with the version that they replace.
    pub(crate) replace: Vec<Value>,
    /// Names.
    pub(crate) delete: Vec<String>,
}

impl Plan {
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.replace.is_empty() && self.delete.is_empty()
    }
}

/// A slice as it is to be.
struct Packed<'a> {
    /// What it was; `None` for a new one.
    slice: Option<&'a Slice>,
    endpoints: Vec<Endpoint>,
}

/// Plans from the slices that the controller has; `is_taken` tells whether a name is in use, by whomever.
pub(crate) fn plan(desired: &Desired, slices: &[&Slice], is_taken: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    let mut namer = Namer { desired, next: 0, is_taken };
    let mut left: Vec<&Slice> = slices.iter().copied().filter(|slice| !slice.is_deleted).collect();
    left.sort_by(|one, other| one.key.name.cmp(&other.key.name));
    let mut groups = desired.groups.clone();
    if groups.is_empty() && desired.has_placeholder {
        groups.insert(("IPv4".to_owned(), Vec::new()), Vec::new());
    }
    for ((kind, ports), endpoints) in groups {
        let (ours, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|slice| slice.address_type == kind && slice.ports == ports);
        left = others;
        let mut packed = pack(&ours, endpoints);
        if packed.is_empty() {
            packed.push(Packed { slice: ours.first().copied(), endpoints: Vec::new() });
        }
        let kept: Vec<&str> =
            packed.iter().filter_map(|one| one.slice).map(|slice| slice.key.name.as_str()).collect();
        let emptied = ours.iter().filter(|slice| !kept.contains(&slice.key.name.as_str()));
        plan.delete.extend(emptied.map(|slice| slice.key.name.clone()));
        for one in &packed {
            note(&mut plan, desired, (&kind, &ports), one, &mut namer);
        }
    }
    plan.delete.extend(left.into_iter().map(|slice| slice.key.name.clone()));
    plan
}

fn note(
    plan: &mut Plan,
    desired: &Desired,
    (kind, ports): (&str, &[Port]),
    one: &Packed<'_>,
    namer: &mut Namer<'_, impl Fn(&str) -> bool>,
) {
    match one.slice {
        Some(slice) if slice.endpoints == one.endpoints && slice.labels == desired.labels => {}
        Some(slice) => {
            let mut object = object(desired, &slice.key.name, kind, ports, &one.endpoints);
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("resourceVersion".to_owned(), slice.key.revision.clone().into());
            }
            plan.replace.push(object);
        }
        None => plan.create.push(object(desired, &namer.name(), kind, ports, &one.endpoints)),
    }
}

/// Every endpoint stays in the slice that it is in; new ones fill up slices before there are more of them.
fn pack<'a>(slices: &[&'a Slice], endpoints: Vec<Endpoint>) -> Vec<Packed<'a>> {
    let mut homeless: BTreeMap<_, Endpoint> =
        endpoints.into_iter().map(|endpoint| (endpoint.identity(), endpoint)).collect();
    let mut packed: Vec<Packed<'a>> = Vec::new();
    for slice in slices {
        let staying = slice.endpoints.iter().filter_map(|endpoint| homeless.remove(&endpoint.identity()));
        packed.push(Packed { slice: Some(slice), endpoints: staying.take(FULL).collect() });
    }
    packed.retain(|one| !one.endpoints.is_empty());
    let mut homeless: Vec<Endpoint> = homeless.into_values().rev().collect();
    for one in &mut packed {
        while one.endpoints.len() < FULL
            && let Some(endpoint) = homeless.pop()
        {
            one.endpoints.push(endpoint);
        }
    }
    homeless.reverse();
    let used: Vec<&str> =
        packed.iter().filter_map(|one| one.slice).map(|slice| slice.key.name.as_str()).collect();
    let mut free: Vec<&'a Slice> =
        slices.iter().copied().filter(|slice| !used.contains(&slice.key.name.as_str())).rev().collect();
    for chunk in homeless.chunks(FULL) {
        packed.push(Packed { slice: free.pop(), endpoints: chunk.to_vec() });
    }
    packed
}

fn object(desired: &Desired, name: &str, kind: &str, ports: &[Port], endpoints: &[Endpoint]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "generateName": format!("{}-", desired.service),
            "namespace": desired.namespace,
            "labels": desired.labels,
            "ownerReferences": [desired.owner],
        },
        "addressType": kind,
        "endpoints": endpoints,
        "ports": ports,
    })
}

/// Names of new slices. They follow from the Service, so that a plan made from an old view makes nothing twice: the
/// name is in use then, and the plan is made anew.
struct Namer<'a, F> {
    desired: &'a Desired,
    next: u32,
    is_taken: F,
}

impl<F: Fn(&str) -> bool> Namer<'_, F> {
    fn name(&mut self) -> String {
        loop {
            let name = self.candidate();
            self.next += 1;
            if !(self.is_taken)(&name) {
                return name;
            }
        }
    }

    /// The Service's name, cut so that the whole is a label, and five characters as upstream's generated names have.
    fn candidate(&self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let seed = format!("{}{}", self.desired.owner, self.next);
        let hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let digits = (0..5_u32).map(|place| hash / 27_u64.pow(place) % 27);
        let suffix: String = digits
            .filter_map(|digit| ALPHABET.get(usize::try_from(digit).ok()?).map(|byte| char::from(*byte)))
            .collect();
        let stem: String = self.desired.service.chars().take(57).collect();
        format!("{stem}-{suffix}")
    }
}
