//! The server of smcroute's socket, so that `smcroutectl` can control this daemon.
//!
//! A client sends one command, or several at once. The daemon answers each and closes the
//! connection. An invalid command is answered with an error and changes nothing.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::query::{self, QueryError};
use super::socket_server::{self, ClientState};
use super::unix_socket::ListeningSocket;
use crate::actors::RouterContext;
use crate::actors::messages::RoutingTables;
use crate::api::{FlowQuery, JoinSpec, RouteSpec, RuleChange, ShowQuery, ShowReply};
use crate::model::escape::{EscapeStyle, escape};
use crate::model::{GroupPrefix, IfPattern, Source, SourcePrefix};
use crate::smcroute::line::{self, pattern};
use crate::smcroute::show::{self, RouteSnapshot, ShowFormat, ShowKind};
use crate::smcroute::wire::{MAX_COMMAND_LEN, SmcrouteCommand, SmcrouteWireError, Verb, length};

/// How long a client may send nothing, or read nothing of its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves clients until dropped.
pub async fn serve(socket: ListeningSocket, context: Arc<RouterContext>) {
    // Clients wait until the interfaces are known: before that, every name would be unknown. There
    // is always at least the loopback interface.
    let links = || query::show(&context, ShowQuery::Interfaces);
    while !matches!(links().await, Ok(ShowReply::Interfaces(known)) if !known.is_empty()) {
        sleep(Duration::from_millis(5)).await;
    }
    let serve_client = |stream, client| serve_client(stream, context.clone(), client);
    socket_server::serve(socket, "smcroute socket", serve_client).await;
}

async fn serve_client(
    mut stream: UnixStream,
    context: Arc<RouterContext>,
    client: Rc<ClientState>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let (answer, last, style) = match next_command(&mut stream, &mut buffer).await? {
            None => return Ok(()),
            Some(Ok(command)) => {
                let answer = client.answer(answer(&context, &command)).await;
                let style = match command.verb {
                    Verb::ShowJson => EscapeStyle::Json,
                    _ => EscapeStyle::Lines,
                };
                (answer, buffer.is_empty(), style)
            }
            Some(Err(e)) => {
                warn!("smcroute socket: {e}");
                (Err(e.to_string()), true, EscapeStyle::Lines)
            }
        };
        // smcroutectl prints the answer as it is.
        let answer = answer.unwrap_or_else(|e| e);
        let mut bytes = escape(&answer, style).into_owned().into_bytes();
        bytes.push(0);
        timeout(CLIENT_TIMEOUT, stream.write_all(&bytes)).await??;
        if last {
            return Ok(());
        }
    }
}

