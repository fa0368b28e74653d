//! Rules for Services, Endpoints and `EndpointSlice`s.

use std::net::IpAddr;

use serde_json::Value;

use super::meta::{immutable, object_meta, object_meta_update};
use super::rule::{absent_or_one_of, immutables, one_of};
use super::{FieldErrors, Path};
use crate::access::{Access, spec};
use crate::kind::Ctx;
use crate::kind::service::{HEADLESS, is_external};
use crate::name::{
    dns_label_faults, dns_subdomain_faults, label_value_faults, port_name_faults, qualified_name_faults,
    range_faults,
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// The longest time for which a client stays with one Pod, in seconds: a day.
const LONGEST_AFFINITY: i64 = 86_400;

static NULL: Value = Value::Null;

/// Rules for a new Service, after it has got its addresses.
pub fn service(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_label_faults);
    service_spec(object, &mut errors);
    errors
}

fn service_spec(object: &Value, errors: &mut FieldErrors) {
    let (path, spec) = (Path::new("spec"), spec(object));
    let is_headless = spec.text("clusterIP") == HEADLESS;
    match spec.text("type") {
        "ExternalName" => external_name(spec, &path, errors),
        "LoadBalancer" | "NodePort" if is_headless => {
            let detail = format!("may not be set to 'None' for {} services", spec.text("type"));
            errors.invalid(&path.child("clusterIPs").index(0), HEADLESS, detail);
        }
        _ => {}
    }
    if spec.list("ports").is_empty() && !is_headless && spec.text("type") != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    ports(spec, &path.child("ports"), errors);
    super::meta::labels(spec, "selector", &path.child("selector"), errors);
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], &path, errors);
    affinity(spec, &path, errors);
    one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &path, errors);
    for (i, address) in spec.list("externalIPs").iter().filter_map(Value::as_str).enumerate() {
        ip(address, &path.child("externalIPs").index(i), errors);
    }
    addresses(spec, &path, errors);
    traffic(object, &path, errors);
}

fn external_name(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for name in ["clusterIPs", "ipFamilies"] {
        if !spec.list(name).is_empty() {
            errors.forbidden(&path.child(name), "may not be set for ExternalName services");
        }
    }
    if spec.field("ipFamilyPolicy").is_some() {
        errors.forbidden(&path.child("ipFamilyPolicy"), "may not be set for ExternalName services");
    }
    let name = spec.text("externalName").trim_end_matches('.');
    if name.is_empty() {
        errors.required(&path.child("externalName"), "");
    } else {
        for fault in dns_subdomain_faults(name) {
            errors.invalid(&path.child("externalName"), name, fault);
        }
    }
}

