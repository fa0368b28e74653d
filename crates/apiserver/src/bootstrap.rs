//! What is there from the first start on: four namespaces, and the kubeconfig of the admin.

use std::path::Path;

use api::kind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Uri};
use serde_json::json;
use std::sync::Arc;

use crate::file;
use crate::identity::Identity;
use crate::pki::{Authority, KeyAndCertificate, PkiError, Purpose};
use crate::request::RequestInfo;
use crate::server::Server;
use crate::write::Write;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes the namespaces that every cluster has.
pub(crate) async fn make_namespaces(server: &Server) -> Result<(), api::status::Status> {
    let user = Arc::new(Identity::admin());
    let info = RequestInfo::parse(&Method::POST, &Uri::from_static("/api/v1/namespaces"));
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
