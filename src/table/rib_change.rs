//! A change of one rule, as a command requests it.

use super::rib::Rib;
use super::rib_error::RibError;
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

impl RibChange {
    /// Returns whether the change removes egresses or a route, so that other routes may fit.
    pub fn removes_egresses(&self) -> bool {
        matches!(self, Self::RemoveRoute(_))
    }

    /// Applies the change. Returns a sentence that says what changed.
    ///
    /// # Errors
    /// The rules do not permit the change; they are unchanged then.
    pub fn apply(self, rib: &mut Rib) -> Result<String, RibError> {
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
                let name = rib.add(*rule)?;
                match to.is_empty() {
                    true => format!("added {name}, which drops the packets that it matches"),
                    false => format!("added {name} to {to}"),
                }
            }
            Self::RemoveRoute(rule) => {
                rib.check_translation_matches(&rule)?;
                let name = rib.remove(&rule.from, rule.source, rule.group, &rule.to)?;
                match rule.to.is_empty() {
                    true => format!("removed {name}"),
                    false => format!("removed {} from {name}", names(&rule)),
                }
            }
            Self::Join(join) => {
                let text = join.to_string();
                rib.join(join)?;
                format!("joined {text}")
            }
            Self::Leave(join) => {
                rib.leave(&join)?;
                format!("left {join}")
            }
        })
    }
}
