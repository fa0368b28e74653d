//! The proxy subresource: `nodes|pods|services/[scheme:]name[:port]/proxy/path` passes any request on, upgrades too.
//! Redirects of the other side are turned back to the proxy; links inside of pages are not touched. Addresses of this
//! machine alone and of the link are refused: nobody reaches the server's own neighbours through it.

use std::net::IpAddr;

use api::access::{Access as _, spec, status};
use api::kind::{self, Kind};
use api::status::Status;
use http::header::LOCATION;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use stream::proxy::{self as forward, Destination};

use crate::body::RequestBody;
use crate::kubelet::{self, Backend};
use crate::request::RequestInfo;
use crate::response::{ResponseBody, full};
use crate::server::Server;
use crate::{meta, view};

/// `[scheme:]name[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    scheme: String,
    name: String,
    port: String,
}

impl Wanted {
    fn parse(text: &str) -> Option<Self> {
        let of = |scheme: &str, name: &str, port: &str| {
            let known = matches!(scheme, "" | "http" | "https") && !name.is_empty();
            known.then(|| Self { scheme: scheme.to_owned(), name: name.to_owned(), port: port.to_owned() })
        };
        match text.split(':').collect::<Vec<_>>().as_slice() {
            [name] => of("", name, ""),
            [name, port] => of("", name, port),
            [scheme, name, port] => of(scheme, name, port),
            _ => None,
        }
    }

    fn is_tls(&self) -> bool {
        self.scheme == "https"
    }
}

/// Where a request is passed on to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    backend: Backend,
}

