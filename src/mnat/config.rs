//! The validated settings of an MNAT ingress or egress.

use std::path::PathBuf;
use std::time::Duration;

use super::client::Target;
use super::protocol::MnatRole;
use crate::model::IfName;

/// Default of [`Config::grace`].
pub const DEFAULT_GRACE: Duration = Duration::from_secs(300);

/// The sources from which an egress learns the requested channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinSources {
    /// The IGMP and MLD reports of hosts downstream. The egress is then the querier there.
    pub members: bool,
    /// The joinfile, if one is configured.
    pub joinfile: bool,
}

impl JoinSources {
    /// All sources.
    pub const ALL: Self = Self {
        members: true,
        joinfile: true,
    };
    /// The values of the `joins` setting.
    pub const WORDS: [&'static str; 2] = ["members", "joinfile"];

    /// Parses the values of the `joins` setting.
    ///
    /// # Errors
    /// Returns the first word that is not in [`Self::WORDS`], or an empty string if `words` is
    /// empty.
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

/// The validated `[mnat]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The role of this router.
    pub role: MnatRole,
    /// The server and the certificates.
    pub target: Target,
    /// The interface on which streams arrive.
    pub upstream: IfName,
    /// The interface on which streams leave; never the same as `upstream`.
    pub downstream: IfName,
    /// The joinfile. An egress reads it, an ingress writes it.
    pub joinfile: Option<PathBuf>,
    /// The sources of the joins of an egress. An ingress ignores this field.
    pub joins: JoinSources,
    /// How long a mapping stays in use without confirmation by the server; 0 to 30 days.
    pub grace: Duration,
}
