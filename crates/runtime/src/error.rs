//! Errors of the CRI verbs, and the gRPC codes they are answered with.

use tonic::{Code, Status};

use crate::mapping::MappingError;
use crate::process::capability::UnknownCapability;
use crate::process::command::NoCommand;
use crate::process::user::UserError;
use crate::record::RecordError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} {id:?} is not known to this runtime")]
    NotFound { what: &'static str, id: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    WrongState(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Timeout(String),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Mapping(#[from] MappingError),
    #[error(transparent)]
    Command(#[from] NoCommand),
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Error {
    /// An operation that the system refused: what was tried, and what it said.
    pub(crate) fn failed(what: impl std::fmt::Display, source: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {source}"))
    }

    /// A request without a field that every request has.
    pub(crate) fn missing(field: &str) -> Self {
        Self::Invalid(format!("the request has no `{field}`"))
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Invalid(_) | Self::Mapping(_) | Self::Command(_) | Self::Capability(_) | Self::User(_) => {
                Code::InvalidArgument
            }
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::WrongState(_) => Code::FailedPrecondition,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Timeout(_) => Code::DeadlineExceeded,
            Self::Failed(_) | Self::Record(_) => Code::Unknown,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.to_string())
    }
}

/// What a verb returns.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;
