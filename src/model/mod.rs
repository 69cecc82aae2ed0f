//! The types that all other modules share: addresses, links, TTL policies, rules of routes and
//! proxies.
//!
//! Constructors validate their arguments. Nothing here does I/O or reads a clock.

pub mod addr;
pub mod aliases;
pub mod bandwidth;
pub mod boot_time;
pub mod client_prefix;
pub mod escape;
pub mod fair_limit;
pub mod filter;
pub mod flow_end;
pub mod kernel_forwarding;
pub mod link;
pub mod links;
pub mod mac_address;
pub mod merge_rule;
pub mod monitor;
pub mod process_usage;
pub mod proxy;
pub mod rule;
pub mod takeover_role;
pub mod translation;
pub mod translation_conflicts;
pub mod ttl;
pub mod tunnel;

pub use addr::{AddrError, Group, GroupPrefix, Source, SourceGroup, SourcePrefix, StreamSet};
pub use aliases::{Aliases, NoInterface, PublishedPorts, WaitingHint};
pub use bandwidth::{Bandwidth, BandwidthError};
pub use boot_time::{BootTime, ClockReading};
pub use client_prefix::ClientPrefix;
pub use fair_limit::{Evicted, FairLimit};
pub use filter::SourceFilter;
pub use flow_end::FlowEnd;
pub use kernel_forwarding::KernelForwarding;
pub use link::{IfIndex, IfName, IfPattern, InterfaceId, LinkError, PlaneName};
pub use links::{Link, LinkAddress, Links};
pub use mac_address::MacAddress;
pub use merge_rule::{MergeBy, MergePath, MergeRule};
pub use monitor::{
    EventSettings, EventThresholds, MonitorKind, MonitorRules, SequenceField, Webhook, WebhookError,
};
pub use process_usage::ProcessUsage;
pub use proxy::{
    HeaderChecks, MAX_PROXIES, MembershipLimits, ProxyRule, QuerierPolicy, QuerierTimers, Versions,
};
pub use rule::{
    DEFAULT_TAKEOVER, FragmentPolicy, JoinPolicy, JoinRule, Origin, RouteName, RouteRule,
};
pub use takeover_role::TakeoverRole;
pub use translation::{TranslationError, TranslationKind, TranslationRule};
pub use ttl::{TtlPolicy, TtlThreshold};
pub use tunnel::{TunnelEndpoint, TunnelInterface};
