//! The settings of AMT at the start and during operation. Tunnels that a change does not affect
//! continue.

use std::sync::Arc;

use actix::prelude::*;

use crate::actors::messages::{ConfigureTunnels, RestartChild};
use crate::actors::shared::{AmtSettings, RouterContext};
use crate::actors::supervisor::Supervisor;
use crate::amt::config::AmtConfig;
use crate::model::TunnelInterface;

/// The `actor` label of the AMT actor.
pub const ACTOR_NAME: &str = "amt";

/// The largest packet that arrives through a tunnel to a relay: any.
const GATEWAY_MTU: u32 = 65_535;

/// Returns the interfaces that the settings define.
pub fn tunnel_interfaces(config: &AmtConfig) -> Vec<TunnelInterface> {
    let gateways = config.gateways.iter().map(|gateway| TunnelInterface {
        name: gateway.name.clone(),
        mtu: GATEWAY_MTU,
        receives_only: true,
        bandwidth: gateway.bandwidth,
    });
    let relays = config.relays.iter().map(|relay| TunnelInterface {
        name: relay.name.clone(),
        mtu: relay.mtu,
        receives_only: false,
        bandwidth: relay.bandwidth,
    });
    gateways.chain(relays).collect()
}

/// Puts settings in force before routing has them, so that the data path finds its ports.
pub fn prepare(context: &RouterContext, settings: AmtSettings) {
    let tunnels = &context.tunnels;
    for gateway in &settings.config.gateways {
        tunnels.id(&gateway.name).map(|id| tunnels.gateway(id));
    }
    for relay in &settings.config.relays {
        tunnels.id(&relay.name).map(|id| tunnels.relay(id));
    }
    context.amt.store(Arc::new(settings));
}

/// Lets the AMT actor apply the settings in force: configures it, starts it, or stops it.
pub fn reconfigure(context: &RouterContext, supervisor: &Addr<Supervisor>) {
    let actor = context.directory.receiver::<ConfigureTunnels>();
    match actor.filter(Recipient::connected) {
        Some(actor) => actor.do_send(ConfigureTunnels),
        None => supervisor.do_send(RestartChild(ACTOR_NAME)),
    }
}
