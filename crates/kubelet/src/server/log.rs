//! `GET /containerLogs/{namespace}/{pod}/{container}`: a container's log, now or followed.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cri::v1;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::query::Query;
use super::stream::by_uid;
use super::{Answer, Failure, Server};
use crate::logs::line::Stream;
use crate::logs::read::{LogOptions, log_file, send_log};
use crate::pod::ephemeral::find;
use crate::pod::label;
use crate::runtime::Cri;
use crate::uid::PodUid;

/// One run of a container that has a log.
struct Run {
    restart_count: i32,
    /// The runtime's ID, while it remembers the run.
    id: Option<String>,
    is_running: bool,
}

impl Server {
    pub(super) async fn log(&self, namespace: &str, name: &str, container: &str, query: &str) -> Answer {
        let query = Query::parse(query);
        let options = options(&query, self.shared.clock.now())?;
        let pod = self.pod(namespace, name)?;
        if !has_container(&pod, container) {
            return Err(Failure::not_found(format!("container {container:?} not found in pod {name:?}")));
        }
        let runs = self.runs(&pod, container).await?;
        let logs = self.shared.places.pod_logs(&pod);
        let run = if query.is_set("previous") { runs.get(1) } else { runs.first() };
        let run = run.ok_or_else(|| Self::no_run(&pod, container, query.is_set("previous")))?;
        let path = log_file(&logs, container, run.restart_count);
        if !path.exists() {
            return Err(Self::no_run(&pod, container, query.is_set("previous")));
        }
        let ended = self.ended(&pod, run);
        let (out, chunks) = mpsc::channel::<Bytes>(4);
        let shutdown = self.shared.shutdown.clone();
        self.shared.tasks.spawn(async move {
            let sent =
                shutdown.run_until_cancelled(Box::pin(send_log(path.clone(), options, out, ended))).await;
            if let Some(Err(error)) = sent {
                tracing::warn!(log = %path.display(), %error, "log not read");
            }
        });
        let frames = ReceiverStream::new(chunks).map(|chunk| Ok::<_, hyper::Error>(Frame::data(chunk)));
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(SyncStream(frames))));
        let kind = http::HeaderValue::from_static("text/plain");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        Ok(response)
    }

    /// The runs of a container, newest first: as the runtime lists them, else as their logs lie on disk.
    async fn runs(&self, pod: &Pod, container: &str) -> Result<Vec<Run>, Failure> {
        let mut labels = by_uid(pod);
        labels.insert(label::CONTAINER_NAME.to_owned(), container.to_owned());
        let filter = v1::ContainerFilter { label_selector: labels, ..Default::default() };
        let listed =
            self.shared.cri.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?;
        let mut runs: Vec<Run> = listed
            .containers
            .iter()
            .map(|item| Run {
                restart_count: item
                    .annotations
                    .get(label::RESTART_COUNT)
                    .and_then(|count| count.parse().ok())
                    .or_else(|| i32::try_from(item.metadata.as_ref()?.attempt).ok())
                    .unwrap_or_default(),
                id: Some(item.id.clone()),
                is_running: item.state() == v1::ContainerState::ContainerRunning,
            })
            .collect();
        let directory = self.shared.places.pod_logs(pod).join(container);
        for restart_count in on_disk(&directory) {
            if !runs.iter().any(|run| run.restart_count == restart_count) {
                runs.push(Run { restart_count, id: None, is_running: false });
            }
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.restart_count));
        Ok(runs)
    }

    /// Why there is no log, in upstream's words.
    fn no_run(pod: &Pod, container: &str, previous: bool) -> Failure {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if previous {
            let text = format!("previous terminated container {container:?} in pod {name:?} not found");
            return Failure::bad(text);
        }
        let status = pod.status.as_ref();
        let lists = status.map(|status| {
            [
                &status.container_statuses,
                &status.init_container_statuses,
                &status.ephemeral_container_statuses,
            ]
        });
        let statuses = lists.into_iter().flatten().flatten().flatten();
        let mut waiting = statuses
            .filter(|status| status.name == container)
            .filter_map(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
        match waiting.next().as_deref() {
            Some(reason @ ("ErrImagePull" | "ImagePullBackOff")) => Failure::bad(format!(
                "container {container:?} in pod {name:?} is waiting to start: trying and failing to pull image ({reason})"
            )),
            Some(reason) => {
                Failure::bad(format!("container {container:?} in pod {name:?} is waiting to start: {reason}"))
            }
            None => Failure::bad(format!("container {container:?} in pod {name:?} is not available")),
        }
    }

    /// Ends when the run has.
    fn ended(&self, pod: &Pod, run: &Run) -> impl Future<Output = ()> + use<> {
        let uid = pod.metadata.uid.as_deref().and_then(|uid| PodUid::parse(uid).ok());
        let notify = uid.map(|uid| self.shared.registry.listen(&uid));
        let (cri, id, is_running) = (self.shared.cri.clone(), run.id.clone(), run.is_running);
        async move {
            if let (Some(notify), Some(id), true) = (notify, id, is_running) {
                wait_for_end(&cri, &id, &notify).await;
            }
        }
    }
}

async fn wait_for_end(cri: &Cri, id: &str, notify: &Arc<Notify>) {
    loop {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match cri.container_status(request).await {
            Ok(answer) => {
                let state = answer.status.map(|status| status.state());
                if state != Some(v1::ContainerState::ContainerRunning) {
                    return;
                }
            }
            Err(error) if error.is_not_found() => return,
            Err(error) => tracing::debug!(container = id, %error, "status of a followed container not known"),
        }
        notify.notified().await;
    }
}

fn has_container(pod: &Pod, name: &str) -> bool {
    find(pod, name).is_some()
}

/// Restart counts of the logs that are still there.
fn on_disk(directory: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect()
}

fn options(query: &Query, now: Timestamp) -> Result<LogOptions, Failure> {
    let number = |name: &'static str| match query.get(name) {
        None | Some("") => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => {
                Err(Failure::bad(format!("{name}: invalid value {text:?}: must be a number, 0 or greater")))
            }
        },
    };
    let since_time = match query.get("sinceTime") {
        None | Some("") => None,
        Some(text) => {
            let parsed: Result<Timestamp, _> = text.parse();
            Some(
                parsed
                    .map_err(|error| Failure::bad(format!("sinceTime: invalid value {text:?}: {error}")))?,
            )
        }
    };
    let since_seconds = number("sinceSeconds")?.and_then(|seconds| i64::try_from(seconds).ok());
    let since_seconds =
        since_seconds.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
    let stream = match query.get("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        Some(other) => return Err(Failure::bad(format!("stream: invalid value {other:?}"))),
    };
    Ok(LogOptions {
        follow: query.is_set("follow"),
        timestamps: query.is_set("timestamps"),
        since: since_time.or(since_seconds),
        tail_lines: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
        stream,
    })
}

/// A stream that one task owns at a time, as a response body wants it.
struct SyncStream<S>(S);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut self.0).poll_next(context)
    }
}
