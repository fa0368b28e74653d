//! The API as a `tower::Service` for roles in this process. It is the same server without a socket: authorisation and
//! admission run as for anyone, as the identity that the service was made with.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};

use crate::identity::{Identity, RequestIdentity};
use crate::response::ResponseBody;
use crate::server::Server;
use crate::{BoxError, body};

/// Sends requests to the server in this process, as one identity.
#[derive(Debug, Clone)]
pub struct ApiService {
    server: Arc<Server>,
    identity: Arc<Identity>,
    /// What its requests call themselves: `kubelet`, `kube-scheduler` …
    agent: Option<HeaderValue>,
}

impl ApiService {
    pub(crate) fn new(server: Arc<Server>, identity: Identity) -> Self {
        let agent = match identity.node_name() {
            Some(_) => "kubelet",
            None => identity.user.rsplit(':').next().unwrap_or_default(),
        };
        let agent = HeaderValue::from_str(agent).ok();
        Self { server, identity: Arc::new(identity), agent }
    }

    /// The identity of its requests.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl<B> tower::Service<Request<B>> for ApiService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, identity) = (self.server.clone(), self.identity.clone());
        let mut request = request.map(body::boxed);
        if let Some(agent) = &self.agent {
            request.headers_mut().entry(USER_AGENT).or_insert_with(|| agent.clone());
        }
        request.extensions_mut().insert(RequestIdentity(identity));
        Box::pin(async move { Ok(server.serve(request).await) })
    }
}
