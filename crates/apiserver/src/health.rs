//! `/healthz`, `/livez`, `/readyz`, with `?verbose` and one path for each check, and `/metrics`.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};

use crate::request::RequestInfo;
use crate::response::{ResponseBody, text};
use crate::server::Server;

/// One check: its name and whether it is good.
struct Check {
    name: &'static str,
    is_good: bool,
}

fn checks(server: &Server, path: &str) -> Vec<Check> {
    let mut checks = vec![
        Check { name: "ping", is_good: true },
        Check { name: "store", is_good: server.cache.store().is_writable() },
    ];
    if path == "readyz" {
        checks.push(Check { name: "shutdown", is_good: !server.shutdown.is_cancelled() });
    }
    checks
}

/// Answers a path of health or metrics; `None` when it is another.
pub(crate) fn answer(server: &Server, info: &RequestInfo) -> Option<Response<ResponseBody>> {
    let path = info.path.trim_matches('/');
    let (root, one) = path.split_once('/').unwrap_or((path, ""));
    match root {
        "healthz" | "livez" | "readyz" => report(root, one, checks(server, root), info),
        "metrics" if one.is_empty() => {
            let mut response = text(StatusCode::OK, server.metrics.render(server));
            let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            Some(response)
        }
        _ => None,
    }
}

fn report(
    root: &str,
    one: &str,
    mut checks: Vec<Check>,
    info: &RequestInfo,
) -> Option<Response<ResponseBody>> {
    let excluded: Vec<&str> = info.query.all("exclude").collect();
    checks.retain(|check| !excluded.contains(&check.name));
    if !one.is_empty() {
        checks.retain(|check| check.name == one);
        let check = checks.first()?;
        let code = if check.is_good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
        return Some(text(code, if check.is_good { "ok" } else { "not ok" }));
    }
    let is_good = checks.iter().all(|check| check.is_good);
    if is_good && !info.query.has("verbose") {
        return Some(text(StatusCode::OK, "ok"));
    }
    let line = |check: &Check| {
        if check.is_good {
            format!("[+]{} ok\n", check.name)
        } else {
            format!("[-]{} failed: reason withheld\n", check.name)
        }
    };
    let lines: String = checks.iter().map(line).collect();
    let verdict = if is_good { "passed" } else { "failed" };
    let code = if is_good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    Some(text(code, format!("{lines}{root} check {verdict}\n")))
}
