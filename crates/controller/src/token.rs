//! Bootstrap tokens whose time is over: their Secrets are deleted. They let nobody in any more even before that.

use std::time::Duration;

use api::access::Access as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use informer::{Meta, Target};
use jiff::Timestamp;
use kube::Client;
use kube::api::PropagationPolicy;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;
use crate::rest::{Collection, Forgive as _, RestError, only};
use crate::source::Source;

const NAMESPACE: &str = "kube-system";
/// The longest wait at a time: the clock may be set meanwhile.
const LONGEST: Duration = Duration::from_hours(1);

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let target = Target::all(format!("/api/v1/namespaces/{NAMESPACE}/secrets"));
    let tokens = Source::new(&client, target.with_fields("type=bootstrap.kubernetes.io/token"));
    let mut controller = Controller { tokens, queue: Queue::default() };
    shutdown.run_until_cancelled(controller.work(&client)).await;
}

struct Controller {
    tokens: Source<Token>,
    queue: Queue<String>,
}

impl Controller {
    async fn work(&mut self, client: &Client) {
        loop {
            tokio::select! {
                keys = self.tokens.changed() => keys.into_iter().for_each(|key| self.look(key)),
                () = self.queue.ready() => self.delete_due(client).await,
            }
        }
    }

    fn look(&mut self, key: String) {
        let wait = self.tokens.store().get(&key).and_then(|token| token.left(Timestamp::now()));
        if let Some(wait) = wait {
            self.queue.add(key, Instant::now() + wait.min(LONGEST));
        }
    }

    async fn delete_due(&mut self, client: &Client) {
        for key in self.queue.take(Instant::now()) {
            match self.tokens.store().get(&key).map(|token| (token.left(Timestamp::now()), token.key.clone()))
            {
                Some((Some(Duration::ZERO), token)) => {
                    let deleted = delete(client, &token).await;
                    self.queue.done(key, deleted);
                }
                Some((Some(_), _)) => self.look(key),
                Some((None, _)) | None => {}
            }
        }
    }
}

async fn delete(client: &Client, token: &Meta) -> Result<(), RestError> {
    let secrets = Collection::core(client, NAMESPACE, "secrets");
    secrets.delete(&token.name, &only(&token.uid, PropagationPolicy::Background)).await.forgive(&[404, 409])
}

/// A bootstrap token, without the token.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
struct Token {
    key: Meta,
    /// When it ends; one that does not say has no end.
    end: Option<Timestamp>,
}

impl From<Value> for Token {
    fn from(secret: Value) -> Self {
        let encoded = secret.field("data").map(|data| data.text("expiration")).unwrap_or_default();
        let text = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let end = text.filter(|text| !text.is_empty()).map(|text| {
            // What is no time does not let anybody in either.
            text.parse().unwrap_or(Timestamp::UNIX_EPOCH)
        });
        Self { key: Meta::of(&secret), end }
    }
}

impl Token {
    fn left(&self, now: Timestamp) -> Option<Duration> {
        self.end.map(|end| Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
    }
}

impl informer::Object for Token {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_goes_when_its_time_is_over() {
        for (text, expected) in [
            ("2026-11-23T12:01:00Z", Some(60)),
            ("2026-11-23T11:59:59Z", Some(0)),
            ("2026-11-23T13:01:00+01:00", Some(60)),
            ("tomorrow", Some(0)),
            ("", None),
        ] {
            let token: Token =
                json!({"metadata": {"name": "t"}, "data": {"expiration": STANDARD.encode(text)}}).into();
            let left = token.left("2026-11-23T12:00:00Z".parse().unwrap());
            assert_eq!(left.map(|left| left.as_secs()), expected, "{text}");
        }
    }
}
