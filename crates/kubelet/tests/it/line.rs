//! The node agent's way to the API server, which a test can cut: calls fail, and what streams breaks off.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Body, Frame};
use tokio::sync::watch;
use tonic::codegen::Service;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// Nobody listens.
    Refuses,
    /// Requests are taken and never answered.
    Silent,
}

/// What lies between the node agent and the API server; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Line(watch::Sender<State>);

impl Line {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(State::Up))
    }

    /// Connections break, and no new ones are taken.
    pub(crate) fn cut(&self) {
        self.0.send_replace(State::Refuses);
    }

    /// Nothing comes through, and nobody says so.
    pub(crate) fn silence(&self) {
        self.0.send_replace(State::Silent);
    }

    pub(crate) fn mend(&self) {
        self.0.send_replace(State::Up);
    }

    fn is_silent(&self) -> bool {
        *self.0.borrow() == State::Silent
    }

    /// Ends when somebody at this end would notice that the line is broken.
    fn broken(&self) -> BoxFuture<'static, Failure> {
        let mut state = self.0.subscribe();
        async move {
            // The sender lives as long as the node.
            let found = *state.wait_for(|state| *state != State::Up).await.unwrap();
            let _ = state.wait_for(|state| found == State::Refuses || *state != State::Silent).await;
            std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()
        }
        .boxed()
    }
}

/// A service behind the line.
#[derive(Clone)]
pub(crate) struct Far<S> {
    pub(crate) service: S,
    pub(crate) line: Line,
}

impl<S, B> Service<Request<kube::client::Body>> for Far<S>
where
    S: Service<Request<kube::client::Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Failure>,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<FarBody<B>>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.service.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let mut service = self.service.clone();
        let (broken, during, line) = (self.line.broken(), self.line.broken(), self.line.clone());
        async move {
            if line.is_silent() {
                return Err(during.await);
            }
            tokio::select! {
                biased;
                failure = during => Err(failure),
                answer = service.call(request) => {
                    let answer = answer.map_err(Into::into)?;
                    Ok(answer.map(|body| FarBody { body: Box::pin(body), broken, line }))
                }
            }
        }
        .boxed()
    }
}

/// An answer that breaks off with the line.
pub(crate) struct FarBody<B> {
    body: Pin<Box<B>>,
    broken: BoxFuture<'static, Failure>,
    line: Line,
}

impl<B> Body for FarBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Failure>,
{
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Poll::Ready(failure) = self.broken.poll_unpin(context) {
            self.broken = std::future::pending().boxed();
            return Poll::Ready(Some(Err(failure)));
        }
        if self.line.is_silent() {
            // What breaks the silence wakes.
            return Poll::Pending;
        }
        self.body.as_mut().poll_frame(context).map_err(Into::into)
    }
}
