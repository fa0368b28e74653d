//! Log lines: to standard error, as text or JSON; the level is in `KAKOI_LOG`.
//!
//! With `KAKOI_LOG=info,path=debug` each step of a Pod's path is told when it ends, with the time it took: the spans
//! of the target [`PATH`]. Other spans are context only and have no lines of their own.

use std::io::{self, IsTerminal};

use tracing::Metadata;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::cli::LogFormat;

/// The target of the spans whose ends are told.
const PATH: &str = "path";

/// Sets up logging for a command that runs for long.
pub(crate) fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("KAKOI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_step = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == PATH;
    let (steps, others) = (filter_fn(is_step), filter_fn(move |metadata| !is_step(metadata)));
    let layers = match format {
        LogFormat::Json => {
            let lines = || fmt::layer().json().with_writer(io::stderr);
            let ends = lines().with_span_list(false).with_span_events(FmtSpan::CLOSE);
            [lines().with_filter(others).boxed(), ends.with_filter(steps).boxed()]
        }
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let lines = || fmt::layer().with_ansi(colours).with_writer(io::stderr);
            let ends = lines().with_span_events(FmtSpan::CLOSE);
            [lines().with_filter(others).boxed(), ends.with_filter(steps).boxed()]
        }
    };
    tracing_subscriber::registry().with(Vec::from(layers)).with(filter).init();
}
