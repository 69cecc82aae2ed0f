//! The tests, by subject.

use crate::lab::harness::Case;

mod checksums;
mod compose;
mod containers_soak;
mod control;
mod docker;
mod docker_faults;
mod goes;
mod gso;
mod harness;
mod hostile;
mod joins;
mod kubernetes;
mod limits;
mod loops;
mod metrics;
mod mnat;
mod mnat_flags;
mod mnat_reload;
mod neighbours;
mod operation;
mod packets;
mod panics;
mod programs;
mod prometheus;
mod proxy;
mod proxy_bridges;
mod proxy_compared;
mod proxy_frr;
mod proxy_hosts;
mod proxy_messages;
mod reload;
mod routes;
mod scale;
mod smcroute;
mod smcroute_commands;
mod smcroute_files;
mod smcroute_process;
mod streams;
mod translate;
mod translated_joins;
mod ttl;

/// Lists the functions of a module as cases called `module::function`.
macro_rules! cases {
    ($module:literal: $($(#[$need:expr])* $name:ident),+ $(,)?) => {
        /// The cases of this file.
        pub fn cases() -> Vec<$crate::lab::harness::Case> {
            #[allow(unused_imports)]
            use $crate::lab::harness::{Case, Need::*};
            vec![$(Case {
                name: concat!($module, "::", stringify!($name)),
                needs: &[$($need),*],
                run: $name,
            }),+]
        }
    };
}
use cases;

/// All of them.
pub fn all() -> Vec<Case> {
    [
        harness::cases(),
        routes::cases(),
        smcroute::cases(),
        smcroute_commands::cases(),
        smcroute_files::cases(),
        smcroute_process::cases(),
        packets::cases(),
        gso::cases(),
        checksums::cases(),
        ttl::cases(),
        neighbours::cases(),
        metrics::cases(),
        operation::cases(),
        programs::cases(),
        prometheus::cases(),
        docker::cases(),
        docker_faults::cases(),
        compose::cases(),
        containers_soak::cases(),
        proxy::cases(),
        scale::cases(),
        proxy_bridges::cases(),
        proxy_frr::cases(),
        proxy_hosts::cases(),
        proxy_messages::cases(),
        proxy_compared::cases(),
        hostile::cases(),
        streams::cases(),
        goes::cases(),
        joins::cases(),
        reload::cases(),
        loops::cases(),
        kubernetes::cases(),
        limits::cases(),
        control::cases(),
        panics::cases(),
        translate::cases(),
        translated_joins::cases(),
        mnat::cases(),
        mnat_flags::cases(),
        mnat_reload::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A `[[route]]` of the settings. An empty `source` is any; `extra` holds more lines.
fn route(name: &str, from: &str, source: &str, group: &str, to: &[&str], extra: &str) -> String {
    let source = if source.is_empty() {
        String::new()
    } else {
        format!("source = \"{source}\"\n")
    };
    format!(
        "[[route]]\nname = \"{name}\"\nfrom = \"{from}\"\n{source}group = \"{group}\"\nto = {to:?}\n{extra}"
    )
}
