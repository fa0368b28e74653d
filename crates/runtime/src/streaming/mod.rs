//! The streaming server: `Exec`, `Attach` and `PortForward` answer with an address on the loopback interface that
//! holds a one-time token; whoever presents it gets the streams. It listens on 127.0.0.1 only, so the kubelet (or
//! the client of CRI) on the same node is the one who can.

mod descriptor;
mod exec;
mod portforward;
mod server;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stream::remotecommand::Streams;

use crate::error::{Error, Result};
use crate::state::lock;

pub(crate) use descriptor::Descriptor;
pub(crate) use exec::exec_sync;
pub(crate) use server::serve;

/// How long a token can be presented.
const LIFETIME: Duration = Duration::from_mins(1);

/// Tokens that may be outstanding.
const LIMIT: usize = 1000;

/// What a token stands for.
#[derive(Clone, Debug)]
pub(crate) enum Ticket {
    /// A command in a container.
    Exec { container: String, command: Vec<String>, streams: Streams },
    /// The streams of a container's own process.
    Attach { container: String, streams: Streams },
    /// Ports of a sandbox.
    PortForward { sandbox: String },
}

impl Ticket {
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The tokens that have been given out, and where they are presented.
#[derive(Clone, Debug)]
pub(crate) struct Streaming {
    address: SocketAddr,
    tickets: Arc<Mutex<HashMap<String, (Instant, Ticket)>>>,
}

impl Streaming {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, tickets: Arc::default() }
    }

    /// The address at which `ticket` can be redeemed, once.
    pub(crate) fn offer(&self, ticket: Ticket) -> Result<String> {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let url = format!("http://{}/{}/{token}", self.address, ticket.verb());
        let mut tickets = lock(&self.tickets);
        tickets.retain(|_, (given, _)| given.elapsed() < LIFETIME);
        if tickets.len() >= LIMIT {
            return Err(Error::Failed(format!(
                "{LIMIT} streaming requests are waiting for their client; try again"
            )));
        }
        tickets.insert(token, (Instant::now(), ticket));
        Ok(url)
    }

    /// Takes the ticket of a request path.
    fn redeem(&self, path: &str) -> Option<Ticket> {
        let (verb, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut tickets = lock(&self.tickets);
        let is_valid = tickets
            .get(token)
            .is_some_and(|(given, ticket)| given.elapsed() < LIFETIME && ticket.verb() == verb);
        is_valid.then(|| tickets.remove(token)).flatten().map(|(_, ticket)| ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_its_verb() {
        let streaming = Streaming::new(SocketAddr::from(([127, 0, 0, 1], 4)));
        let url = streaming.offer(Ticket::PortForward { sandbox: "s".into() }).unwrap();
        let path = url.strip_prefix("http://127.0.0.1:4").unwrap();
        assert!(streaming.redeem(&path.replace("portforward", "exec")).is_none());
        assert!(streaming.redeem(path).is_some());
        assert!(streaming.redeem(path).is_none());
        assert!(streaming.redeem("/exec").is_none());
    }

    #[test]
    fn there_is_an_end_to_outstanding_tokens() {
        let streaming = Streaming::new(SocketAddr::from(([127, 0, 0, 1], 4)));
        for _ in 0..LIMIT {
            streaming.offer(Ticket::PortForward { sandbox: "s".into() }).unwrap();
        }
        streaming.offer(Ticket::PortForward { sandbox: "s".into() }).unwrap_err();
    }
}
