//! Why a change of the rules is refused.

use crate::model::rule::{MAX_EGRESSES, MAX_JOINED_GROUPS};
use crate::model::{GroupPrefix, IfPattern, JoinRule, RouteName, SourcePrefix, StreamSet};

/// The reason why a change of the rules is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RibError {
    /// A packet could match two routes equally well.
    #[error(
        "route \"{0}\" matches the same source and group on a common interface; change that route"
    )]
    Ambiguous(RouteName),
    /// No route has this interface, source and group.
    #[error(
        "there is no route from {from} for ({source_prefix}, {group}); `mcastor show routes` lists them"
    )]
    NoSuchRoute {
        /// The requested ingress interface.
        from: IfPattern,
        /// The requested source.
        source_prefix: SourcePrefix,
        /// The requested group.
        group: GroupPrefix,
    },
    /// A command adds a route without egresses.
    #[error("name at least one interface to send to")]
    NoEgress,
    /// The route does not send to the interface that is to be removed from it.
    #[error("route \"{route}\" does not send to {egress}; it sends to {}", names(.to))]
    NoSuchEgress {
        /// The route.
        route: RouteName,
        /// The interface to which it does not send.
        egress: IfPattern,
        /// The interfaces to which it sends.
        to: Vec<IfPattern>,
    },
    /// The route has more than [`MAX_EGRESSES`] egresses.
    #[error("a route sends to at most {MAX_EGRESSES} names and patterns")]
    TooManyEgresses,
    /// Link-local groups are forwarded only if the settings allow it.
    #[error(
        "{0} is link-local and stays on its link; a [[route]] with link_local = true in the settings forwards it"
    )]
    LinkLocal(GroupPrefix),
    /// Different streams would leave as the same stream. At least one of the routes translates.
    #[error(
        "packets would leave as {1}, like those of route \"{0}\"; name another source, group or interface"
    )]
    MergesStreams(RouteName, StreamSet),
    /// Two other routes would merge streams if this route did not match some of them.
    #[error(
        "without this route, routes \"{0}\" and \"{1}\" would both send packets as {2}; remove one of them first"
    )]
    PreventsMerge(RouteName, RouteName, StreamSet),
    /// Packets that a route translated would return to it.
    #[error(
        "packets that route \"{0}\" translates would return to it; name the sources of each side"
    )]
    TranslationLoop(RouteName),
    /// The route with the same interface, source and group has another translation.
    #[error(
        "route \"{0}\" matches the same packets and translates them differently; remove it first"
    )]
    OtherTranslation(RouteName),
    /// The route has another translation than the route to remove.
    #[error("route \"{0}\" has another translation; `mcastor show routes` lists the translations")]
    TranslationMismatch(RouteName),
    /// Source and group have different IP versions.
    #[error("source {0} and group {1} are of different IP versions")]
    MixedFamily(SourcePrefix, GroupPrefix),
    /// The same join exists.
    #[error("already joined")]
    AlreadyJoined,
    /// There is no such join that a command could remove.
    #[error(
        "{0} is not joined by [[join]] or `mcastor join`; `mcastor show groups` lists the joined groups"
    )]
    NotJoined(Box<JoinRule>),
    /// A route joins the group, so that a command cannot leave it.
    #[error("{0} is joined by route \"{1}\"; remove the route, or set join = false in it")]
    JoinedByRoute(Box<JoinRule>, RouteName),
    /// The join has more than [`MAX_JOINED_GROUPS`] groups.
    #[error("{0} has more than the {MAX_JOINED_GROUPS} groups that one join may name")]
    TooManyGroups(GroupPrefix),
}

/// Lists interfaces for a message.
fn names(interfaces: &[IfPattern]) -> String {
    match interfaces {
        [] => "no interface".into(),
        all => all
            .iter()
            .map(IfPattern::as_str)
            .collect::<Vec<_>>()
            .join(" "),
    }
}
