//! How many requests are worked on at a time. Those above are told to come back in a second; watches and streams are
//! bounded by the number of connections instead.

use std::sync::Arc;

use api::status::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::request::RequestInfo;

/// Requests that read, at a time; upstream's default.
const READING: usize = 400;
/// Requests that write, at a time; upstream's default.
const WRITING: usize = 200;

/// The two limits.
#[derive(Debug)]
pub(crate) struct Limits {
    reading: Arc<Semaphore>,
    writing: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reading: Arc::new(Semaphore::new(READING)), writing: Arc::new(Semaphore::new(WRITING)) }
    }
}

impl Limits {
    /// A place for a request, for as long as the permit is kept; `None` where there is no limit.
    pub(crate) fn admit(&self, info: &RequestInfo) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if info.is_long_running() {
            return Ok(None);
        }
        let limit = if info.is_mutating() { &self.writing } else { &self.reading };
        limit
            .clone()
            .try_acquire_owned()
            .map(Some)
            .map_err(|_| Status::too_many_requests("Too many requests, please try again later.", 1))
    }
}
