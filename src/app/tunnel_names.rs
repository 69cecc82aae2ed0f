//! The names of tunnel interfaces, which no link of the kernel may have.

use std::io;

use crate::model::IfName;
use crate::settings::Settings;
use crate::sys::ifaddr;

/// Why the name of a tunnel interface is refused.
#[derive(Debug, thiserror::Error)]
pub enum TunnelNameError {
    /// A link of the kernel has the name.
    #[error(
        "amt: the kernel has an interface {0} already; give the [[amt.gateway]] or [[amt.relay]] another name"
    )]
    Taken(IfName),
    /// The links of the kernel are not known.
    #[error("amt: cannot list the interfaces of the kernel: {0}")]
    Links(#[from] io::Error),
}

/// Refuses names of tunnel interfaces that links of the kernel have.
///
/// A link that gets such a name later is ignored by routing.
pub(super) fn refuse_taken(settings: &Settings) -> Result<(), TunnelNameError> {
    let mut names = settings.amt.interface_names().peekable();
    if names.peek().is_none() {
        return Ok(());
    }
    let links = ifaddr::interfaces()?;
    match names.find(|name| links.iter().any(|link| link.name == **name)) {
        Some(taken) => Err(TunnelNameError::Taken(taken.clone())),
        None => Ok(()),
    }
}
