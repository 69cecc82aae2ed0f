//! The test cases, one file for each subject.

use crate::lab::harness::Case;
use crate::lab::{Lab, Router, Star};

mod amt;
mod amt_dns;
mod amt_hostile;
mod amt_linux;
mod amt_paths;
mod amt_relay;
mod attacks;
mod bandwidth;
mod checksums;
mod compose;
mod containers_soak;
mod control;
mod discovery;
mod discovery_docker;
mod discovery_programs;
mod discovery_recipes;
mod discovery_scale;
mod docker;
mod docker_faults;
mod doctor;
mod driad_ingest;
mod drops;
mod ebpf;
mod ebpf_restart;
mod explain;
mod external_programs;
mod flow_limits;
mod gso;
mod harness;
mod host_environment;
mod host_reports;
mod hostile;
mod http;
mod igmpproxy_comparison;
mod interface_changes;
mod joins;
mod kubernetes;
mod link_types;
mod loops;
mod membership_keeper;
mod merge;
mod metrics;
mod mnat;
mod mnat_etcd;
mod mnat_flags;
mod mnat_reload;
mod mnat_server;
mod openapi;
mod operation;
mod packets;
mod page;
mod page_browser;
mod panics;
mod planes_compared;
mod podman;
mod prometheus;
mod proxy;
mod proxy_bridges;
mod proxy_frr;
mod proxy_hosts;
mod proxy_messages;
mod redundancy;
mod reload;
mod restart;
mod restarts;
mod routes;
mod rtp;
mod scale;
mod smcroute_commands;
mod smcroute_files;
mod smcroute_forwarding;
mod smcroute_process;
mod stream_events;
mod stream_health;
mod top;
mod trace;
mod traffic_tools;
mod translate;
mod translated_joins;
mod ttl;
mod tunnel_names;
mod upgrade;

/// Declares the functions of a module as cases named `module::function`.
macro_rules! cases {
    ($module:literal: $($(#[$need:expr])* $name:ident),+ $(,)?) => {
        /// Returns the cases of this file.
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

/// Returns the cases of all files.
pub fn all() -> Vec<Case> {
    [
        amt::cases(),
        amt_dns::cases(),
        amt_hostile::cases(),
        amt_linux::cases(),
        amt_paths::cases(),
        amt_relay::cases(),
        attacks::cases(),
        bandwidth::cases(),
        harness::cases(),
        routes::cases(),
        rtp::cases(),
        smcroute_forwarding::cases(),
        smcroute_commands::cases(),
        smcroute_files::cases(),
        smcroute_process::cases(),
        packets::cases(),
        page::cases(),
        page_browser::cases(),
        gso::cases(),
        checksums::cases(),
        ttl::cases(),
        tunnel_names::cases(),
        upgrade::cases(),
        host_environment::cases(),
        metrics::cases(),
        openapi::cases(),
        operation::cases(),
        doctor::cases(),
        driad_ingest::cases(),
        drops::cases(),
        stream_events::cases(),
        stream_health::cases(),
        ebpf::cases(),
        ebpf_restart::cases(),
        planes_compared::cases(),
        explain::cases(),
        top::cases(),
        trace::cases(),
        external_programs::cases(),
        prometheus::cases(),
        discovery::cases(),
        merge::cases(),
        discovery_docker::cases(),
        discovery_programs::cases(),
        discovery_recipes::cases(),
        discovery_scale::cases(),
        docker::cases(),
        docker_faults::cases(),
        podman::cases(),
        compose::cases(),
        containers_soak::cases(),
        proxy::cases(),
        scale::cases(),
        proxy_bridges::cases(),
        proxy_frr::cases(),
        proxy_hosts::cases(),
        proxy_messages::cases(),
        igmpproxy_comparison::cases(),
        hostile::cases(),
        http::cases(),
        traffic_tools::cases(),
        interface_changes::cases(),
        joins::cases(),
        redundancy::cases(),
        host_reports::cases(),
        reload::cases(),
        restart::cases(),
        restarts::cases(),
        membership_keeper::cases(),
        loops::cases(),
        link_types::cases(),
        kubernetes::cases(),
        flow_limits::cases(),
        control::cases(),
        panics::cases(),
        translate::cases(),
        translated_joins::cases(),
        mnat::cases(),
        mnat_etcd::cases(),
        mnat_flags::cases(),
        mnat_reload::cases(),
        mnat_server::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns a `[[route]]` table of the settings. An empty `source` means any source; `extra` holds
/// further lines.
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

/// Settings for tests of what only the process does: the capture modes, and the latency histogram.
const PACKET_PLANE: &str = "[plane]\nkind = \"packet\"\n";

/// Creates a star with IPv4 and starts its router. Route `r` forwards 225.1.2.3 from `in` to every
/// egress.
fn star_v4(lab: &Lab, egresses: usize) -> (Star, Router) {
    start_with_route(lab, Star::v4(lab, egresses), "225.1.2.3", egresses)
}

/// Creates a star with IPv4 and IPv6 and starts its router. Route `r` forwards ff3e::1:2 from `in`
/// to every egress.
fn star_v6(lab: &Lab, egresses: usize) -> (Star, Router) {
    start_with_route(lab, Star::dual(lab, egresses), "ff3e::1:2", egresses)
}

fn start_with_route(lab: &Lab, star: Star, group: &str, egresses: usize) -> (Star, Router) {
    let egresses: Vec<String> = (1..=egresses).map(|n| format!("out{n}")).collect();
    let egresses: Vec<&str> = egresses.iter().map(String::as_str).collect();
    let settings = route("r", "in", "", group, &egresses, "");
    let router = Router::start(lab, &star.rtr, &settings);
    (star, router)
}