/// Passes a request on.
pub(crate) async fn pass(
    server: &Server,
    kind: &'static Kind,
    info: &RequestInfo,
    mut request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Status> {
    let wanted = Wanted::parse(&info.name).ok_or_else(|| {
        Status::bad_request(format!("invalid {} request \"{}\"", kind.kind.to_lowercase(), info.name))
    })?;
    let (base, rest) = split(request.uri().path(), info);
    if rest.is_empty() && matches!(info.verb, "get" | "head") {
        return Ok(to_directory(&base, request.uri().query()));
    }
    let target = target(server, kind, info, &wanted)?;
    let path = if rest.is_empty() { "/".to_owned() } else { rest };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let path_and_query: PathAndQuery = format!("{path}{query}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| Status::bad_request(error.to_string()))?;
    let host = kubelet::host_header(&target.host, target.port)?;
    let headers = request.headers_mut();
    let spoken_for: Vec<_> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in spoken_for {
        headers.remove(name);
    }
    if let Ok(uri) = HeaderValue::from_str(&format!("{base}{path}")) {
        headers.insert("x-forwarded-uri", uri);
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    let connection = server.kubelets.connect(&target.host, target.port, target.backend).await?;
    let destination = Destination { path_and_query, host };
    let answer = forward::forward(request, connection, &destination, &server.sessions)
        .await
        .map_err(|error| Status::unavailable(format!("error trying to reach service: {error}")))?;
    let mut answer = answer.map(|body| body.map_err(Into::into).boxed_unsync());
    turn_back(&mut answer, &base, &target);
    Ok(answer)
}

/// The path up to `proxy`, and what follows it, both as they were sent.
fn split(path: &str, info: &RequestInfo) -> (String, String) {
    let is_namespaced = !info.namespace.is_empty();
    // /api/v1/namespaces/ns/pods/name/proxy or /api/v1/nodes/name/proxy.
    let segments = if is_namespaced { 7 } else { 5 };
    let end = path.match_indices('/').map(|(at, _)| at).nth(segments).unwrap_or(path.len());
    let (base, rest) = path.split_at(end);
    (base.to_owned(), rest.to_owned())
}

/// A page's relative links only work below a directory.
fn to_directory(base: &str, query: Option<&str>) -> Response<ResponseBody> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{base}/{query}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Leads a redirect to the same server back through the proxy.
fn turn_back(answer: &mut Response<ResponseBody>, base: &str, target: &Target) {
    let Some(location) = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()) else { return };
    let own = [
        format!("http://{}:{}", target.host, target.port),
        format!("https://{}:{}", target.host, target.port),
    ];
    let path = own.iter().find_map(|own| location.strip_prefix(own.as_str())).unwrap_or(location);
    if path.starts_with('/')
        && !path.starts_with("//")
        && let Ok(location) = HeaderValue::from_str(&format!("{base}{path}"))
    {
        answer.headers_mut().insert(LOCATION, location);
    }
}

fn target(
    server: &Server,
    kind: &'static Kind,
    info: &RequestInfo,
    wanted: &Wanted,
) -> Result<Target, Status> {
    let key = meta::key(kind.namespaced, &info.namespace, &wanted.name);
    let found = server.cache.get(kind, &key).ok_or_else(|| Status::not_found(kind, &wanted.name))?;
    let object = view::value(kind, &found);
    match kind.plural {
        "nodes" => of_node(server, wanted),
        "pods" => of_pod(&object, wanted),
        _ => of_service(server, info, &object, wanted),
    }
}

fn backend(wanted: &Wanted) -> Backend {
    if wanted.is_tls() { Backend::AnyTls } else { Backend::Plain }
}

fn of_node(server: &Server, wanted: &Wanted) -> Result<Target, Status> {
    let (host, kubelet_port) = kubelet::address(server, &wanted.name)?;
    let port = number(&wanted.port).unwrap_or(kubelet_port);
    if port == kubelet_port && (wanted.scheme.is_empty() || wanted.is_tls()) {
        return Ok(Target { host, port, backend: Backend::Kubelet });
    }
    check_address(&host)?;
    Ok(Target { host, port, backend: backend(wanted) })
}

fn of_pod(pod: &Value, wanted: &Wanted) -> Result<Target, Status> {
    let host = status(pod).text("podIP").to_owned();
    let declared = spec(pod).list("containers").iter().flat_map(|container| container.list("ports"));
    let port = match number(&wanted.port) {
        Some(port) => Some(port),
        None if wanted.port.is_empty() => declared.clone().find_map(|port| small(port.int("containerPort"))),
        None => declared
            .clone()
            .find(|port| port.text("name") == wanted.port)
            .and_then(|port| small(port.int("containerPort"))),
    };
    if host.is_empty() {
        return Err(Status::bad_request("address not allowed"));
    }
    check_address(&host)?;
    let port = port.unwrap_or_else(|| if wanted.is_tls() { 443 } else { 80 });
    Ok(Target { host, port, backend: backend(wanted) })
}

/// One of the endpoints that are ready, drawn by lot.
fn of_service(
    server: &Server,
    info: &RequestInfo,
    service: &Value,
    wanted: &Wanted,
) -> Result<Target, Status> {
    let none = |why: &str| Status::unavailable(format!("{why} for service \"{}\"", wanted.name));
    // A port is named by its name or by the service's number; without one the service has one port.
    let ports = spec(service).list("ports");
    let port = match (number(&wanted.port), wanted.port.as_str()) {
        (Some(port), _) => ports.iter().find(|one| small(one.int("port")) == Some(port)),
        (None, "") => ports.first().filter(|_| ports.len() == 1),
        (None, name) => ports.iter().find(|one| one.text("name") == name),
    };
    let port = port.ok_or_else(|| none(&format!("no service port \"{}\" found", wanted.port)))?;
    let all = endpoints(server, &info.namespace, &wanted.name, port.text("name"));
    if all.is_empty() {
        return Err(none("no endpoints available"));
    }
    let (host, port) = all.get(usize::from(rand::random::<u16>()) % all.len()).cloned().unwrap_or_default();
    check_address(&host)?;
    Ok(Target { host, port, backend: backend(wanted) })
}

/// Addresses and ports behind a service's port.
fn endpoints(server: &Server, namespace: &str, service: &str, port_name: &str) -> Vec<(String, u16)> {
    let Some(table) =
        kind::find("discovery.k8s.io", "v1", "endpointslices").and_then(|kind| server.cache.table(kind))
    else {
        return Vec::new();
    };
    let snapshot = server.cache.snapshot(table);
    let prefix = format!("{namespace}/");
    let slices = snapshot.range(&prefix, None).map(|object| object.value());
    let own = slices.filter(|slice| {
        api::access::metadata(slice)
            .field("labels")
            .is_some_and(|all| all.text("kubernetes.io/service-name") == service)
    });
    own.flat_map(|slice| {
        let port = slice.list("ports").iter().find(|port| port.text("name") == port_name);
        let port = port.and_then(|port| small(port.int("port")));
        let ready = slice.list("endpoints").iter().filter(|endpoint| {
            endpoint.field("conditions").and_then(|conditions| conditions.flag("ready")).unwrap_or(true)
        });
        let hosts =
            ready.filter_map(|endpoint| endpoint.list("addresses").first()?.as_str().map(str::to_owned));
        hosts.filter_map(|host| Some((host, port?))).collect::<Vec<_>>()
    })
    .collect()
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn small(number: Option<i64>) -> Option<u16> {
    number.and_then(|number| u16::try_from(number).ok())
}

/// Refuses what only this machine or this link reaches.
fn check_address(host: &str) -> Result<(), Status> {
    let is_bad = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_unspecified()
                || ip.is_broadcast()
        }
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()
        }
        Err(_) => host == "localhost",
    };
    if is_bad { Err(Status::bad_request("address not allowed")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_may_have_a_scheme_and_a_port() {
        let of = |text: &str| Wanted::parse(text).map(|w| (w.scheme, w.name, w.port));
        let all = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(of("web"), all("", "web", ""));
        assert_eq!(of("web:80"), all("", "web", "80"));
        assert_eq!(of("https:web:"), all("https", "web", ""));
        assert_eq!(of("https:web:tls"), all("https", "web", "tls"));
        for bad in ["ftp:web:1", "a:b:c:d", ":80", ""] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_path_after_proxy_is_passed_on_as_it_was_sent() {
        let of = |path: &str| {
            let info = RequestInfo::parse(&Method::GET, &path.parse().unwrap());
            split(path, &info)
        };
        let base = "/api/v1/namespaces/a/pods/p:80/proxy";
        assert_eq!(of(&format!("{base}/x%2Fy//z/")), (base.to_owned(), "/x%2Fy//z/".to_owned()));
        assert_eq!(of(base), (base.to_owned(), String::new()));
        assert_eq!(
            of("/api/v1/nodes/n/proxy/metrics"),
            ("/api/v1/nodes/n/proxy".to_owned(), "/metrics".to_owned())
        );
    }

    #[test]
    fn a_pods_first_port_is_meant_unless_another_is_named() {
        let pod = json!({"status": {"podIP": "10.0.0.1"}, "spec": {"containers": [{"ports": [{"containerPort": 8080}, {"name": "m", "containerPort": 9}]}]}});
        let of = |text: &str| of_pod(&pod, &Wanted::parse(text).unwrap()).map(|t| (t.port, t.backend));
        assert_eq!(of("p").unwrap(), (8080, Backend::Plain));
        assert_eq!(of("p:m").unwrap(), (9, Backend::Plain));
        assert_eq!(of("https:p:443").unwrap(), (443, Backend::AnyTls));
    }

    #[test]
    fn the_servers_own_neighbours_are_not_reached() {
        for bad in ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0", "localhost", "224.0.0.1"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        check_address("10.0.0.1").unwrap();
    }
}
