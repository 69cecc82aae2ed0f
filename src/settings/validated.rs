//! The validated settings, as the rest of the program uses them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::DEFAULT_SOCKET;
use crate::model::{
    Bandwidth, EventSettings, IfPattern, JoinRule, KernelForwarding, MonitorRules, ProxyRule,
    RouteRule, TtlThreshold,
};

/// The settings. The default is the meaning of an empty file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `[http]`
    pub http: HttpSettings,
    /// `[control]`
    pub control: ControlSettings,
    /// `[state]`
    pub state: StateSettings,
    /// `[docker]`
    pub docker: DockerSettings,
    /// `[plane]`
    pub plane: PlaneSettings,
    /// `[log]`
    pub log: LogSettings,
    /// Each `[[interface]]`, in the order of the file.
    pub interfaces: Vec<InterfaceSettings>,
    /// Each `[[route]]`, in the order of the file. Names are unique, and no two routes fit the
    /// same packet equally well.
    pub routes: Vec<RouteRule>,
    /// Each `[[join]]`, in the order of the file.
    pub joins: Vec<JoinRule>,
    /// Each `[[proxy]]`, in the order of the file. Names are unique, and no interface is
    /// downstream of two proxies.
    pub proxies: Vec<ProxyRule>,
    /// Each `[[discovery]]`, in the order of the file. Names are unique.
    pub discovery: Vec<crate::discovery::config::DiscoveryRule>,
    /// `[mrdisc]`
    pub mrdisc: MrdiscSettings,
    /// `[mnat]`
    pub mnat: Option<crate::mnat::Config>,
    /// `[amt]`
    pub amt: crate::amt::config::AmtConfig,
    /// `[monitor]`
    pub monitor: MonitorSettings,
    /// `[limits]`
    pub limits: LimitSettings,
    /// The wrong lines of an `smcroute.conf`, which are skipped: location and reason.
    pub skipped: Vec<String>,
    /// The lines of an `smcroute.conf` that may not have the intended meaning: location and
    /// reason.
    pub doubtful: Vec<String>,
    /// Why an `smcroute.conf` could not be read at all.
    pub unreadable: Option<String>,
}

/// The listener for metrics, health checks and the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// The address; `None` for `"off"`.
    pub listen: Option<HttpAddress>,
    /// Host names that requests may use besides the built-in ones: lower case, without a final dot.
    pub hosts: Vec<String>,
    /// Whether to serve `/api/v1`.
    pub api: bool,
    /// Whether the settings do not mention `api`.
    pub api_is_default: bool,
}

/// Where the HTTP server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAddress {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// A UNIX socket: an absolute path of at most 107 bytes.
    Unix(PathBuf),
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSettings {
    /// An absolute path of at most 107 bytes, the limit of a UNIX socket address.
    pub socket: PathBuf,
}

/// Where state that outlives the process is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StateSettings {
    /// In the folder that belongs to the control socket.
    #[default]
    BesideControlSocket,
    /// In this folder: an absolute path.
    Folder(PathBuf),
    /// Nowhere.
    Off,
}

impl StateSettings {
    /// Returns the folder; None if no state is kept. Beside the socket `mcastor.sock` it is `state`,
    /// beside a socket `NAME.sock` it is `NAME.state`, so that each instance has its own.
    pub fn folder(&self, control_socket: &Path) -> Option<PathBuf> {
        match self {
            Self::Folder(folder) => Some(folder.clone()),
            Self::Off => None,
            Self::BesideControlSocket => {
                let default_name = Path::new(DEFAULT_SOCKET).file_name();
                let is_default_name = control_socket.file_name() == default_name;
                Some(match is_default_name {
                    true => control_socket.with_file_name("state"),
                    false => control_socket.with_extension("state"),
                })
            }
        }
    }
}

/// The Docker Engine that resolves the names of containers and networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerSettings {
    /// Its socket: an absolute path of at most 107 bytes.
    pub socket: PathBuf,
}

/// How packets are captured and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaneSettings {
    /// The plane.
    pub kind: PlaneKind,
    /// Whether to send past the queueing discipline.
    pub qdisc_bypass: bool,
    /// How long after a packet to poll for the next one before the thread sleeps: 0 to 1,000
    /// microseconds; 0 disables polling.
    pub busy_poll: Duration,
    /// Packets a second of unknown flows that an interface captures on each core, where the plane
    /// limits them; 0: all.
    pub unknown_packets: u64,
    /// A folder of a BPF file system for what outlives the process; `None`: nothing does.
    pub bpffs: Option<PathBuf>,
    /// How long the kernel forwards without the process, 1 second to 24 hours.
    pub orphan_after: Duration,
    /// Whether another process may take packets from the same interfaces.
    pub shared: bool,
}

/// The planes that can be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlaneKind {
    /// The best plane of this machine.
    #[default]
    Auto,
    /// Packet sockets.
    Packet,
    /// BPF programs in the kernel, and packet sockets for what these leave.
    Ebpf,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A level or a list of tracing filter directives, which is known to parse.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Options of the interfaces that a name or pattern matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// The name or pattern.
    pub name: IfPattern,
    /// The TTL that packets must exceed to leave on the interface.
    pub ttl_threshold: Option<TtlThreshold>,
    /// Whether routes may use the interface.
    pub enabled: bool,
    /// Whether to send multicast router advertisements on the interface (RFC 4286).
    pub mrdisc: bool,
    /// Whether to capture packets even if no route or proxy receives from the interface.
    pub capture: bool,
    /// Whether the kernel forwards packets of the interface.
    pub kernel_forwarding: KernelForwarding,
    /// The version of IGMP with which groups are joined, 1 to 3; `None` for the version of the
    /// querier.
    pub igmp_version: Option<u8>,
    /// The version of MLD with which groups are joined, 1 or 2; `None` for the version of the
    /// querier.
    pub mld_version: Option<u8>,
    /// Interval at which joined groups are reported without a query; `None` for never.
    pub refresh: Option<Duration>,
    /// The limit of the streams that leave; `None` for none.
    pub bandwidth: Option<Bandwidth>,
}

/// Multicast router discovery (RFC 4286).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MrdiscSettings {
    /// The time between two advertisements, 4 to 180 seconds.
    pub interval: Duration,
}

/// Limits of the state that senders can create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSettings {
    /// The number of flows of all interfaces together, 1 to 10,000,000.
    pub flows: usize,
    /// The seconds after its last packet when a flow is removed, 1 to 3,600.
    pub flow_idle: u32,
    /// The number of streams that are monitored, 0 to 100,000.
    pub monitored_streams: usize,
}

/// Monitored streams, besides those of routes and proxies that ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MonitorSettings {
    /// What is monitored.
    pub rules: MonitorRules,
    /// What is reported.
    pub events: EventSettings,
}
