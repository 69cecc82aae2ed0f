//! The validated settings of an MNAT ingress or egress.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::IfName;

/// Default of [`Config::grace`].
pub const DEFAULT_GRACE: Duration = Duration::from_secs(300);

/// The role of this router in MNAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MnatRole {
    /// Near the senders: receives global channels and sends local channels.
    Ingress,
    /// Near the receivers: receives local channels and sends global channels.
    Egress,
}

impl MnatRole {
    /// Both roles.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Returns the `role` label of metrics, which is also the value in the settings.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for MnatRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// The address of the server, and the certificates of both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// PEM file with the CA of the server's certificate. `None` trusts the CAs of the system.
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate and its chain.
    pub cert: Option<PathBuf>,
    /// PEM file with the key of the client certificate. `None` reads it from `cert`.
    pub key: Option<PathBuf>,
    /// Ignores files that do not exist. Otherwise a missing file is an error.
    pub only_if_present: bool,
}

impl Target {
    /// Returns the configured certificate and key files.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let all = [&self.ca, &self.cert, &self.key];
        all.into_iter().flatten().map(PathBuf::as_path)
    }

    /// Returns `file`, or `None` if it does not exist and may be missing.
    pub(super) fn present<'t>(&self, file: &'t Option<PathBuf>) -> Option<&'t Path> {
        let file = file.as_deref()?;
        (!self.only_if_present || file.exists()).then_some(file)
    }
}

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
