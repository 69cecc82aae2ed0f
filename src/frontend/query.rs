//! Queries and changes, passed to the actors. Plain data from the actors is rendered here.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use actix::Message;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::flow_views::SelectedFlows;
use super::ingress_names::ingress_named;
use super::{discovery_views, drop_views, flow_views, group_views, stream_views, views};
use crate::actors::RouterContext;
use crate::actors::messages::{
    ApplyChange, Barrier, FlushFlows, QueryDiscovery, QueryHostGroups, QueryMembers, QueryMnat,
    QueryQueriers, QueryRouting, QueryTunnels, RoutingTables,
};
use crate::actors::shared::ProcessRequest;
use crate::api::{
    FlowQuery, GroupView, JoinSpec, RouteSpec, RuleChange, ShowQuery, ShowReply, UpgradeQuery,
    UpgradeReport,
};
use crate::model::{
    AddrError, GroupPrefix, IfPattern, InterfaceId, JoinPolicy, JoinRule, LinkError, Origin,
    RouteName, RouteRule, Source, SourcePrefix, TranslationError, TranslationRule,
};
use crate::table::rib_change::RibChange;

/// How long an actor may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the process may take to let another one take over.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(18);

/// How long a change waits until the interfaces that it needs are captured.
const CAPTURE_PATIENCE: Duration = Duration::from_millis(500);

/// Why a query or a change failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// An actor is being restarted, or is too busy.
    #[error("{0} does not answer; try again in a moment")]
    NoAnswer(&'static str),
    /// The change is not permitted.
    #[error("{0}")]
    Refused(String),
}

/// Why the texts of a change are not a valid change.
#[derive(Debug, thiserror::Error)]
enum ChangeError {
    /// A text is not an address.
    #[error(transparent)]
    Addr(#[from] AddrError),
    /// A text is not an interface name or pattern.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An address stands where an interface belongs.
    #[error(
        "{0} is an address, where an interface belongs; the order is IIF [SOURCE] GROUP OIF..."
    )]
    AddressAsInterface(IpAddr),
    /// The translation is not possible.
    #[error(transparent)]
    Translation(#[from] TranslationError),
}

/// Returns the reply to a query.
///
/// # Errors
/// An actor does not answer.
pub async fn show(context: &RouterContext, query: ShowQuery) -> Result<ShowReply, QueryError> {
    context.count_planes();
    let catalog = &context.catalog;
    Ok(match query {
        ShowQuery::Routes => {
            wait_until_in_force(context).await?;
            let tables = routing_tables(context).await?;
            ShowReply::Routes(views::routes(&tables, catalog, &context.merges))
        }
        ShowQuery::Interfaces => {
            wait_until_in_force(context).await?;
            let tables = routing_tables(context).await?;
            let queriers = ask(context, "membership", QueryQueriers).await?;
            let fib = context.snapshot.load().fib.clone();
            let mut interfaces =
                views::interfaces(&tables, &fib, catalog, &context.streams.bandwidth);
            for interface in &mut interfaces {
                let index = InterfaceId::new(interface.index);
                let queriers = index.and_then(|index| queriers.get(&index));
                interface.queriers = queriers.map(|q| views::queriers(q)).unwrap_or_default();
                let foreign = index.and_then(|index| context.foreign_sources.get(index));
                let foreign = foreign.map(|(ingress, source)| {
                    format!("{source}, an address of this subnet, sends from {ingress}")
                });
                interface.subnet_conflicts.extend(foreign);
            }
            ShowReply::Interfaces(interfaces)
        }
        ShowQuery::Pending => {
            let tables = routing_tables(context).await?;
            ShowReply::Pending(views::pending(&tables))
        }
        ShowQuery::Groups => ShowReply::Groups(groups(context).await?),
        ShowQuery::Mnat => match context.directory.receiver::<QueryMnat>() {
            Some(mnat) => {
                let status = mnat.send(QueryMnat).timeout(PATIENCE).await;
                let status = status.map_err(|_| QueryError::NoAnswer("mnat"))?;
                wait_until_in_force(context).await?;
                ShowReply::Mnat(vec![views::mnat(status)])
            }
            None => ShowReply::Mnat(Vec::new()),
        },
        ShowQuery::Tunnels if context.amt.load().config.is_empty() => {
            ShowReply::Tunnels(Vec::new())
        }
        ShowQuery::Tunnels => {
            let tunnels = ask(context, "amt", QueryTunnels).await?;
            let fib = context.snapshot.load().fib.clone();
            let bandwidth = &context.streams.bandwidth;
            let tunnels = tunnels.into_iter();
            let views = tunnels.map(|report| {
                let id = context.tunnels.id(&report.interface);
                views::tunnel(report, id, &fib, bandwidth)
            });
            ShowReply::Tunnels(views.collect())
        }
        ShowQuery::Discovery if context.discovery.load().rules.is_empty() => {
            ShowReply::Discovery(Vec::new())
        }
        ShowQuery::Discovery => {
            let reports = ask(context, "discovery", QueryDiscovery).await?;
            let views = reports.into_iter().map(discovery_views::discovery);
            ShowReply::Discovery(views.collect())
        }
        ShowQuery::Drops(query) => {
            let drops = drop_views::drops(context, query).await;
            ShowReply::Drops(drops.map_err(|_| QueryError::NoAnswer("an interface"))?)
        }
        ShowQuery::Streams(query) => {
            let streams = stream_views::streams(context, query).await;
            ShowReply::Streams(streams.map_err(|_| QueryError::NoAnswer("the router"))?)
        }
        ShowQuery::Flows(query) => ShowReply::Flows(flows(context, query).await?.flows),
    })
}

