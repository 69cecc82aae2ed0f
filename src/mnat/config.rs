//! What an end is told: its role, its server, its two sides.

use std::path::PathBuf;
use std::time::Duration;

use super::client::Target;
use super::protocol::MnatRole;
use crate::model::IfName;

/// How long mappings last that the server does not confirm, where nothing else is said.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(300);

/// Where an egress learns what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinSources {
    /// From IGMP and MLD of the hosts downstream, whose querier it is then.
    pub members: bool,
    /// From the joinfile, where there is one.
    pub joinfile: bool,
}

impl JoinSources {
    /// Both.
    pub const ALL: Self = Self {
        members: true,
        joinfile: true,
    };
    /// The words for them.
    pub const WORDS: [&'static str; 2] = ["members", "joinfile"];

    /// Reads the words.
    ///
    /// # Errors
    /// The word that is none of [`Self::WORDS`]; an empty one where there are none.
    pub fn named<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut sources = Self {
            members: false,
            joinfile: false,
        };
        for word in words {
            match word {
                "members" => sources.members = true,
                "joinfile" => sources.joinfile = true,
                other => return Err(other.into()),
            }
        }
        match sources.members || sources.joinfile {
            true => Ok(sources),
            false => Err(String::new()),
        }
    }
}

/// `[mnat]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which end this is.
    pub role: MnatRole,
    /// The server, and the certificates.
    pub target: Target,
    /// Where streams come from.
    pub upstream: IfName,
    /// Where they go; never the same.
    pub downstream: IfName,
    /// An egress reads it, an ingress writes it.
    pub joinfile: Option<PathBuf>,
    /// Where an egress learns what is wanted; nothing to an ingress.
    pub joins: JoinSources,
    /// How long mappings last that the server does not confirm; from 0 to 30 days.
    pub grace: Duration,
}
