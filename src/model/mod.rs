//! The nouns every other room speaks in: addresses, links, TTL policies, route rules.
//!
//! Constructors check; nothing here does I/O or reads a clock.

pub mod addr;
pub mod filter;
pub mod flow_end;
pub mod link;
pub mod links;
pub mod proxy;
pub mod rewrite;
pub mod rewrite_rules;
pub mod rule;
pub mod ttl;

pub use addr::{AddrError, Group, GroupPrefix, Source, SourceGroup, SourcePrefix};
pub use filter::SourceFilter;
pub use flow_end::FlowEnd;
pub use link::{IfIndex, IfName, IfPattern, LinkError};
pub use links::{Aliases, Link, Links};
pub use proxy::{
    HeaderChecks, MOST_PROXIES, MembershipLimits, ProxyRule, QuerierPolicy, QuerierTimers, Versions,
};
pub use rewrite::{Family, Rewrite, RewriteError, StreamSet};
pub use rule::{JoinPolicy, JoinRule, Origin, RouteName, RouteRule};
pub use ttl::{TtlPolicy, TtlThreshold};
