//! How a remote command ended, and the `v1.Status` object by which the client learns it.

use serde::{Deserialize, Serialize};

/// How a remote command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitStatus {
    /// It ran and exited with code 0.
    Success,
    /// It ran and exited with this code (a signal counts as 128 + its number).
    Code(i32),
    /// It could not be run, or the session broke; the text is shown to the user.
    Failed(String),
}

impl ExitStatus {
    /// The status of a command that exited with `code`.
    pub fn of_code(code: i32) -> Self {
        if code == 0 { Self::Success } else { Self::Code(code) }
    }

    /// The `v1.Status` object as JSON (`NonZeroExitCode` with the cause `ExitCode`, or `InternalError`).
    pub(crate) fn to_json(&self) -> Vec<u8> {
        // A struct of strings and numbers always serialises.
        serde_json::to_vec(&self.to_status()).unwrap_or_default()
    }

    /// What clients of the oldest protocol are sent: nothing, or the message as text.
    pub(crate) fn to_text(&self) -> Option<String> {
        self.to_status().message
    }

    pub(crate) fn from_json(json: &[u8]) -> Self {
        let Ok(status) = serde_json::from_slice::<Status>(json) else {
            return Self::Failed(String::from_utf8_lossy(json).into_owned());
        };
        let causes = status.details.map(|details| details.causes).unwrap_or_default();
        let code = causes
            .iter()
            .find(|cause| cause.reason == "ExitCode")
            .and_then(|cause| cause.message.parse().ok());
        match code {
            _ if status.status == "Success" => Self::Success,
            Some(code) => Self::Code(code),
            None => Self::Failed(status.message.unwrap_or_default()),
        }
    }

    fn to_status(&self) -> Status {
        let failure = |message, reason: &str, code, details| Status {
            metadata: Metadata {},
            status: "Failure".to_owned(),
            message: Some(message),
            reason: Some(reason.to_owned()),
            details,
            code,
        };
        match self {
            Self::Success => {
                Status { metadata: Metadata {}, status: "Success".to_owned(), ..Status::default() }
            }
            Self::Code(code) => {
                let cause = Cause { reason: "ExitCode".to_owned(), message: code.to_string() };
                let message = format!("command terminated with non-zero exit code: exit status {code}");
                failure(message, "NonZeroExitCode", None, Some(Details { causes: vec![cause] }))
            }
            Self::Failed(message) => failure(message.clone(), "InternalError", Some(500), None),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names are those of the Kubernetes object")]
struct Status {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Metadata {}

#[derive(Debug, Serialize, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_object_is_upstreams() {
        assert_eq!(ExitStatus::Success.to_json(), br#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(
            String::from_utf8(ExitStatus::Code(2).to_json()).unwrap(),
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 2","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"2"}]}}"#
        );
        assert_eq!(
            String::from_utf8(ExitStatus::Failed("no such container".into()).to_json()).unwrap(),
            r#"{"metadata":{},"status":"Failure","message":"no such container","reason":"InternalError","code":500}"#
        );
    }

    #[test]
    fn a_status_survives_the_round_trip() {
        for status in [ExitStatus::Success, ExitStatus::of_code(137), ExitStatus::Failed("why".into())] {
            assert_eq!(ExitStatus::from_json(&status.to_json()), status);
        }
        assert_eq!(ExitStatus::from_json(b"plain words"), ExitStatus::Failed("plain words".into()));
    }
}