/// Returns the next command; `None` after the last one.
async fn next_command(
    stream: &mut UnixStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Result<SmcrouteCommand, SmcrouteWireError>>> {
    loop {
        match length(buffer) {
            Err(e) => return Ok(Some(Err(e))),
            Ok(Some(n)) if buffer.len() >= n => {
                let command: Vec<u8> = buffer.drain(..n).collect();
                return Ok(Some(SmcrouteCommand::decode(&command)));
            }
            Ok(_) => {}
        }
        let mut chunk = [0; MAX_COMMAND_LEN];
        let read = match timeout(CLIENT_TIMEOUT, stream.read(&mut chunk)).await {
            Ok(read) => read?,
            Err(_) => 0,
        };
        if read == 0 {
            let truncated = SmcrouteWireError::Truncated(buffer.len());
            return Ok((!buffer.is_empty()).then_some(Err(truncated)));
        }
        buffer.extend_from_slice(&chunk[..read]);
    }
}

/// Runs a command. Returns the output or the error, both as texts for the client.
async fn answer(context: &RouterContext, command: &SmcrouteCommand) -> Result<String, String> {
    let words = &command.arguments;
    let without_output = |done: Result<String, QueryError>| match done {
        Ok(_) => Ok(String::new()),
        Err(e) => Err(e.to_string()),
    };
    match command.verb {
        Verb::Add => add(context, words).await,
        Verb::Remove => remove(context, words).await,
        Verb::Join => membership(context, words, true).await,
        Verb::Leave => membership(context, words, false).await,
        Verb::Flush => without_output(query::flush(context).await),
        Verb::Reload => without_output(query::reload(context).await),
        Verb::Kill => without_output(query::stop(context, false).await),
        Verb::Show => show_tables(context, words, ShowFormat::Plain).await,
        Verb::ShowDetail => show_tables(context, words, ShowFormat::Detail).await,
        Verb::ShowJson => show_tables(context, words, ShowFormat::Json).await,
    }
}

async fn show_tables(
    context: &RouterContext,
    words: &[String],
    format: ShowFormat,
) -> Result<String, String> {
    let kind = ShowKind::parse(words.first().map(String::as_str));
    let mut snapshot = RouteSnapshot {
        joins: query::join_rules(context),
        ..RouteSnapshot::default()
    };
    let queries = [
        ShowQuery::Routes,
        ShowQuery::Interfaces,
        ShowQuery::Flows(FlowQuery {
            dropped: true,
            ..FlowQuery::default()
        }),
        ShowQuery::Groups,
    ];
    for query in queries {
        match query::show(context, query)
            .await
            .map_err(|e| e.to_string())?
        {
            ShowReply::Routes(routes) => snapshot.routes = routes,
            ShowReply::Interfaces(interfaces) => snapshot.interfaces = interfaces,
            ShowReply::Flows(flows) => snapshot.flows = flows,
            ShowReply::Groups(groups) => snapshot.groups = groups,
            ShowReply::Pending(_)
            | ShowReply::Mnat(_)
            | ShowReply::Tunnels(_)
            | ShowReply::Discovery(_)
            | ShowReply::Drops(_)
            | ShowReply::Streams(_)
            | ShowReply::Explain(_)
            | ShowReply::Trace(_)
            | ShowReply::Upgraded(_)
            | ShowReply::Done(_) => {}
        }
    }
    Ok(show::show(&snapshot, kind, format))
}

fn malformed(letter: u8) -> String {
    SmcrouteWireError::Unknown(letter).to_string()
}

/// Parses source and group from the arguments after the interface. Returns the remaining arguments
/// too. `command` begins error texts.
fn addresses<'a>(
    command: &str,
    words: &'a [String],
) -> Result<(SourcePrefix, GroupPrefix, &'a [String]), String> {
    let not_a_group = |word: &str| format!("{command}: Invalid multicast group: {word}");
    let mut notes = Vec::new();
    let Some((first, rest)) = words.split_first() else {
        return Err(not_a_group(""));
    };
    if let Ok(group) = line::parse_group(first, &mut notes) {
        return Ok((SourcePrefix::any_for(group), group, rest));
    }
    let address = first.split('/').next().unwrap_or_default();
    let (Some((named, left)), Ok(_)) = (rest.split_first(), address.parse::<IpAddr>()) else {
        return Err(not_a_group(first));
    };
    let group = line::parse_group(named, &mut notes).map_err(|_| not_a_group(named))?;
    let source =
        line::parse_source(first, group, &mut notes).map_err(|e| format!("{command}: {e}"))?;
    Ok((source, group, left))
}

/// The interfaces that a name or pattern matches.
#[derive(PartialEq, Eq)]
enum Matched {
    /// None.
    Nothing,
    /// Only disabled ones.
    Disabled,
    /// At least one that rules may use.
    Usable,
}

fn matched(RoutingTables { rib, links, .. }: &RoutingTables, name: &IfPattern) -> Matched {
    let mut matched = Matched::Nothing;
    for link in links.iter().filter(|link| name.matches(&link.name)) {
        if !rib.options(link).is_some_and(|o| o.disabled) {
            return Matched::Usable;
        }
        matched = Matched::Disabled;
    }
    matched
}

async fn routing_tables(context: &RouterContext) -> Result<RoutingTables, String> {
    let tables = query::routing_tables(context).await;
    tables.map_err(|e| e.to_string())
}

fn not_known(iif: &str) -> String {
    format!("ipc: mroute: inbound {iif} is not a known phyint")
}

