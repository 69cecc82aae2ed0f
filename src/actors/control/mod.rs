//! Actors of the control plane: interfaces, rules, memberships. They share the main thread.

pub mod joins;
pub mod links;
mod message_labels;
mod message_sender;
pub mod querier;
pub mod routing;
