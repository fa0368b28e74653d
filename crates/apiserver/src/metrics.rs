//! Numbers about the server in Prometheus' text form, under upstream's names where they mean the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;

use crate::request::RequestInfo;
use crate::server::Server;

/// The upper bounds of the duration histogram, in seconds.
const BUCKETS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
    watches: Arc<AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    resource: &'static str,
    subresource: &'static str,
    code: u16,
}

#[derive(Debug, Clone, Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

/// Counts one watch for as long as it lives.
#[derive(Debug)]
pub(crate) struct Watching(Arc<AtomicU64>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(crate) fn observe(&self, info: &RequestInfo, code: StatusCode, took: Duration) {
        // Only names from the table of kinds become labels: what clients send must not grow the memory.
        let kind = api::kind::find(&info.group, &info.version, &info.resource);
        let subresource =
            kind.and_then(|kind| kind.subresource(&info.subresource)).map_or("", |sub| sub.name);
        let labels = Labels {
            verb: info.verb,
            resource: kind.map_or("", |kind| kind.plural),
            subresource,
            code: code.as_u16(),
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let series = requests.entry(labels).or_default();
        series.count += 1;
        series.seconds += took.as_secs_f64();
        for (bucket, _) in
            series.buckets.iter_mut().zip(BUCKETS).filter(|(_, bound)| took.as_secs_f64() <= **bound)
        {
            *bucket += 1;
        }
    }

    pub(crate) fn watching(&self) -> Watching {
        self.watches.fetch_add(1, Ordering::Relaxed);
        Watching(self.watches.clone())
    }

    /// The page `/metrics`.
    pub(crate) fn render(&self, server: &Server) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        self.write_requests(&mut out).ok();
        self.write_gauges(&mut out, server).ok();
        out
    }

    fn write_requests(&self, out: &mut String) -> std::fmt::Result {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        writeln!(
            out,
            "# HELP apiserver_request_total Requests answered.\n# TYPE apiserver_request_total counter"
        )?;
        for (labels, series) in &requests {
            writeln!(out, "apiserver_request_total{{{}}} {}", labels.text(), series.count)?;
        }
        writeln!(out, "# HELP apiserver_request_duration_seconds Time to the head of the answer.")?;
        writeln!(out, "# TYPE apiserver_request_duration_seconds histogram")?;
        for (labels, series) in &requests {
            let text = labels.text();
            for (bound, count) in BUCKETS.iter().zip(series.buckets) {
                writeln!(out, "apiserver_request_duration_seconds_bucket{{{text},le=\"{bound}\"}} {count}")?;
            }
            writeln!(
                out,
                "apiserver_request_duration_seconds_bucket{{{text},le=\"+Inf\"}} {}",
                series.count
            )?;
            writeln!(out, "apiserver_request_duration_seconds_sum{{{text}}} {}", series.seconds)?;
            writeln!(out, "apiserver_request_duration_seconds_count{{{text}}} {}", series.count)?;
        }
        Ok(())
    }

    fn write_gauges(&self, out: &mut String, server: &Server) -> std::fmt::Result {
        let watches = self.watches.load(Ordering::Relaxed);
        writeln!(
            out,
            "# HELP apiserver_longrunning_requests Open watches.\n# TYPE apiserver_longrunning_requests gauge"
        )?;
        writeln!(out, "apiserver_longrunning_requests{{verb=\"watch\"}} {watches}")?;
        writeln!(
            out,
            "# HELP apiserver_resource_objects Stored objects.\n# TYPE apiserver_resource_objects gauge"
        )?;
        for table in server.cache.tables() {
            let kind = table.kind();
            writeln!(
                out,
                "apiserver_resource_objects{{group=\"{}\",resource=\"{}\"}} {}",
                kind.group,
                kind.plural,
                table.len()
            )?;
        }
        writeln!(
            out,
            "# HELP apiserver_storage_size_bytes Size of the store on disk.\n# TYPE apiserver_storage_size_bytes gauge"
        )?;
        writeln!(out, "apiserver_storage_size_bytes {}", server.cache.store().size())?;
        writeln!(
            out,
            "# HELP kakoi_store_revision Newest revision of the store.\n# TYPE kakoi_store_revision gauge"
        )?;
        writeln!(out, "kakoi_store_revision {}", server.cache.revision())
    }
}

impl Labels {
    fn text(&self) -> String {
        format!(
            "code=\"{}\",resource=\"{}\",subresource=\"{}\",verb=\"{}\"",
            self.code,
            self.resource,
            self.subresource,
            self.verb.to_ascii_uppercase()
        )
    }
}
