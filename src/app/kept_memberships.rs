//! The keeper of this host's memberships, for an unexpected end of the process.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{debug, warn};

use super::upgrade::joins_applied;
use crate::actors::RouterContext;
use crate::sys::membership_keeper::MembershipKeeper;
use crate::sys::upgrade_launcher::ends_container;

/// Interval at which this process looks whether its memberships are joined.
const INTERVAL: Duration = Duration::from_millis(20);

/// Longest wait for the capture of all interfaces.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the keeper: the service manager if there is one, which would end a child with the unit,
/// or else a child process. `socket` is the one on which this instance serves commands. `stored` are
/// descriptors that an earlier process left with the service manager.
pub(super) fn start_keeper(
    socket: &Path,
    keep_for: Duration,
    stored: Vec<(String, OwnedFd)>,
) -> MembershipKeeper {
    let keeper = if std::env::var_os("NOTIFY_SOCKET").is_some() {
        MembershipKeeper::in_service_manager(stored)
    } else if ends_container() {
        debug!("memberships are not kept if mcastor is killed: the container ends with it");
        return MembershipKeeper::default();
    } else {
        MembershipKeeper::in_child(socket.into(), keep_for)
    };
    keeper.unwrap_or_else(|e| {
        warn!("memberships are not kept if mcastor is killed: {e}");
        MembershipKeeper::default()
    })
}

/// Ends what an earlier process left, as soon as this one has joined its groups.
pub(super) async fn end_former_when_joined(context: Arc<RouterContext>) {
    let is_captured = || context.health.is_ready() && context.snapshot.load().fib.generation > 0;
    let mut waited = Duration::ZERO;
    while waited < START_TIMEOUT && !(is_captured() && joins_applied(&context).await) {
        sleep(INTERVAL).await;
        waited += INTERVAL;
    }
    context.membership_keeper.end_former();
}
