//! The gap between two processes: how long there was none, and what the interfaces received in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::info;

use crate::actors::RouterContext;
use crate::model::{BootTime, IfName};
use crate::sys::boot_clock;
use crate::sys::link_properties::received_packets;

/// Interval at which this process looks whether its interfaces are captured, and how often it does.
const READY_INTERVAL: Duration = Duration::from_millis(10);
const MAX_LOOKS: usize = 1000;

/// What the former process left.
pub(super) struct Gap {
    /// When it was last alive.
    pub(super) began: BootTime,
    /// What its ingress interfaces had received then, in packets.
    pub(super) received: Arc<BTreeMap<IfName, u64>>,
}

/// Returns the packets of any kind that each ingress interface has received since it exists.
pub(super) fn received_by_ingresses(context: &RouterContext) -> BTreeMap<IfName, u64> {
    let snapshot = context.snapshot.load_full();
    let interfaces = snapshot.interfaces.iter().filter_map(|interface| {
        let name = snapshot.names.get(&interface.index)?;
        let received = received_packets(interface.index.ifindex()?).ok()?;
        Some((name.clone(), received))
    });
    interfaces.collect()
}

/// Logs the gap as soon as all interfaces are captured.
pub(super) async fn report(context: Arc<RouterContext>, gap: Gap) {
    let mut looks = 0;
    while !context.health.is_ready() && looks < MAX_LOOKS {
        looks += 1;
        sleep(READY_INTERVAL).await;
    }
    let Ok(clock) = boot_clock::read() else {
        return;
    };
    let seconds = clock.boot.since(gap.began).as_secs_f64();
    for (name, now) in received_by_ingresses(&context) {
        // An interface that was made anew counts from zero.
        let Some(received) = (gap.received.get(&name)).and_then(|before| now.checked_sub(*before))
        else {
            continue;
        };
        info!(
            interface = %name,
            packets = received,
            "{name}: captured again after at most {seconds:.2} s, in which it received {received} \
             packets of any kind. What the kernel did not forward of them is lost"
        );
    }
}
