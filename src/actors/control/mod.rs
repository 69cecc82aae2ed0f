//! Actors of the control plane: interfaces, rules, memberships. They share the main thread.

pub mod joins;
pub mod links;
pub mod membership;
mod message_labels;
mod message_queue;
mod message_sender;
pub mod routing;
