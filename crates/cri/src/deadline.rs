//! A call whose deadline has come, told as gRPC has it. tonic ends such a call with `Cancelled`, and when that reaches a
//! client before its own clock has run down, the client takes it for something else than a timeout.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, http};
use tonic::service::Routes;
use tower::{Layer, Service};

/// The header with the time that a client gives a call (the gRPC protocol over HTTP/2, "Timeout").
const TIMEOUT: &str = "grpc-timeout";
/// The most digits of its number.
const DIGITS: usize = 8;

/// Answers a call with `DeadlineExceeded` when its time has run out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines;

impl Layer<Routes> for Deadlines {
    type Service = Timed<Routes>;

    fn layer(&self, routes: Routes) -> Timed<Routes> {
        Timed(routes)
    }
}

/// Calls that end with their deadline.
#[derive(Clone, Debug)]
pub(crate) struct Timed<S>(S);

impl<S> Service<http::Request<Body>> for Timed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let given = request.headers().get(TIMEOUT).and_then(|value| timeout(value.to_str().ok()?));
        // Begun here and not with the first poll: tonic's own clock for the call begins after this one.
        let over = given.map(sleep);
        let answer = self.0.call(request);
        let Some(over) = over else { return Box::pin(answer) };
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                () = over => Ok(Status::deadline_exceeded("the client's deadline for the call has come").into_http()),
            }
        })
    }
}

/// The time that the header's value says: up to eight digits and a unit. `None` for what is none, as tonic has it.
fn timeout(value: &str) -> Option<Duration> {
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if number.len() > DIGITS || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;

    fn request(timeout: Option<&str>) -> http::Request<Body> {
        let request = http::Request::builder().uri("/runtime.v1.ImageService/PullImage");
        let request = timeout.into_iter().fold(request, |request, timeout| request.header(TIMEOUT, timeout));
        request.body(Body::empty()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_with_its_deadline_and_says_so() {
        let mut slow = Timed(tower::service_fn(async |_: http::Request<Body>| {
            sleep(Duration::from_mins(1)).await;
            Ok(http::Response::new(Body::empty()))
        }));
        for (given, code, seconds) in
            [(Some("1500m"), Some(Code::DeadlineExceeded), 1.5), (Some("2M"), None, 60.0), (None, None, 60.0)]
        {
            let begin = Instant::now();
            let Ok(answer) = slow.call(request(given)).await;
            let status = Status::from_header_map(answer.headers());
            assert_eq!(status.map(|status| status.code()), code, "{given:?}");
            assert_eq!(begin.elapsed(), Duration::from_secs_f64(seconds), "{given:?}");
        }
    }

    #[test]
    fn what_the_protocol_allows_is_a_time_and_nothing_else() {
        for (value, time) in [
            ("1H", Some(Duration::from_hours(1))),
            ("2M", Some(Duration::from_mins(2))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("10m", Some(Duration::from_millis(10))),
            ("10u", Some(Duration::from_micros(10))),
            ("10n", Some(Duration::from_nanos(10))),
            ("100000000S", None),
            ("10", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1.5S", None),
            ("1é", None),
        ] {
            assert_eq!(timeout(value), time, "{value}");
        }
    }
}
