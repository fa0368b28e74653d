//! What a request asks for, read from its method, path and query: the verb, the resource and where it is.
//! Nothing here says whether it exists or is allowed.

use http::{Method, Uri};

use crate::audit::Notes;

/// The parameters of a query, decoded, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter; empty when it is absent.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(one, _)| one == name).map_or("", |(_, value)| value)
    }

    /// All values of a parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(one, _)| one == name)
    }

    /// A truth value, as Go's parser of query parameters reads it: present without a value is true, and anything but
    /// `false` and `0` too.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name).to_ascii_lowercase().as_str(), "false" | "0")
    }
}

/// Undoes percent encoding; bytes that are no UTF-8 become U+FFFD.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> String {
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let hex = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if decoded.is_some() {
            rest = tail.get(2..).unwrap_or_default();
        }
        out.push(match first {
            b'+' if plus_is_space => b' ',
            other => decoded.unwrap_or(*other),
        });
    }
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Encodes one path segment or query value.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(out, "%{byte:02X}").ok();
        }
    }
    out
}

/// A request for a resource or for another path.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestInfo {
    /// The decoded path.
    pub(crate) path: String,
    /// `get`, `list`, `watch`, `create` …; for other paths the method in small letters.
    pub(crate) verb: &'static str,
    /// Whether a resource is named.
    pub(crate) is_resource: bool,
    pub(crate) group: String,
    pub(crate) version: String,
    /// Empty for cluster-wide requests.
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    /// Empty when no single object is meant.
    pub(crate) name: String,
    /// Path segments after the subresource.
    pub(crate) rest: Vec<String>,
    pub(crate) query: Query,
    /// What the client calls itself; empty when it doesn't say.
    pub(crate) user_agent: String,
    /// What the audit log is to say of it.
    pub(crate) notes: Notes,
}

impl RequestInfo {
    pub(crate) fn parse(method: &Method, uri: &Uri) -> Self {
        let query = Query::parse(uri.query().unwrap_or_default());
        let segments: Vec<String> = uri
            .path()
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(|segment| decode(segment, false))
            .collect();
        let mut info =
            Self { path: decode(uri.path(), false), query, verb: method_verb(method), ..Self::default() };
        let mut rest = segments.into_iter();
        let found = match rest.next().as_deref() {
            Some("api") => rest.next().map(|version| (String::new(), version)),
            Some("apis") => rest.next().zip(rest.next()),
            _ => None,
        };
        let rest: Vec<String> = rest.collect();
        if let Some((group, version)) = found
            && !rest.is_empty()
        {
            info.group = group;
            info.version = version;
            info.set_resource(method, rest);
        }
        info
    }

    fn set_resource(&mut self, method: &Method, segments: Vec<String>) {
        self.is_resource = true;
        let mut segments = segments.into_iter().peekable();
        let first = segments.next().unwrap_or_default();
        if first == "namespaces" && segments.peek().is_some() {
            let namespace = segments.next().unwrap_or_default();
            match segments.peek().map(String::as_str) {
                // The subresources of a namespace itself.
                None | Some("status" | "finalize") => {
                    self.resource = first;
                    self.name.clone_from(&namespace);
                    self.subresource = segments.next().unwrap_or_default();
                }
                Some(_) => {
                    self.resource = segments.next().unwrap_or_default();
                    self.name = segments.next().unwrap_or_default();
                    self.subresource = segments.next().unwrap_or_default();
                }
            }
            self.namespace = namespace;
        } else {
            self.resource = first;
            self.name = segments.next().unwrap_or_default();
            self.subresource = segments.next().unwrap_or_default();
        }
        self.rest = segments.collect();
        self.verb = self.resource_verb(method);
        if matches!(self.verb, "list" | "watch" | "deletecollection") && self.name.is_empty() {
            self.name = self.single_name().unwrap_or_default();
        }
    }

    fn resource_verb(&self, method: &Method) -> &'static str {
        let one = !self.name.is_empty();
        match *method {
            Method::GET | Method::HEAD if self.query.flag("watch") && self.subresource.is_empty() => "watch",
            Method::GET | Method::HEAD if one => "get",
            Method::GET | Method::HEAD => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if one => "delete",
            Method::DELETE => "deletecollection",
            _ => "",
        }
    }

    /// The name that a field selector `metadata.name=x` means: authorisation treats it as the request's name.
    fn single_name(&self) -> Option<String> {
        let selector = self.query.get("fieldSelector");
        selector.split(',').find_map(|term| {
            let value = term.strip_prefix("metadata.name=")?;
            let value = value.strip_prefix('=').unwrap_or(value);
            (!value.is_empty()).then(|| value.to_owned())
        })
    }

    /// `pods/log`, or the resource alone.
    pub(crate) fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Whether the answer may take as long as the client likes.
    pub(crate) fn is_long_running(&self) -> bool {
        self.verb == "watch" || self.is_unhurried()
    }

    /// Whether the client may read the answer as slowly as it likes.
    pub(crate) fn is_unhurried(&self) -> bool {
        self.is_resource
            && matches!(self.subresource.as_str(), "exec" | "attach" | "portforward" | "log" | "proxy")
    }

    /// Whether the request changes something.
    pub(crate) fn is_mutating(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch" | "head" | "options")
    }
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(method, &uri.parse().unwrap())
    }

    #[test]
    fn paths_of_resources_are_read_as_upstream_reads_them() {
        for (method, uri, verb, namespace, resource, name) in [
            (Method::GET, "/api/v1/pods", "list", "", "pods", ""),
            (Method::GET, "/api/v1/namespaces/a/pods?watch=true", "watch", "a", "pods", ""),
            (Method::GET, "/api/v1/namespaces/a/pods?watch=0", "list", "a", "pods", ""),
            (Method::GET, "/api/v1/namespaces/a/pods/p/log?follow=true", "get", "a", "pods/log", "p"),
            (Method::POST, "/api/v1/namespaces/a/pods/p/binding", "create", "a", "pods/binding", "p"),
            (Method::GET, "/api/v1/namespaces", "list", "", "namespaces", ""),
            (Method::GET, "/api/v1/namespaces/a", "get", "a", "namespaces", "a"),
            (Method::PUT, "/api/v1/namespaces/a/finalize", "update", "a", "namespaces/finalize", "a"),
            (Method::PATCH, "/api/v1/nodes/n/status", "patch", "", "nodes/status", "n"),
            (
                Method::DELETE,
                "/apis/coordination.k8s.io/v1/namespaces/a/leases",
                "deletecollection",
                "a",
                "leases",
                "",
            ),
            (Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Dp", "list", "", "pods", "p"),
        ] {
            let info = parse(&method, uri);
            assert!(info.is_resource, "{uri}");
            let found = (info.verb, info.namespace.as_str(), info.resource_path(), info.name.as_str());
            assert_eq!(found, (verb, namespace, resource.to_owned(), name), "{uri}");
        }
    }

    #[test]
    fn other_paths_are_no_resources() {
        for uri in
            ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v3/api/v1"]
        {
            let info = parse(&Method::GET, uri);
            assert!(!info.is_resource, "{uri}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=ls&command=-l+a%2Fb&tty&stdin=false&x=%zz%4");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["ls", "-l a/b"]);
        assert!(query.flag("tty") && !query.flag("stdin") && !query.flag("absent"));
        assert_eq!(query.get("x"), "%zz%4");
        assert_eq!(encode("a b/ü"), "a%20b%2F%C3%BC");
    }
}
