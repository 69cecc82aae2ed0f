//! The control socket: one JSON value a line, a request and its answer.
//!
//! ```text
//! -> {"version":1,"command":{"show":"routes"}}
//! <- {"version":1,"result":{"routes":[...]}}
//! -> {"version":1,"command":{"change":{"add":{"from":"eth0","group":"225.1.2.3","to":["eth1"]}}}}
//! <- {"version":1,"result":{"done":"added eth0 (*, 225.1.2.3)"}}
//! -> {"version":1,"command":"fly"}
//! <- {"version":1,"error":"..."}
//! ```
//!
//! docs/control.md describes it for readers.

pub mod client;
pub mod server;
pub mod socket;

use serde::{Deserialize, Serialize};

use crate::api::{self, RuleChange, ShowQuery, ShowReply};

/// Longest request, in bytes without the line feed.
pub const LONGEST_REQUEST: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`crate::api::VERSION`].
    pub version: u32,
    /// What is asked.
    pub command: Command,
}

impl Request {
    /// Reads one line. The error is what the client is told.
    pub fn parse(line: &str) -> Result<Self, String> {
        let request: Self =
            serde_json::from_str(line).map_err(|e| format!("not a request: {e}"))?;
        if request.version != api::VERSION {
            return Err(format!(
                "version {} is not spoken here, version {} is",
                request.version,
                api::VERSION
            ));
        }
        Ok(request)
    }
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Tell of something.
    Show(ShowQuery),
    /// Change the rules until the next reload.
    Change(RuleChange),
    /// End all flows.
    Flush,
    /// Read the settings again.
    Reload,
    /// Have an actor panic; refused unless the process was started for such tests.
    Panic(String),
    /// End the process.
    Stop,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// [`crate::api::VERSION`].
    pub version: u32,
    /// What happened.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Whether a request was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Yes, and this is what was asked for.
    Result(ShowReply),
    /// No, and why.
    Error(String),
}
