//! Reading an HTTP upgrade request and answering it: which transport the client asks for, and which of its
//! sub-protocols this server speaks. Refuses with the HTTP answer that says what was asked and what is spoken.

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
};
use http::header::{SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The header in which SPDY clients offer, and servers choose, a sub-protocol.
pub(crate) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// The value of `Upgrade` for SPDY/3.1.
pub(crate) const SPDY: &str = "SPDY/3.1";

/// An upgrade request that cannot be served, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request asks for no upgrade at all.
    #[error(
        "this path takes an upgraded connection: send `Connection: Upgrade` with `Upgrade: websocket` or `Upgrade: SPDY/3.1`"
    )]
    NotAnUpgrade,
    /// The upgrade asked for is none that this server speaks.
    #[error("cannot upgrade to {asked:?}: this server speaks `websocket` and `SPDY/3.1`")]
    UnknownUpgrade {
        /// The value of the `Upgrade` header.
        asked: String,
    },
    /// No sub-protocol is spoken by both.
    #[error("unable to negotiate protocol: client supports {offered:?}, server accepts {spoken:?}")]
    NoCommonProtocol {
        /// What the client offered.
        offered: Vec<String>,
        /// What this server speaks.
        spoken: Vec<&'static str>,
    },
    /// The WebSocket handshake lacks its key or has another version than 13.
    #[error(
        "the WebSocket handshake is incomplete: `Sec-WebSocket-Key` and `Sec-WebSocket-Version: 13` are needed"
    )]
    IncompleteHandshake,
    /// The HTTP server in front did not offer its connection for an upgrade.
    #[error("this connection cannot be upgraded: use HTTP/1.1")]
    NotUpgradable,
}

impl Refusal {
    /// The status code of the answer.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::NoCommonProtocol { .. } => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The answer, with the reason as plain text.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(format!("{self}\n")));
        *response.status_mut() = self.code();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

/// What an upgrade request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Offer {
    WebSocket { key: HeaderValue, protocols: Vec<String> },
    Spdy { protocols: Vec<String> },
}

impl Offer {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        if !has_token(headers, &CONNECTION, "upgrade") {
            return Err(Refusal::NotAnUpgrade);
        }
        let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if asked.eq_ignore_ascii_case("websocket") {
            Self::websocket(headers)
        } else if asked.eq_ignore_ascii_case(SPDY) {
            Ok(Self::Spdy { protocols: tokens(headers, &STREAM_PROTOCOL) })
        } else {
            Err(Refusal::UnknownUpgrade { asked: asked.to_owned() })
        }
    }

    fn websocket(headers: &HeaderMap) -> Result<Self, Refusal> {
        let version = headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|value| value == "13");
        match headers.get(SEC_WEBSOCKET_KEY) {
            Some(key) if version => {
                Ok(Self::WebSocket { key: key.clone(), protocols: tokens(headers, &SEC_WEBSOCKET_PROTOCOL) })
            }
            _ => Err(Refusal::IncompleteHandshake),
        }
    }

    /// The first protocol of the client's list that is also in `spoken`.
    pub(crate) fn choose<'a, T>(
        &self,
        spoken: &'a [(&'static str, T)],
    ) -> Result<(&'static str, &'a T), Refusal> {
        let (Self::WebSocket { protocols, .. } | Self::Spdy { protocols }) = self;
        let common = protocols.iter().find_map(|offered| spoken.iter().find(|(name, _)| name == offered));
        common.map(|(name, value)| (*name, value)).ok_or_else(|| Refusal::NoCommonProtocol {
            offered: protocols.clone(),
            spoken: spoken.iter().map(|(name, _)| *name).collect(),
        })
    }

    /// The `101 Switching Protocols` answer which names `protocol`.
    pub(crate) fn accepted(&self, protocol: &'static str) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::WebSocket { key, .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
                    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
                }
                if !protocol.is_empty() {
                    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                }
            }
            Self::Spdy { .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        response
    }
}

/// The connection below `request`, to be had once its `101` answer has been written.
pub(crate) fn take<B>(request: &mut Request<B>) -> Result<OnUpgrade, Refusal> {
    match request.extensions().get::<OnUpgrade>() {
        Some(_) => Ok(hyper::upgrade::on(request)),
        None => Err(Refusal::NotUpgradable),
    }
}

/// Whether `headers` ask for a connection upgrade.
pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade") && headers.contains_key(UPGRADE)
}

/// Whether one of the comma-separated values of `name` is `token`, whatever its case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).iter().any(|value| value.eq_ignore_ascii_case(token))
}

/// All comma-separated values of `name`, of every line that has it.
fn tokens(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOKEN: &[(&str, u8)] = &[("v5.channel.k8s.io", 5), ("v4.channel.k8s.io", 4)];

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn websocket(protocols: &'static str) -> HeaderMap {
        headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocols),
        ])
    }

    #[test]
    fn the_clients_first_protocol_that_is_spoken_wins() {
        let offer = Offer::of(&websocket("v6.channel.k8s.io, v4.channel.k8s.io,v5.channel.k8s.io")).unwrap();
        assert_eq!(offer.choose(SPOKEN).unwrap(), ("v4.channel.k8s.io", &4));
    }

    #[test]
    fn the_accept_key_is_that_of_rfc_6455() {
        let response = Offer::of(&websocket("v5.channel.k8s.io")).unwrap().accepted("v5.channel.k8s.io");
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
    }

    #[test]
    fn spdy_protocols_come_one_a_line_or_in_one() {
        let offer = Offer::of(&headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io, channel.k8s.io"),
        ]));
        let protocols =
            ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"].map(str::to_owned).to_vec();
        assert_eq!(offer, Ok(Offer::Spdy { protocols }));
    }

    #[test]
    fn refusals_name_what_was_asked_and_what_is_spoken() {
        assert_eq!(Offer::of(&HeaderMap::new()), Err(Refusal::NotAnUpgrade));
        let h2c = headers(&[("connection", "upgrade"), ("upgrade", "h2c")]);
        assert_eq!(
            Offer::of(&h2c).unwrap_err().to_string(),
            "cannot upgrade to \"h2c\": this server speaks `websocket` and `SPDY/3.1`"
        );
        let keyless =
            headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]);
        assert_eq!(Offer::of(&keyless), Err(Refusal::IncompleteHandshake));
        let refusal = Offer::of(&websocket("v9")).unwrap().choose(SPOKEN).unwrap_err();
        assert_eq!(refusal.code(), StatusCode::FORBIDDEN);
        assert_eq!(
            refusal.to_string(),
            r#"unable to negotiate protocol: client supports ["v9"], server accepts ["v5.channel.k8s.io", "v4.channel.k8s.io"]"#
        );
    }
}