fn ports(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let ports = spec.list("ports");
    let is_open = matches!(spec.text("type"), "NodePort" | "LoadBalancer");
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port.text("name");
        let earlier = || ports.iter().take(i);
        if name.is_empty() && ports.len() > 1 {
            errors.required(&path.child("name"), "");
        } else if !name.is_empty() {
            for fault in dns_label_faults(name) {
                errors.invalid(&path.child("name"), name, fault);
            }
            if earlier().any(|one| one.text("name") == name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        let number = port.int("port").unwrap_or_default();
        for fault in range_faults(number, 1, 65_535) {
            errors.invalid(&path.child("port"), number, fault);
        }
        one_of(port, "protocol", PROTOCOLS, &path, errors);
        target_port(port, &path, errors);
        application(port, &path, errors);
        let is_same = |name: &str| {
            earlier()
                .any(|one| one.text("protocol") == port.text("protocol") && one.int(name) == port.int(name))
        };
        if is_same("port") {
            let shown = serde_json::json!({"port": number, "protocol": port.text("protocol")});
            errors.duplicate(&path, shown);
        }
        let node_port = port.int("nodePort").unwrap_or_default();
        if node_port != 0 && !is_open {
            let detail = format!("may not be used when `type` is '{}'", spec.text("type"));
            errors.forbidden(&path.child("nodePort"), detail);
        } else if node_port != 0 && is_same("nodePort") {
            errors.duplicate(&path.child("nodePort"), node_port);
        }
    }
}

fn target_port(port: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("targetPort");
    match port.field("targetPort") {
        Some(Value::String(name)) => {
            for fault in port_name_faults(name) {
                errors.invalid(&path, name.as_str(), fault);
            }
        }
        Some(value) => {
            for fault in range_faults(value.as_i64().unwrap_or_default(), 1, 65_535) {
                errors.invalid(&path, value.clone(), fault);
            }
        }
        None => {}
    }
}

fn application(port: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(protocol) = port.field("appProtocol").and_then(Value::as_str) {
        for fault in qualified_name_faults(protocol) {
            errors.invalid(&path.child("appProtocol"), protocol, fault);
        }
    }
}

fn affinity(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("sessionAffinityConfig");
    let config = spec.field("sessionAffinityConfig");
    match (spec.text("sessionAffinity"), config) {
        ("None", Some(_)) => {
            let detail = "must not be set when session affinity is None";
            errors.forbidden(&path, detail);
        }
        ("ClientIP", config) => {
            let seconds = config.and_then(|config| config.pointer("/clientIP/timeoutSeconds"));
            let path = path.child("clientIP").child("timeoutSeconds");
            match seconds.and_then(Value::as_i64) {
                None => errors.required(&path, "when session affinity type is ClientIP"),
                Some(seconds) if !(1..=LONGEST_AFFINITY).contains(&seconds) => {
                    let detail = format!("must be greater than 0 and less than {LONGEST_AFFINITY}");
                    errors.invalid(&path, seconds, detail);
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

/// An address in its canonical form.
pub(crate) fn ip(address: &str, path: &Path, errors: &mut FieldErrors) {
    if address.parse::<IpAddr>().is_err() {
        errors.invalid(path, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn addresses(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    if spec.text("type") == "ExternalName" {
        return;
    }
    let list = spec.list("clusterIPs");
    let below = path.child("clusterIPs");
    let first = list.first().and_then(Value::as_str);
    match (spec.text("clusterIP"), first) {
        ("", Some(_)) => errors.invalid(&below, list, "must be empty when `clusterIP` is not specified"),
        (one, None) if !one.is_empty() => errors.required(&below, ""),
        (one, Some(first)) if one != first => {
            errors.invalid(&below, list, "first value must match `clusterIP`");
        }
        _ => {}
    }
    if first == Some(HEADLESS) && list.len() > 1 {
        errors.invalid(&below, list, "'None' must be the first and only value");
    }
    for (i, address) in list.iter().filter_map(Value::as_str).enumerate() {
        if address != HEADLESS {
            ip(address, &below.index(i), errors);
        }
    }
    if list.len() > 2 {
        errors.invalid(&below, list, "may only hold up to 2 values");
    }
    for (i, family) in spec.list("ipFamilies").iter().enumerate() {
        let path = path.child("ipFamilies").index(i);
        if family != "IPv4" && family != "IPv6" {
            errors.not_supported(&path, family.clone(), &["IPv4", "IPv6"]);
        }
        if spec.list("ipFamilies").iter().take(i).any(|earlier| earlier == family) {
            errors.duplicate(&path, family.clone());
        }
    }
    absent_or_one_of(
        spec,
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
        path,
        errors,
    );
}

fn traffic(object: &Value, path: &Path, errors: &mut FieldErrors) {
    let spec = spec(object);
    let external = path.child("externalTrafficPolicy");
    match (is_external(object), spec.text("externalTrafficPolicy")) {
        (_, "") if !is_external(object) => {}
        (false, other) => {
            errors.invalid(&external, other, "may only be set for externally-accessible services");
        }
        (true, "") => errors.required(&external, ""),
        (true, "Cluster" | "Local") => {}
        (true, other) => errors.not_supported(&external, other, &["Cluster", "Local"]),
    }
    absent_or_one_of(spec, "internalTrafficPolicy", &["Cluster", "Local"], path, errors);
    if spec.text("type") != "LoadBalancer" {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.field(name).is_some() {
                errors.forbidden(&path.child(name), "may only be used when `type` is 'LoadBalancer'");
            }
        }
        if !spec.list("loadBalancerSourceRanges").is_empty() {
            let detail = "may only be used when `type` is 'LoadBalancer'";
            errors.forbidden(&path.child("loadBalancerSourceRanges"), detail);
        }
    }
    let has_health = spec.int("healthCheckNodePort").unwrap_or_default() != 0;
    let wants_health = spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local";
    if has_health && !wants_health {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&path.child("healthCheckNodePort"), spec.int("healthCheckNodePort"), detail);
    }
}

/// Rules for a changed Service: a given address stays.
pub fn service_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    let path = Path::new("spec").child("clusterIPs");
    let named = |object: &Value| spec(object).text("type") == "ExternalName";
    let (wanted, before) = (spec(new).list("clusterIPs"), spec(old).list("clusterIPs"));
    if !named(new)
        && !named(old)
        && let (Some(wanted_first), Some(first)) = (wanted.first(), before.first())
        && wanted_first != first
    {
        errors.invalid(&path.index(0), wanted, "may not change once set");
    }
    let is_balanced = |object: &Value| spec(object).text("type") == "LoadBalancer";
    if is_balanced(new) && is_balanced(old) {
        let class = |object: &'_ Value| spec(object).field("loadBalancerClass").cloned().unwrap_or_default();
        if class(new) != class(old) {
            let detail = "may not change once set";
            errors.invalid(&Path::new("spec").child("loadBalancerClass"), class(new), detail);
        }
    }
    service_spec(new, &mut errors);
    errors
}

/// Rules for a write to a Service's status.
pub fn service_status(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let ingress = new.pointer("/status/loadBalancer").unwrap_or(&NULL).list("ingress");
    if !ingress.is_empty() && spec(new).text("type") != "LoadBalancer" {
        errors.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for (i, one) in ingress.iter().enumerate() {
        if !one.text("ip").is_empty() {
            ip(one.text("ip"), &path.index(i).child("ip"), &mut errors);
        }
    }
    errors
}

/// Rules for new Endpoints.
pub fn endpoints(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    for (i, subset) in object.list("subsets").iter().enumerate() {
        let path = Path::new("subsets").index(i);
        if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (j, address) in subset.list(list).iter().enumerate() {
                endpoint_ip(address.text("ip"), &path.child(list).index(j).child("ip"), &mut errors);
            }
        }
        let ports = subset.list("ports");
        for (j, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(j);
            endpoint_port(port, ports.len() > 1, &path, &mut errors);
        }
    }
    errors
}

fn endpoint_port(port: &Value, needs_name: bool, path: &Path, errors: &mut FieldErrors) {
    let name = port.text("name");
    if name.is_empty() && needs_name {
        errors.required(&path.child("name"), "");
    } else if !name.is_empty() {
        for fault in dns_label_faults(name) {
            errors.invalid(&path.child("name"), name, fault);
        }
    }
    let number = port.int("port").unwrap_or_default();
    for fault in range_faults(number, 1, 65_535) {
        errors.invalid(&path.child("port"), number, fault);
    }
    one_of(port, "protocol", PROTOCOLS, path, errors);
    application(port, path, errors);
}

/// Endpoints are not on the node itself.
fn endpoint_ip(address: &str, path: &Path, errors: &mut FieldErrors) {
    let Ok(parsed) = address.parse::<IpAddr>() else {
        ip(address, path, errors);
        return;
    };
    let is_link_local = match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match () {
        () if parsed.is_unspecified() => {
            errors.invalid(path, address, format!("may not be unspecified ({parsed})"));
        }
        () if parsed.is_loopback() => {
            errors.invalid(path, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
        }
        () if is_link_local => {
            errors.invalid(path, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
        }
        () if parsed.is_multicast() => {
            errors.invalid(path, address, "may not be in the multicast range (224.0.0.0/4, ff00::/10)");
        }
        () => {}
    }
}

/// Rules for changed Endpoints.
pub fn endpoints_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(endpoints(new, ctx));
    errors
}

/// Rules for a new `EndpointSlice`.
pub fn slice(object: &Value, _ctx: &Ctx) -> FieldErrors {
    const MOST_ENDPOINTS: usize = 1000;
    const MOST_PORTS: usize = 20_000;
    const MOST_ADDRESSES: usize = 100;
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    let root = Path::root();
    one_of(object, "addressType", &["FQDN", "IPv4", "IPv6"], &root, &mut errors);
    let endpoints = object.list("endpoints");
    let path = Path::new("endpoints");
    if endpoints.len() > MOST_ENDPOINTS {
        errors.too_many(&path, endpoints.len(), MOST_ENDPOINTS);
        return errors;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(i);
        let addresses = endpoint.list("addresses");
        if addresses.is_empty() {
            errors.required(&path.child("addresses"), "must contain at least 1 address");
        } else if addresses.len() > MOST_ADDRESSES {
            errors.too_many(&path.child("addresses"), addresses.len(), MOST_ADDRESSES);
        }
        for (j, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
            slice_address(
                address,
                object.text("addressType"),
                &path.child("addresses").index(j),
                &mut errors,
            );
        }
        if let Some(host) = endpoint.field("hostname").and_then(Value::as_str) {
            for fault in dns_label_faults(host) {
                errors.invalid(&path.child("hostname"), host, fault);
            }
        }
        topology(endpoint, &path.child("deprecatedTopology"), &mut errors);
    }
    let ports = object.list("ports");
    if ports.len() > MOST_PORTS {
        errors.too_many(&Path::new("ports"), ports.len(), MOST_PORTS);
        return errors;
    }
    for (i, port) in ports.iter().enumerate() {
        slice_port(port, ports.iter().take(i), &Path::new("ports").index(i), &mut errors);
    }
    errors
}

fn topology(endpoint: &Value, path: &Path, errors: &mut FieldErrors) {
    for (_, value) in endpoint.entries("deprecatedTopology") {
        for fault in label_value_faults(value) {
            errors.invalid(path, value, fault);
        }
    }
}

fn slice_address(address: &str, kind: &str, path: &Path, errors: &mut FieldErrors) {
    match (kind, address.parse::<IpAddr>()) {
        ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => endpoint_ip(address, path, errors),
        ("IPv4", _) => errors.invalid(path, address, "must be an IPv4 address"),
        ("IPv6", _) => errors.invalid(path, address, "must be an IPv6 address"),
        ("FQDN", _) => {
            for fault in dns_subdomain_faults(address.trim_end_matches('.')) {
                errors.invalid(path, address, fault);
            }
        }
        _ => {}
    }
}

fn slice_port<'a>(
    port: &Value,
    mut earlier: impl Iterator<Item = &'a Value>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let name = port.text("name");
    if !name.is_empty() {
        for fault in dns_label_faults(name) {
            errors.invalid(&path.child("name"), name, fault);
        }
    }
    if earlier.any(|one| one.text("name") == name) {
        errors.duplicate(&path.child("name"), name);
    }
    one_of(port, "protocol", PROTOCOLS, path, errors);
    application(port, path, errors);
}

/// Rules for a changed `EndpointSlice`: its kind of address stays.
pub fn slice_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = slice(new, ctx);
    errors.extend(object_meta_update(new, old));
    immutables(new, old, &["addressType"], &Path::root(), &mut errors);
    errors
}

/// Rules for a new `IPAddress`: its name is the address.
pub fn ip_address(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, |_| Vec::new());
    let name = crate::access::metadata(object).text("name");
    match name.parse::<IpAddr>() {
        Ok(parsed) if parsed.to_string() == name => {}
        Ok(_) => errors.invalid(&Path::new("metadata").child("name"), name, "must be in canonical form"),
        Err(_) => ip(name, &Path::new("metadata").child("name"), &mut errors),
    }
    let path = Path::new("spec").child("parentRef");
    match spec(object).field("parentRef") {
        None => errors.required(&path, ""),
        Some(parent) => {
            for name in ["resource", "name"] {
                super::rule::required(parent, name, &path, &mut errors);
            }
        }
    }
    errors
}

/// Rules for a changed `IPAddress`: its owner stays.
pub fn ip_address_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    let parent = |object: &'_ Value| spec(object).field("parentRef").cloned().unwrap_or_default();
    immutable(&parent(new), &parent(old), &Path::new("spec").child("parentRef"), &mut errors);
    errors
}

/// Rules for a new `ServiceCIDR`.
pub fn service_cidr(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let path = Path::new("spec").child("cidrs");
    let ranges = spec(object).list("cidrs");
    if ranges.is_empty() {
        errors.required(&path, "at least one CIDR required");
    }
    if ranges.len() > 2 {
        errors.invalid(&path, ranges, "may only hold up to 2 values");
    }
    for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
        cidr(range, &path.index(i), &mut errors);
    }
    errors
}

/// A range of addresses, `10.0.0.0/8`.
pub(crate) fn cidr(range: &str, path: &Path, errors: &mut FieldErrors) {
    let parsed = range.split_once('/').and_then(|(address, length)| {
        let address: IpAddr = address.parse().ok()?;
        let most: u8 = if address.is_ipv4() { 32 } else { 128 };
        length.parse::<u8>().ok().filter(|length| *length <= most)
    });
    if parsed.is_none() {
        errors.invalid(path, range, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
}

/// Rules for a changed `ServiceCIDR`: a range stays.
pub fn service_cidr_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    immutables(spec(new), spec(old), &["cidrs"], &Path::new("spec"), &mut errors);
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;
    use serde_json::json;

    fn ctx() -> Ctx {
        Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() }
    }

    fn made(more: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "s", "namespace": "d", "resourceVersion": "1"},
            "spec": {"ports": [{"port": 80}]}});
        for (name, value) in more.as_object().unwrap() {
            object["spec"][name] = value.clone();
        }
        crate::default::apply(crate::schema::type_named("core.v1.Service").unwrap(), &mut object);
        object
    }

    fn check(more: &Value) -> String {
        service(&made(more), &ctx()).to_string()
    }

    #[test]
    fn ports_have_numbers_and_names_when_there_are_more() {
        assert_eq!(check(&json!({})), "[]");
        assert_eq!(check(&json!({"ports": []})), "spec.ports: Required value");
        assert_eq!(
            check(&json!({"ports": [{"port": 0}]})),
            "[spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive]"
        );
        assert_eq!(
            check(&json!({"ports": [{"port": 80}, {"port": 80, "name": "b"}]})),
            "[spec.ports[0].name: Required value, spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}]"
        );
        assert_eq!(
            check(&json!({"ports": [{"port": 80, "nodePort": 30000}]})),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"
        );
    }

    #[test]
    fn a_named_service_has_a_name_and_no_address() {
        assert_eq!(check(&json!({"type": "ExternalName"})), "spec.externalName: Required value");
        let text = check(
            &json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}),
        );
        assert_eq!(text, "spec.clusterIPs: Forbidden: may not be set for ExternalName services");
    }

    #[test]
    fn a_given_address_stays() {
        let old = made(&json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"]}));
        let new = made(&json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6"]}));
        assert_eq!(
            service_update(&new, &old, &ctx()).to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set"
        );
    }

    #[test]
    fn slices_hold_addresses_of_one_kind() {
        let of = |kind: &str, address: &str| {
            let object = json!({"metadata": {"name": "s", "namespace": "d"}, "addressType": kind,
                "endpoints": [{"addresses": [address]}]});
            slice(&object, &ctx()).to_string()
        };
        assert_eq!(of("IPv4", "10.0.0.1"), "[]");
        assert_eq!(
            of("IPv6", "10.0.0.1"),
            "endpoints[0].addresses[0]: Invalid value: \"10.0.0.1\": must be an IPv6 address"
        );
        assert_eq!(
            of("IPv4", "127.0.0.1"),
            "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
        );
        assert!(of("IP", "10.0.0.1").starts_with("addressType: Unsupported value: \"IP\""));
    }
}
