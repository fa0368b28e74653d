//! What is there from the first start on: four namespaces, the Service that leads to this server, upstream's roles and
//! bindings, and the admin's kubeconfig.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use api::kind;
use api::rbac::Rule;
use api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Uri};
use serde_json::{Value, json};

use crate::file;
use crate::identity::Identity;
use crate::pki::{Authority, KeyAndCertificate, PkiError, Purpose};
use crate::request::RequestInfo;
use crate::server::Server;
use crate::write::{Part, Write};

/// Who the server says it is in what it writes itself.
const AGENT: &str = "kube-apiserver";
/// Whether the server keeps a role or binding complete.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes the namespaces that every cluster has.
pub(crate) async fn make_namespaces(server: &Server) -> Result<(), Status> {
    let user = Arc::new(Identity::admin());
    let mut info = RequestInfo::parse(&Method::POST, &Uri::from_static("/api/v1/namespaces"));
    AGENT.clone_into(&mut info.user_agent);
    let Some(kind) = kind::find("", "v1", "namespaces") else { return Ok(()) };
    let missing = NAMESPACES.iter().filter(|name| server.cache.get(kind, name).is_none());
    let writes = missing.map(|name| {
        let (user, info) = (&user, &info);
        async move {
            let write = Write::new(server, user, kind, info)?;
            let mut object = json!({"metadata": {"name": name}});
            write.complete(&mut object)?;
            match write.create_object(object, Vec::new()).await {
                Err(status) if status.reason() != "AlreadyExists" => Err(status),
                _ => Ok(()),
            }
        }
    });
    futures::future::try_join_all(writes).await.map(|_| ())
}

/// Makes the range of service addresses and the Service `kubernetes`, and says at which address this server is.
pub(crate) async fn make_service(server: &Server, own: IpAddr, public: &str) -> Result<(), Status> {
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [server.allocator.range()]}});
    make(server, "/apis/networking.k8s.io/v1/servicecidrs", range).await?;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "clusterIP": own.to_string(),
            "clusterIPs": [own.to_string()],
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port_of(public)}],
        },
    });
    make(server, "/api/v1/namespaces/default/services", service).await?;
    make_endpoints(server, public).await
}

fn port_of(address: &str) -> u16 {
    address.parse::<SocketAddr>().map_or(443, |address| address.port())
}

