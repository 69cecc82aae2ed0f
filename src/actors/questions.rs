//! Asks the actors what a client wants to know, and tells them what it wants changed.

use std::time::Duration;

use actix::{Handler, Message};
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::context::{ProcessRequest, RouterContext};
use super::interface::{AskFlows, Flush};
use super::joins::AskGroups;
use super::membership::{AskMembers, AskQueriers, Membership};
use super::mnat::AskMnat;
use super::routing::{Answer, ApplyChange, Ask, Barrier};
use super::translations;
use crate::api::{RuleChange, ShowQuery, ShowReply};
use crate::model::{IfIndex, JoinRule};

/// How long an actor may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long interfaces may take to open before a change is said to be done without them.
const OPENING: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// An actor is being rebuilt, or too busy.
    #[error("{0} does not answer; try again in a moment")]
    NoAnswer(&'static str),
    /// The change is not allowed.
    #[error("{0}")]
    Refused(String),
}

/// What there is to show.
pub async fn show(context: &RouterContext, what: ShowQuery) -> Result<ShowReply, AskError> {
    Ok(match what {
        ShowQuery::Routes => {
            in_force(context).await?;
            routing(context, Ask::Routes).await?
        }
        ShowQuery::Interfaces => {
            in_force(context).await?;
            let mut shown = routing(context, Ask::Interfaces).await?;
            if let ShowReply::Interfaces(interfaces) = &mut shown {
                let queriers = membership(context, AskQueriers).await?;
                for interface in interfaces {
                    let index = IfIndex::new(interface.index);
                    let known = index.and_then(|index| queriers.get(&index));
                    interface.queriers = known.cloned().unwrap_or_default();
                }
            }
            shown
        }
        ShowQuery::Pending => routing(context, Ask::Pending).await?,
        ShowQuery::Groups => {
            let joins = context
                .joins
                .load_full()
                .ok_or(AskError::NoAnswer("joins"))?;
            let groups = joins.send(AskGroups).timeout(PATIENCE).await;
            let mut groups = groups.map_err(|_| AskError::NoAnswer("joins"))?;
            groups.extend(membership(context, AskMembers).await?);
            in_force(context).await?;
            translations::show(&mut groups, &context.rib.load().rules);
            ShowReply::Groups(groups)
        }
        ShowQuery::Mnat => match context.mnat.load_full() {
            Some(mnat) => {
                let view = mnat.address.send(AskMnat).timeout(PATIENCE).await;
                let view = view.map_err(|_| AskError::NoAnswer("mnat"))?;
                in_force(context).await?;
                ShowReply::Mnat(vec![view])
            }
            None => ShowReply::Mnat(Vec::new()),
        },
        ShowQuery::Flows => {
            let snapshot = context.snapshot.load_full();
            let asked = snapshot
                .interfaces
                .iter()
                .map(|i| i.send(AskFlows).timeout(PATIENCE));
            // An interface that is gone by now has no flows.
            let answers = join_all(asked).await.into_iter().flatten();
            ShowReply::Flows(answers.flatten().collect())
        }
    })
}

async fn membership<M>(context: &RouterContext, ask: M) -> Result<M::Result, AskError>
where
    M: Message + Send + 'static,
    M::Result: Send,
    Membership: Handler<M>,
{
    let none = || AskError::NoAnswer("membership");
    let membership = context.membership.load_full().ok_or_else(none)?;
    let answer = membership.send(ask).timeout(PATIENCE).await;
    answer.map_err(|_| none())
}

/// Waits until what routing was told so far is in force: who is told of a route or a member sends,
/// and must not lose the first packet.
async fn in_force(context: &RouterContext) -> Result<(), AskError> {
    let none = || AskError::NoAnswer("routing");
    let routing = context.routing.load_full().ok_or_else(none)?;
    let answer = routing.send(Barrier).timeout(PATIENCE).await;
    answer.map_err(|_| none())
}

/// Waits until interfaces that a change needs are captured. One that cannot be opened is tried
/// again and again, and has its line in the log: nobody waits for it.
async fn captured(context: &RouterContext) {
    let ready = async {
        while !context.health.is_ready() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = timeout(OPENING, ready).await;
}

async fn routing(context: &RouterContext, ask: Ask) -> Result<ShowReply, AskError> {
    let none = || AskError::NoAnswer("routing");
    let routing = context.routing.load_full().ok_or_else(none)?;
    let answer = routing.send(ask).timeout(PATIENCE).await;
    Ok(match answer.map_err(|_| none())? {
        Answer::Routes(routes) => ShowReply::Routes(routes),
        Answer::Interfaces(interfaces) => ShowReply::Interfaces(interfaces),
        Answer::Pending(pending) => ShowReply::Pending(pending),
    })
}

/// The joins as they were asked for, patterns and prefixes whole.
pub fn join_rules(context: &RouterContext) -> Vec<JoinRule> {
    context.rib.load().joins.clone()
}

/// Changes the rules; says what was done.
pub async fn change(context: &RouterContext, change: RuleChange) -> Result<String, AskError> {
    let none = || AskError::NoAnswer("routing");
    let routing = context.routing.load_full().ok_or_else(none)?;
    let done = routing.send(ApplyChange(change)).timeout(PATIENCE).await;
    let done = done
        .map_err(|_| none())?
        .map_err(|e| AskError::Refused(e.to_string()))?;
    in_force(context).await?;
    captured(context).await;
    Ok(done)
}

/// Ends all flows; says how many there were.
pub async fn flush(context: &RouterContext) -> Result<String, AskError> {
    let snapshot = context.snapshot.load_full();
    let asked = snapshot
        .interfaces
        .iter()
        .map(|i| i.send(Flush).timeout(PATIENCE));
    let flushed: u64 = join_all(asked).await.into_iter().flatten().sum();
    Ok(format!("flows flushed: {flushed}"))
}

/// Has the settings read again; says what came of it.
pub async fn reload(context: &RouterContext) -> Result<String, AskError> {
    let none = AskError::NoAnswer("the process");
    let (answer, answered) = oneshot::channel();
    if context
        .requests
        .send(ProcessRequest::Reload(answer))
        .await
        .is_err()
    {
        return Err(none);
    }
    match timeout(PATIENCE, answered).await {
        Ok(Ok(outcome)) => outcome.map_err(AskError::Refused),
        _ => Err(none),
    }
}

/// Has an actor panic, where the process allows it.
pub async fn panic(context: &RouterContext, actor: String) -> Result<String, AskError> {
    let none = || AskError::NoAnswer("the process");
    let (answer, answered) = oneshot::channel();
    let request = ProcessRequest::Panic(actor, answer);
    context.requests.send(request).await.map_err(|_| none())?;
    match timeout(PATIENCE, answered).await {
        Ok(Ok(outcome)) => outcome.map_err(AskError::Refused),
        _ => Err(none()),
    }
}

/// Ends the process.
pub async fn stop(context: &RouterContext) -> Result<String, AskError> {
    let sent = context.requests.send(ProcessRequest::Stop).await;
    sent.map(|()| "stopping".into())
        .map_err(|_| AskError::NoAnswer("the process"))
}
