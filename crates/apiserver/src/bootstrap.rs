//! What is there from the first start on: four namespaces, the Service that leads to this server, and the kubeconfig
//! of the admin.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use api::kind;
use api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Uri};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::file;
use crate::identity::Identity;
use crate::pki::{Authority, KeyAndCertificate, PkiError, Purpose};
use crate::request::RequestInfo;
use crate::server::Server;
use crate::write::{Part, Write};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes the namespaces that every cluster has.
pub(crate) async fn make_namespaces(server: &Server) -> Result<(), Status> {
    let user = Arc::new(Identity::admin());
    let mut info = RequestInfo::parse(&Method::POST, &Uri::from_static("/api/v1/namespaces"));
    info.user_agent = "kube-apiserver".to_owned();
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

/// Writes the admin's kubeconfig, unless the one that is there is good for this server.
pub(crate) fn write_kubeconfig(path: &Path, authority: &Authority, url: &str) -> Result<(), PkiError> {
    if let Some(present) = file::read(path)?
        && is_good(&present, authority, url)
    {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        file::make_directory(directory)?;
    }
    let identity = authority.issue(ADMIN, &admin())?;
    Ok(file::write(path, &kubeconfig(authority.certificate_pem(), &identity, url))?)
}

const ADMIN: &str = "kubernetes-admin";

fn admin() -> Purpose {
    Purpose::Client { groups: vec![crate::identity::MASTERS.to_owned()] }
}

/// Whether a kubeconfig of ours still works: same server, same CA, a certificate that does not end soon.
fn is_good(present: &str, authority: &Authority, url: &str) -> bool {
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
        && decoded("client-certificate-data").is_some_and(|pem| authority.is_good(&pem, ADMIN, &admin()))
}

fn kubeconfig(ca: &str, identity: &KeyAndCertificate, url: &str) -> String {
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
- name: {ADMIN}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: {ADMIN}@kakoi
  context:
    cluster: kakoi
    user: {ADMIN}
current-context: {ADMIN}@kakoi
",
        encode(ca),
        encode(&identity.certificate_pem),
        encode(&identity.key_pem),
    )
}
