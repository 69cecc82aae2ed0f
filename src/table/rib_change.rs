//! A change of one rule, as a command requests it.

use super::rib::Rib;
use super::rib_error::RibError;
use super::route_rules::RouteChange;
use crate::model::{JoinRule, RouteRule};

/// A change of one rule.
#[derive(Debug, Clone)]
pub enum RibChange {
    /// Adds a route, or egresses to the route with the same ingress, source and group.
    AddRoute {
        /// The route.
        rule: Box<RouteRule>,
        /// Whether the route may forward nothing, because it has no egresses or its groups are
        /// link-local. Such a route drops the packets it matches.
        allow_no_effect: bool,
    },
    /// Removes the egresses of the rule from the route with the same ingress, source and group;
    /// without egresses, removes the route.
    RemoveRoute(Box<RouteRule>),
    /// Joins a group as a host.
    Join(JoinRule),
    /// Leaves a group.
    Leave(JoinRule),
}

/// A rule that a change affected.
#[derive(Debug, Clone)]
pub enum ChangedRule {
    /// A route, before and after the change.
    Route(RouteChange),
    /// A join that was added.
    Joined(JoinRule),
    /// A join that was removed.
    Left(JoinRule),
}

impl RibChange {
    /// Returns whether the change removes egresses or a route, so that other routes may fit.
    pub fn removes_egresses(&self) -> bool {
        matches!(self, Self::RemoveRoute(_))
    }

    /// Applies the change. Returns the changed rule, and a sentence that says what changed.
    ///
    /// # Errors
    /// The rules do not permit the change; they are unchanged then.
    pub fn apply(self, rib: &mut Rib) -> Result<(ChangedRule, String), RibError> {
        let names = |rule: &RouteRule| {
            let to = rule.to.iter().map(ToString::to_string);
            to.collect::<Vec<_>>().join(" ")
        };
        Ok(match self {
            Self::AddRoute {
                rule,
                allow_no_effect,
            } => {
                if rule.to.is_empty() && !allow_no_effect {
                    return Err(RibError::NoEgress);
                }
                if rule.group.is_link_local() && !rule.link_local && !allow_no_effect {
                    return Err(RibError::LinkLocal(rule.group));
                }
                let to = names(&rule);
                let change = rib.add(*rule)?;
                let name = change.name();
                let text = match to.is_empty() {
                    true => format!("added {name}, which drops the packets that it matches"),
                    false => format!("added {name} to {to}"),
                };
                (ChangedRule::Route(change), text)
            }
            Self::RemoveRoute(rule) => {
                rib.check_translation_matches(&rule)?;
                let change = rib.remove(&rule.from, rule.source, rule.group, &rule.to)?;
                let name = change.name();
                let text = match rule.to.is_empty() {
                    true => format!("removed {name}"),
                    false => format!("removed {} from {name}", names(&rule)),
                };
                (ChangedRule::Route(change), text)
            }
            Self::Join(join) => {
                rib.join(join.clone())?;
                let text = format!("joined {join}");
                (ChangedRule::Joined(join), text)
            }
            Self::Leave(join) => {
                rib.leave(&join)?;
                let text = format!("left {join}");
                (ChangedRule::Left(join), text)
            }
        })
    }
}