/// Returns the flows that match a query.
///
/// # Errors
/// There is no such interface, or an interface actor does not answer.
pub async fn flows(context: &RouterContext, query: FlowQuery) -> Result<SelectedFlows, QueryError> {
    if let Some(iif) = &query.iif {
        let snapshot = context.snapshot.load_full();
        ingress_named(&snapshot, iif).map_err(QueryError::Refused)?;
    }
    let flows = flow_views::flows(context, query).await;
    flows.map_err(|_| QueryError::NoAnswer("an interface"))
}

/// Returns the groups that hosts and this host have joined.
///
/// # Errors
/// An actor does not answer.
pub(super) async fn groups(context: &RouterContext) -> Result<Vec<GroupView>, QueryError> {
    let joined = ask(context, "joins", QueryHostGroups).await?;
    let members = ask(context, "membership", QueryMembers).await?;
    wait_until_in_force(context).await?;
    let rules = &context.rib.load().rules;
    Ok(group_views::groups(&joined, &members, rules))
}

pub(super) fn ask<M>(
    context: &RouterContext,
    actor: &'static str,
    message: M,
) -> impl Future<Output = Result<M::Result, QueryError>> + use<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    let answer = context.directory.ask(message, PATIENCE);
    async move { answer.await.map_err(|_| QueryError::NoAnswer(actor)) }
}

/// Returns the rules and the interfaces.
///
/// # Errors
/// Routing does not answer.
pub async fn routing_tables(context: &RouterContext) -> Result<RoutingTables, QueryError> {
    ask(context, "routing", QueryRouting).await
}

/// Waits until the snapshot in force contains every change that routing has received. A client
/// that is shown a route or a member may send packets at once, and must not lose the first one.
async fn wait_until_in_force(context: &RouterContext) -> Result<(), QueryError> {
    ask(context, "routing", Barrier).await
}

