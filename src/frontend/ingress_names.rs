//! Names of the interfaces that receive packets, as clients give them.

use crate::actors::shared::Snapshot;
use crate::model::InterfaceId;

/// Returns the interface `name`, on which packets are received.
///
/// # Errors
/// No packets are received on it. The text says where they are.
pub(super) fn ingress_named(snapshot: &Snapshot, name: &str) -> Result<InterfaceId, String> {
    let ingresses = snapshot.fib.ingresses.iter();
    let receive = ingresses.filter(|(_, ingress)| !ingress.watch_only);
    let mut names: Vec<(&str, InterfaceId)> = receive
        .filter_map(|(index, _)| Some((snapshot.names.get(index)?.as_str(), *index)))
        .collect();
    names.sort_unstable();
    let found = names.iter().find(|(of, _)| *of == name);
    found.map(|(_, index)| *index).ok_or_else(|| {
        let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        let all = match all.is_empty() {
            true => "none".to_owned(),
            false => all.join(", "),
        };
        format!(
            "no packets are received on {name}: it is not present, or no route or proxy has it in \
             `from`, `upstream` or `downstream`; interfaces that receive: {all}"
        )
    })
}