/// Endpoints of the Service. On the loopback interface nobody else reaches this server, and the rules forbid to say so.
async fn make_endpoints(server: &Server, public: &str) -> Result<(), Status> {
    let Some(address) = public.parse::<SocketAddr>().ok().filter(|address| !address.ip().is_loopback())
    else {
        return Ok(());
    };
    let (ip, port) = (address.ip().to_string(), address.port());
    let labels = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    make(server, "/api/v1/namespaces/default/endpoints", endpoints).await?;
    make(server, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await
}

/// Makes an object, or gives one that is there the new contents.
async fn make(server: &Server, path: &'static str, mut object: Value) -> Result<(), Status> {
    let user = Arc::new(Identity::admin());
    let mut info = RequestInfo::parse(&Method::POST, &Uri::from_static(path));
    let Some(kind) = kind::find(&info.group, &info.version, &info.resource) else { return Ok(()) };
    info.name = crate::meta::text(&object, "name").to_owned();
    let write = Write::new(server, &user, kind, &info)?;
    write.complete(&mut object)?;
    let is_there = server.cache.get(kind, &write.key(&info.name)).is_some();
    if is_there {
        return write.change(Part::Main, |_| Ok((object.clone(), Vec::new()))).await.map(drop);
    }
    match write.create_object(object, Vec::new()).await {
        Err(status) if status.reason() != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}

/// Makes the priority classes, roles and bindings that every cluster has, and adds to those that are there what they lack. One with the
/// annotation `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.
pub(crate) async fn reconcile_objects(server: &Server) -> Result<(), Status> {
    let mut made = api::rbac::bootstrap();
    crate::authz::fill_aggregates(&mut made.cluster_roles);
    let all = [
        ("priorityclasses", priority_classes()),
        ("clusterroles", made.cluster_roles),
        ("clusterrolebindings", made.cluster_role_bindings),
        ("roles", made.roles),
        ("rolebindings", made.role_bindings),
    ];
    let user = Arc::new(Identity::admin());
    let writes = all.into_iter().flat_map(|(plural, objects)| {
        let kind = kind::kinds().iter().find(|kind| kind.plural == plural);
        objects.into_iter().filter_map(move |object| Some((kind?, object)))
    });
    let writes = writes.map(|(kind, wanted)| {
        let user = &user;
        async move {
            let info = RequestInfo {
                verb: "create",
                namespace: crate::meta::text(&wanted, "namespace").to_owned(),
                name: crate::meta::text(&wanted, "name").to_owned(),
                user_agent: AGENT.to_owned(),
                ..RequestInfo::default()
            };
            reconcile(&Write::new(server, user, kind, &info)?, wanted).await
        }
    });
    futures::future::try_join_all(writes).await.map(|_| ())
}

/// The two classes that nothing may preempt.
fn priority_classes() -> Vec<Value> {
    let describe = [
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        "Used for system critical pods that must not be moved from their current node.",
    ];
    let classes = api::admission::SYSTEM_PRIORITIES.iter().zip(describe);
    classes
        .map(|((name, value), description)| {
            json!({"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name},
                "value": value, "description": description})
        })
        .collect()
}

async fn reconcile(write: &Write<'_>, mut wanted: Value) -> Result<(), Status> {
    if let Ok(current) = write.current() {
        let current = current.value();
        return match completed(&current, &wanted) {
            Some(_) => {
                write
                    .change_freely(|live| Ok(completed(live, &wanted).unwrap_or_else(|| live.clone())))
                    .await?;
                Ok(())
            }
            None => Ok(()),
        };
    }
    write.complete(&mut wanted)?;
    match write.create_object(wanted, Vec::new()).await {
        Err(status) if status.reason() != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}

/// The live role or binding with the rules, subjects and labels that it lacks; `None` when it lacks nothing or is not
/// to be touched. Another role in a binding is the administrator's decision.
fn completed(live: &Value, wanted: &Value) -> Option<Value> {
    let annotation =
        |object: &Value| crate::meta::get(object, "annotations").and_then(|all| all.get(AUTOUPDATE)).cloned();
    if annotation(live).is_some_and(|value| value == "false") {
        return None;
    }
    let mut done = live.clone();
    for list in ["labels", "annotations"] {
        for (name, value) in crate::meta::get(wanted, list).and_then(Value::as_object).into_iter().flatten() {
            crate::meta::map_in_metadata(&mut done, list)
                .entry(name.clone())
                .or_insert_with(|| value.clone());
        }
    }
    if let Some(rule) = wanted.get("aggregationRule") {
        crate::meta::as_map(&mut done).insert("aggregationRule".to_owned(), rule.clone());
    } else if wanted.get("rules").is_some() {
        let missing = api::rbac::uncovered(&Rule::of_role(live), &Rule::of_role(wanted));
        let rules = missing.iter().map(Rule::to_value);
        crate::meta::list_at(&mut done, "rules").extend(rules);
    }
    for subject in wanted.get("subjects").and_then(Value::as_array).into_iter().flatten() {
        let subjects = crate::meta::list_at(&mut done, "subjects");
        if !subjects.iter().any(|one| is_same_subject(one, subject)) {
            subjects.push(subject.clone());
        }
    }
    (done != *live).then_some(done)
}

fn is_same_subject(one: &Value, other: &Value) -> bool {
    ["kind", "name", "namespace"].iter().all(|field| one.get(field) == other.get(field))
}

/// Whom a kubeconfig is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    user: &'static str,
    groups: &'static [&'static str],
}

impl Client {
    /// Whoever may do everything.
    pub(crate) const ADMIN: Self = Self { user: "kubernetes-admin", groups: &[crate::identity::MASTERS] };
    /// The controllers, as a program of their own.
    pub(crate) const CONTROLLERS: Self = Self { user: "system:kube-controller-manager", groups: &[] };
    /// The scheduler, as a program of its own.
    pub(crate) const SCHEDULER: Self = Self { user: "system:kube-scheduler", groups: &[] };

    fn purpose(self) -> Purpose {
        Purpose::Client { groups: self.groups.iter().map(|group| (*group).to_owned()).collect() }
    }
}

/// Writes a client's kubeconfig, unless the one that is there is good for this server.
pub(crate) fn write_kubeconfig(
    path: &Path,
    authority: &Authority,
    url: &str,
    client: Client,
) -> Result<(), PkiError> {
    if let Some(present) = file::read(path)?
        && is_good(&present, authority, url, client)
    {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        file::make_directory(directory)?;
    }
    let identity = authority.issue(client.user, &client.purpose())?;
    Ok(file::write(path, &kubeconfig(authority.certificate_pem(), &identity, url, client.user))?)
}

/// Whether a kubeconfig of ours still works: same server, same CA, a certificate that does not end soon.
fn is_good(present: &str, authority: &Authority, url: &str, client: Client) -> bool {
    let value = |name: &str| {
        present.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let decoded = |name: &str| {
        value(name)
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok())
    };
    value("server").as_deref() == Some(url)
        && decoded("certificate-authority-data").as_deref() == Some(authority.certificate_pem())
        && decoded("client-key-data").is_some()
        && decoded("client-certificate-data")
            .is_some_and(|pem| authority.is_good(&pem, client.user, &client.purpose()))
}

fn kubeconfig(ca: &str, identity: &KeyAndCertificate, url: &str, user: &str) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: kakoi
  cluster:
    server: {url}
    certificate-authority-data: {}
users:
- name: {user}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: {user}@kakoi
  context:
    cluster: kakoi
    user: {user}
current-context: {user}@kakoi
",
        encode(ca),
        encode(&identity.certificate_pem),
        encode(&identity.key_pem),
    )
}
