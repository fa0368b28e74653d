//! Who asks the node agent, and what they may: the API server says both (`TokenReview`, `SubjectAccessReview`), and
//! its answers are kept for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Error};
use tokio::time::Instant;

use super::auth::Client;

/// How long a token is known (upstream's `authentication.webhook.cacheTTL`).
const TOKEN_LIFE: Duration = Duration::from_mins(2);
/// How long a yes and a no are kept.
const ALLOWED_LIFE: Duration = Duration::from_mins(5);
const DENIED_LIFE: Duration = Duration::from_secs(30);
/// Answers kept at most.
const KEPT: usize = 1024;

/// Answers that are kept until a time.
#[derive(Debug)]
struct Kept<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Kept<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, key: &K) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if known.len() >= KEPT {
            known.retain(|_, (until, _)| *until > now);
        }
        if known.len() < KEPT {
            known.insert(key, (now + life, value));
        }
    }
}

/// What a request does to the node, as the API server is asked about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wish {
    verb: &'static str,
    /// Subresources of `nodes`; one that is allowed is enough.
    subresources: Vec<&'static str>,
}

/// Reads a request: `GET /metrics` is `get nodes/metrics`. Health, Pods and the configuration may also be allowed by
/// their own name (KEP-2862); everything else is `nodes/proxy`.
pub(super) fn plan_wish(method: &Method, path: &str) -> Wish {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources = match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "healthz" => vec!["healthz", "proxy"],
        "configz" => vec!["configz", "proxy"],
        "pods" | "runningpods" => vec!["pods", "proxy"],
        _ => vec!["proxy"],
    };
    Wish { verb, subresources }
}

impl Wish {
    /// The refusal, in upstream's words.
    pub(super) fn refusal(&self, user: &str) -> String {
        let names: Vec<String> = self.subresources.iter().map(|name| format!("nodes/{name}")).collect();
        format!(
            "Forbidden (user={user}, verb={}, resource=nodes, subresource(s)=[{}])",
            self.verb,
            names.join(" ")
        )
    }
}

/// Asks the API server.
#[derive(Debug)]
pub(super) struct Reviewer {
    tokens: Kept<String, Option<Client>>,
    accesses: Kept<(Client, Wish), bool>,
}

impl Reviewer {
    pub(super) fn new() -> Self {
        Self { tokens: Kept::new(), accesses: Kept::new() }
    }

    /// Whose bearer token it is, if it is anybody's.
    pub(super) async fn client_of(&self, api: &kube::Client, token: &str) -> Result<Option<Client>, Error> {
        let key = token.to_owned();
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: key.clone(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(api.clone()).create(&PostParams::default(), &review).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let client = user.map(|user| Client {
            name: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
        });
        self.tokens.put(key, client.clone(), TOKEN_LIFE);
        Ok(client)
    }

    /// Whether the client may do what it wishes.
    pub(super) async fn allows(
        &self,
        api: &kube::Client,
        node: &str,
        client: &Client,
        wish: &Wish,
    ) -> Result<bool, Error> {
        let key = (client.clone(), wish.clone());
        if let Some(known) = self.accesses.get(&key) {
            return Ok(known);
        }
        let mut is_allowed = false;
        for subresource in &wish.subresources {
            let review = plan_review(node, client, wish.verb, subresource);
            let reviews = Api::<SubjectAccessReview>::all(api.clone());
            let answer = reviews.create(&PostParams::default(), &review).await?;
            is_allowed |= answer.status.is_some_and(|status| status.allowed);
            if is_allowed {
                break;
            }
        }
        self.accesses.put(key, is_allowed, if is_allowed { ALLOWED_LIFE } else { DENIED_LIFE });
        Ok(is_allowed)
    }
}

fn plan_review(node: &str, client: &Client, verb: &str, subresource: &str) -> SubjectAccessReview {
    let text = |text: &str| Some(text.to_owned());
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(client.name.clone()),
            groups: Some(client.groups.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: text(verb),
                version: text("v1"),
                resource: text("nodes"),
                subresource: text(subresource),
                name: text(node),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_asked_about_as_upstream_asks() {
        for (method, path, verb, subresources) in [
            (Method::GET, "/metrics/cadvisor", "get", &["metrics"][..]),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/configz", "get", &["configz", "proxy"]),
            (Method::POST, "/exec/ns/pod/c", "create", &["proxy"]),
            (Method::GET, "/containerLogs/ns/pod/c", "get", &["proxy"]),
        ] {
            assert_eq!(
                plan_wish(&method, path),
                Wish { verb, subresources: subresources.to_vec() },
                "{path}"
            );
        }
        let text = plan_wish(&Method::GET, "/pods").refusal("jane");
        assert_eq!(
            text,
            "Forbidden (user=jane, verb=get, resource=nodes, subresource(s)=[nodes/pods nodes/proxy])"
        );
    }

    #[test]
    fn answers_are_kept_no_longer_than_their_life() {
        let kept = Kept::new();
        kept.put("a", 1, Duration::from_mins(1));
        kept.put("b", 2, Duration::ZERO);
        assert_eq!((kept.get(&"a"), kept.get(&"b"), kept.get(&"c")), (Some(1), None, None));
    }
}
