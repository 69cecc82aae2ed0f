//! The protocol of the control socket: one JSON value per line; each request has one response.
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
//! docs/control.md describes it for users.

pub mod client;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::api::{self, ExplainQuery, RuleChange, ShowQuery, ShowReply, TraceQuery, UpgradeQuery};

/// Size of the longest request in bytes, without the line feed.
pub const MAX_REQUEST: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`crate::api::VERSION`].
    pub version: u32,
    /// The command.
    pub command: Command,
}

impl Request {
    /// Parses one line. The error text is for the client.
    pub fn parse(line: &str) -> Result<Self, String> {
        let request: Self =
            serde_json::from_str(line).map_err(|e| format!("not a request: {e}"))?;
        if request.version != api::VERSION {
            return Err(format!(
                "version {} is not supported; this daemon supports version {}",
                request.version,
                api::VERSION
            ));
        }
        Ok(request)
    }
}

/// A command of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Show data.
    Show(ShowQuery),
    /// Explain what happens to a packet.
    Explain(ExplainQuery),
    /// Record live packets and the decision for each.
    Trace(TraceQuery),
    /// Change the rules until the next reload.
    Change(RuleChange),
    /// End all flows.
    Flush,
    /// Read the settings again.
    Reload,
    /// Let a new process take over.
    Upgrade(UpgradeQuery),
    /// Make an actor panic; refused unless the process was started for such tests.
    Panic(String),
    /// End the process.
    Stop,
    /// End the process, but let the kernel forward the flows that it forwards already.
    StopKeepForwarding,
}

/// The response to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// [`crate::api::VERSION`].
    pub version: u32,
    /// The result or the error.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The command succeeded.
    Result(ShowReply),
    /// The command failed. The text says why.
    Error(String),
}
