//! Errors in responses (RFC 8040 section 7.1).

use serde_json::{Map, Value, json};

use crate::model::escape::quote;

/// The kind of an error, with the `error-tag` of RFC 8040 section 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorTag {
    /// A value is not valid.
    InvalidValue,
    /// The request is not readable.
    MalformedMessage,
    /// The body is too large.
    TooBig,
    /// A required member is missing.
    MissingElement,
    /// The client may not do this.
    AccessDenied,
    /// The resource does not exist. RFC 8040 uses `invalid-value` with status 404.
    NotFound,
    /// The operation does not exist.
    UnknownOperation,
    /// The method is not supported.
    UnsupportedMethod,
    /// The server has no room for it.
    ResourceDenied,
    /// The operation failed.
    OperationFailed,
}

impl ErrorTag {
    /// Returns the HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidValue
            | Self::MalformedMessage
            | Self::MissingElement
            | Self::UnknownOperation => 400,
            Self::AccessDenied => 403,
            Self::NotFound => 404,
            Self::UnsupportedMethod => 405,
            Self::ResourceDenied => 409,
            Self::TooBig => 413,
            // The prototype's status for a refresh of an unknown id.
            Self::OperationFailed => 500,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::InvalidValue | Self::NotFound => "invalid-value",
            Self::MalformedMessage => "malformed-message",
            Self::MissingElement => "missing-element",
            Self::AccessDenied => "access-denied",
            Self::UnknownOperation | Self::UnsupportedMethod => "operation-not-supported",
            Self::ResourceDenied => "resource-denied",
            Self::TooBig => "too-big",
            Self::OperationFailed => "operation-failed",
        }
    }
}

/// An error that a response reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestconfError {
    /// The kind.
    pub tag: ErrorTag,
    /// The `error-path`: the part of the request that is wrong.
    pub path: Option<String>,
    /// The `error-message`.
    pub message: String,
}

impl RestconfError {
    /// Returns an error without a path.
    pub fn new(tag: ErrorTag, message: impl Into<String>) -> Self {
        Self {
            tag,
            path: None,
            message: message.into(),
        }
    }

    /// Returns an error of the part of the request at `path`.
    pub fn at(path: impl Into<String>, tag: ErrorTag, message: impl Into<String>) -> Self {
        Self {
            path: Some(path.into()),
            ..Self::new(tag, message)
        }
    }

    /// Encodes the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut error = json!({
            "error-type": match self.tag {
                ErrorTag::UnsupportedMethod | ErrorTag::TooBig => "transport",
                ErrorTag::OperationFailed | ErrorTag::ResourceDenied => "application",
                _ => "protocol",
            },
            "error-tag": self.tag.text(),
            "error-message": self.message,
        });
        if let Some(path) = &self.path {
            error["error-path"] = json!(path);
        }
        let body = json!({ "ietf-restconf:errors": { "error": [error] } });
        body.to_string().into_bytes()
    }

    /// Returns the text of the first error in a body, quoted for a log.
    pub fn decode_text(body: &[u8]) -> Option<String> {
        let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
        let error = body.get("ietf-restconf:errors")?.get("error")?.get(0)?;
        let text = |name| error.get(name).and_then(Value::as_str);
        let message = text("error-message").or_else(|| text("error-app-tag"));
        message.or_else(|| text("error-tag")).map(quote)
    }
}