async fn add(context: &RouterContext, words: &[String]) -> Result<String, String> {
    let [iif, rest @ ..] = words else {
        return Err(malformed(b'a'));
    };
    if rest.is_empty() {
        return Err(malformed(b'a'));
    }
    let from = pattern(iif).map_err(|e| format!("mroute: {e}"))?;
    let (source, group, oifs) = addresses("mroute", rest)?;
    if iif == line::LOOPBACK {
        return Err(not_known(iif));
    }
    if matched(&routing_tables(context).await?, &from) != Matched::Usable {
        return Err(not_known(iif));
    }
    let mut to = Vec::new();
    for oif in oifs {
        if oif == line::LOOPBACK {
            warn!("mroute: {oif} is not routed; it is skipped");
            continue;
        }
        let oif = pattern(oif).map_err(|e| format!("mroute: {e}"))?;
        to.push(oif.to_string());
    }
    if group.is_link_local() {
        warn!("mroute: {group} is link-local; the route is listed, but forwards nothing");
    }
    let change = RuleChange::Add(RouteSpec {
        rewrite: None,
        from: from.to_string(),
        source: (!source.is_any()).then(|| source.to_string()),
        group: group.to_string(),
        to,
        join: Some(false),
        stop: true,
    });
    let done = query::change(context, change).await;
    done.map(|_| String::new())
        .map_err(|e| format!("mroute: {e}"))
}

async fn remove(context: &RouterContext, words: &[String]) -> Result<String, String> {
    let [iif, rest @ ..] = words else {
        return Err(malformed(b'r'));
    };
    let from = pattern(iif).map_err(|e| format!("mroute: {e}"))?;
    let (source, group, oifs) = addresses("mroute", rest)?;
    // A route of the file can be removed while it waits for an interface.
    let tables = routing_tables(context).await?;
    if matched(&tables, &from) == Matched::Disabled {
        return Err(not_known(iif));
    }
    let Some(route) = tables.rib.rules.find(&from, source, group) else {
        return Err(format!(
            "mroute: no route from {iif} for ({source}, {group})"
        ));
    };
    let mut to = Vec::new();
    for oif in oifs {
        // Names that the route does not send to are skipped.
        if let Ok(oif) = pattern(oif)
            && route.to.contains(&oif)
            && !to.contains(&oif.to_string())
        {
            to.push(oif.to_string());
        }
    }
    if to.is_empty() && !oifs.is_empty() {
        return Ok(String::new());
    }
    let change = RuleChange::Remove(RouteSpec {
        rewrite: None,
        from: from.to_string(),
        source: Some(source.net().to_string()),
        group: group.to_string(),
        to,
        join: None,
        stop: false,
    });
    let done = query::change(context, change).await;
    done.map(|_| String::new())
        .map_err(|e| format!("mroute: {e}"))
}

async fn membership(
    context: &RouterContext,
    words: &[String],
    join: bool,
) -> Result<String, String> {
    let (letter, command) = if join {
        (b'j', "join")
    } else {
        (b'l', "leave")
    };
    let [iif, rest @ ..] = words else {
        return Err(malformed(letter));
    };
    if rest.is_empty() {
        return Err(malformed(letter));
    }
    let interface = pattern(iif).map_err(|e| format!("{command}: {e}"))?;
    let (source, group, _) = addresses(command, rest)?;
    let mut notes = Vec::new();
    let group = line::joined_groups(group, &mut notes);
    if join {
        notes.iter().for_each(|note| warn!("{note}"));
    }
    if join && matched(&routing_tables(context).await?, &interface) == Matched::Nothing {
        return Err(format!("unknown interface {iif}"));
    }
    let mut sources: Vec<Option<Source>> = line::members(source, group)?
        .into_iter()
        .map(Some)
        .collect();
    if sources.is_empty() {
        sources.push(None);
    }
    for source in sources {
        let rules = query::join_rules(context);
        let held = rules
            .iter()
            .any(|j| (&j.interface, j.source, j.group) == (&interface, source, group));
        let from = source.map_or("*".to_string(), |s| s.to_string());
        if held == join {
            return Err(match join {
                true => format!("Already joined ({from},{group}) on {iif}"),
                false => format!("No group ({from},{group}) on {iif} to leave"),
            });
        }
        let spec = JoinSpec {
            interface: interface.to_string(),
            source: source.map(|s| s.to_string()),
            group: group.to_string(),
        };
        let change = if join {
            RuleChange::Join(spec)
        } else {
            RuleChange::Leave(spec)
        };
        let done = query::change(context, change).await;
        done.map_err(|e| format!("{command}: {e}"))?;
    }
    Ok(String::new())
}
