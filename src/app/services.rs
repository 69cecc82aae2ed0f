//! The settings of AMT and of discovery, which their actors read from the context.

use std::sync::Arc;

use actix::prelude::*;

use crate::actors::RouterContext;
use crate::actors::integrations::{amt, discovery};
use crate::actors::shared::{AmtSettings, DiscoverySettings};
use crate::actors::supervisor::Supervisor;
use crate::settings::Settings;

/// The configuration of the resolver of this host.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The environment variable that names another file. For tests.
const TEST_RESOLV_CONF: &str = "MCASTOR_TEST_RESOLV_CONF";

/// Puts the settings in force at the start. `mark` is that of the packets that this process sends.
pub(super) fn start(context: &RouterContext, settings: &Settings, mark: u32) {
    amt::prepare(context, amt_settings(settings));
    let rules = settings.discovery.clone();
    let discovery = DiscoverySettings { rules, mark };
    context.discovery.store(Arc::new(discovery));
}

/// Returns the settings of AMT, with the name servers of this host.
fn amt_settings(settings: &Settings) -> AmtSettings {
    let config = settings.amt.clone();
    let needs_resolver = config.gateways.iter().any(|g| g.needs_resolver());
    // The actor reports that there are none.
    let resolv_conf = match needs_resolver {
        true => {
            let path = std::env::var_os(TEST_RESOLV_CONF).unwrap_or(RESOLV_CONF.into());
            std::fs::read(path).unwrap_or_default()
        }
        false => Vec::new(),
    };
    AmtSettings {
        config,
        resolv_conf,
    }
}

/// Reloaded settings that are in the context before routing has the rules, so that the data path
/// finds its ports. Has the former settings of what changed.
pub(super) struct ChangedServices {
    amt: Option<Arc<AmtSettings>>,
    discovery: Option<Arc<DiscoverySettings>>,
}

impl ChangedServices {
    /// Puts changed settings into the context.
    pub fn prepare(context: &RouterContext, settings: &Settings) -> Self {
        let former_amt = context.amt.load_full();
        let new_amt = amt_settings(settings);
        let has_amt_changed = *former_amt != new_amt;
        if has_amt_changed {
            amt::prepare(context, new_amt);
        }
        let former_discovery = context.discovery.load_full();
        let has_discovery_changed = former_discovery.rules != settings.discovery;
        if has_discovery_changed {
            let (rules, mark) = (settings.discovery.clone(), former_discovery.mark);
            let discovery = DiscoverySettings { rules, mark };
            context.discovery.store(Arc::new(discovery));
        }
        Self {
            amt: has_amt_changed.then_some(former_amt),
            discovery: has_discovery_changed.then_some(former_discovery),
        }
    }

    /// Puts the former settings back, because routing does not have the rules: the next reload must
    /// find the same changes.
    pub fn undo(self, context: &RouterContext) {
        if let Some(former) = self.amt {
            context.amt.store(former);
        }
        if let Some(former) = self.discovery {
            context.discovery.store(former);
        }
    }

    /// Lets the actors apply what changed.
    pub fn apply(self, context: &RouterContext, supervisor: &Addr<Supervisor>) {
        if self.amt.is_some() {
            amt::reconfigure(context, supervisor);
        }
        if self.discovery.is_some() {
            discovery::reconfigure(context, supervisor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_routing_did_not_take_are_found_by_the_next_reload() {
        let (context, _requests) = RouterContext::for_test();
        let variables = [
            ("MCASTOR__DISCOVERY__0__BETWEEN", "eth0,eth1"),
            ("MCASTOR__DISCOVERY__0__PROTOCOLS", "mdns"),
            ("MCASTOR__AMT__GATEWAY__0__NAME", "internet"),
            ("MCASTOR__AMT__GATEWAY__0__RELAY", "192.0.2.1"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings::load(None, variables.into_iter()).unwrap();
        start(&context, &Settings::default(), 7);
        for _ in 0..2 {
            let changed = ChangedServices::prepare(&context, &settings);
            assert!(changed.amt.is_some() && changed.discovery.is_some());
            assert_eq!(context.discovery.load().rules, settings.discovery);
            assert_eq!(context.discovery.load().mark, 7);
            changed.undo(&context);
        }
        let _ = ChangedServices::prepare(&context, &settings);
        let changed = ChangedServices::prepare(&context, &settings);
        assert!(changed.amt.is_none() && changed.discovery.is_none());
    }
}