/// Waits until the interfaces of a change are captured. An interface that cannot be captured is
/// in the log and is retried, so this wait is limited.
async fn wait_until_captured(context: &RouterContext) {
    let ready = async {
        while !context.health.is_ready() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = timeout(CAPTURE_PATIENCE, ready).await;
}

/// Returns the joins as they were requested, with patterns and prefixes.
pub fn join_rules(context: &RouterContext) -> Vec<JoinRule> {
    context.rib.load().joins.clone()
}

/// Changes a rule. Returns a sentence that says what changed.
///
/// # Errors
/// The change is not permitted, or routing does not answer.
pub async fn change(context: &RouterContext, change: RuleChange) -> Result<String, QueryError> {
    let added: Vec<IfPattern> = added_interfaces(&change)
        .filter_map(|i| i.parse().ok())
        .collect();
    let change = parse(&change).map_err(|e| QueryError::Refused(e.to_string()))?;
    let description = ask(context, "routing", ApplyChange(change))
        .await?
        .map_err(|e| QueryError::Refused(e.to_string()))?;
    wait_until_in_force(context).await?;
    wait_until_captured(context).await;
    let waiting = match added.is_empty() {
        true => String::new(),
        false => waiting_text(&routing_tables(context).await?, &added),
    };
    Ok(description + &waiting)
}

/// Returns the names and patterns that a change adds.
fn added_interfaces(change: &RuleChange) -> impl Iterator<Item = &str> {
    let (first, others) = match change {
        RuleChange::Add(spec) => (Some(&spec.from), &spec.to[..]),
        RuleChange::Join(spec) => (Some(&spec.interface), &[][..]),
        RuleChange::Remove(_) | RuleChange::Leave(_) => (None, &[][..]),
    };
    first.into_iter().chain(others).map(String::as_str)
}

/// Says which of the names match no interface now.
fn waiting_text(tables: &RoutingTables, names: &[IfPattern]) -> String {
    let links = &tables.links;
    let unmatched = names
        .iter()
        .filter(|name| links.matching(name).next().is_none());
    unmatched
        .map(|name| {
            let hint = views::name_hint(tables, name).map(|hint| format!(" ({hint})"));
            let hint = hint.unwrap_or_default();
            format!("; waiting for {name}, which does not exist now{hint}")
        })
        .collect()
}

/// Ends all flows. Returns a sentence with their number.
///
/// # Errors
/// None at present.
pub async fn flush(context: &RouterContext) -> Result<String, QueryError> {
    let snapshot = context.snapshot.load_full();
    let interfaces = snapshot.interfaces.iter();
    let answers = interfaces.map(|i| i.flush.send(FlushFlows).timeout(PATIENCE));
    let flushed: u64 = join_all(answers).await.into_iter().flatten().sum();
    Ok(format!("flows flushed: {flushed}"))
}

/// Reads the settings again. Returns a sentence that says what changed.
///
/// # Errors
/// The settings are refused.
pub async fn reload(context: &RouterContext) -> Result<String, QueryError> {
    request(context, ProcessRequest::Reload).await
}

/// Lets a new process take over.
///
/// # Errors
/// The new process cannot take over. This one forwards on.
pub async fn upgrade(
    context: &RouterContext,
    query: UpgradeQuery,
) -> Result<UpgradeReport, QueryError> {
    let program = query.binary.map(PathBuf::from);
    let request = |answer| ProcessRequest::Upgrade(program, answer);
    request_within(context, UPGRADE_PATIENCE, request).await
}

/// Makes an actor panic, if the process permits it.
///
/// # Errors
/// The process does not permit it, or there is no such actor.
pub async fn panic(context: &RouterContext, actor: String) -> Result<String, QueryError> {
    request(context, |answer| ProcessRequest::Panic(actor, answer)).await
}

/// Ends the process. With `keep_forwarding`, what can forward without the process continues.
///
/// # Errors
/// The process does not answer.
pub async fn stop(context: &RouterContext, keep_forwarding: bool) -> Result<String, QueryError> {
    let request = ProcessRequest::Stop(keep_forwarding);
    let sent = context.requests.send(request).await;
    sent.map(|()| "stopping".into())
        .map_err(|_| QueryError::NoAnswer("the process"))
}

async fn request(
    context: &RouterContext,
    request: impl FnOnce(oneshot::Sender<Result<String, String>>) -> ProcessRequest,
) -> Result<String, QueryError> {
    request_within(context, PATIENCE, request).await
}

async fn request_within<T>(
    context: &RouterContext,
    patience: Duration,
    request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> ProcessRequest,
) -> Result<T, QueryError> {
    let no_answer = || QueryError::NoAnswer("the process");
    let (sender, answer) = oneshot::channel();
    let sent = context.requests.send(request(sender)).await;
    sent.map_err(|_| no_answer())?;
    match timeout(patience, answer).await {
        Ok(Ok(outcome)) => outcome.map_err(QueryError::Refused),
        _ => Err(no_answer()),
    }
}

fn parse(change: &RuleChange) -> Result<RibChange, ChangeError> {
    Ok(match change {
        RuleChange::Add(spec) => RibChange::AddRoute {
            rule: Box::new(route_rule(spec)?),
            allow_no_effect: spec.stop,
        },
        RuleChange::Remove(spec) => RibChange::RemoveRoute(Box::new(route_rule(spec)?)),
        RuleChange::Join(spec) => RibChange::Join(join_rule(spec)?),
        RuleChange::Leave(spec) => RibChange::Leave(join_rule(spec)?),
    })
}

/// Parses the name or pattern of an interface. An address stands in the wrong place.
fn interface(text: &str) -> Result<IfPattern, ChangeError> {
    match text.parse() {
        Ok(address) => Err(ChangeError::AddressAsInterface(address)),
        Err(_) => Ok(text.parse()?),
    }
}

fn route_rule(spec: &RouteSpec) -> Result<RouteRule, ChangeError> {
    let from = interface(&spec.from)?;
    let group: GroupPrefix = spec.group.parse()?;
    let source = match &spec.source {
        Some(source) => source.parse()?,
        None => SourcePrefix::any_for(group),
    };
    let to = spec.to.iter().map(|t| interface(t));
    let to = to.collect::<Result<_, _>>()?;
    let rewrite = spec.rewrite.as_ref().map(|rewrite| {
        let to_source = rewrite.source.as_ref().map(|s| s.parse()).transpose()?;
        let to_group = rewrite.group.as_ref().map(|g| g.parse()).transpose()?;
        let replacement = (to_source, to_group);
        let rule = TranslationRule::new((source, group), replacement, rewrite.port, false);
        rule.map_err(ChangeError::from)
    });
    Ok(RouteRule {
        name: RouteName::default_for(&from, source, group),
        origin: Origin::Command,
        translation: rewrite.transpose()?,
        source,
        join: match spec.join {
            None => JoinPolicy::Auto,
            Some(true) => JoinPolicy::Always,
            Some(false) => JoinPolicy::Never,
        },
        ..RouteRule::new(from, group, to)
    })
}

fn join_rule(spec: &JoinSpec) -> Result<JoinRule, ChangeError> {
    let source = spec.source.as_ref().map(|s| s.parse::<Source>());
    Ok(JoinRule {
        interface: interface(&spec.interface)?,
        source: source.transpose()?,
        group: spec.group.parse()?,
        origin: Origin::Command,
    })
}
