//! What `recv` says below its totals.

use std::net::IpAddr;

use crate::model::IfName;

/// Returns the groups without packets, after a line break; empty if there are none.
pub(super) fn silent_text(interface: &IfName, silent: &[IpAddr]) -> String {
    let Some(first) = silent.first() else {
        return String::new();
    };
    let shown: Vec<String> = silent.iter().take(10).map(IpAddr::to_string).collect();
    let mut text = format!("\nno packets in {}", shown.join(", "));
    if silent.len() > shown.len() {
        text += &format!(" and {} more", silent.len() - shown.len());
    }
    text + &format!(
        "; beside recv, `mcastor doctor --interface {interface} --group {first}` may find the cause"
    )
}

/// Returns a line for each count that is not zero.
pub(super) fn remarks_text(remarks: &[(u64, &str)]) -> String {
    let counted = remarks.iter().filter(|(count, _)| *count > 0);
    counted
        .map(|(count, what)| format!("\n{count} {what}"))
        .collect()
}
