//! Checks the raw settings, section by section.

use std::collections::HashSet;

use super::amt::check_amt;
use super::checker::Checker;
use super::discovery::check_discovery;
use super::interfaces::check_interfaces;
use super::joins::check_joins;
use super::key_path::KeyPath;
use super::locate::Sources;
use super::mnat::check_mnat;
use super::monitor::check_monitor;
use super::proxies::check_proxies;
use super::raw::{RawSettings, RawTable};
use super::report::Problem;
use super::route_translation::refuse_proxy_cycles;
use super::routes::check_routes;
use super::tables::{
    check_control, check_docker, check_http, check_limits, check_log, check_mrdisc, check_plane,
    check_state,
};
use super::validated::Settings;

/// Checks all sections. The result is valid only where no problem was added to `problems`.
///
/// `refused` holds the paths of values that were removed from `raw` and reported already.
pub(super) fn validate(
    raw: RawSettings,
    refused: HashSet<KeyPath>,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Settings {
    let mut checker = Checker::new(sources, refused, problems);
    let settings = Settings {
        http: check_http(&mut checker, table(raw.http)),
        control: check_control(&mut checker, table(raw.control)),
        state: check_state(&mut checker, table(raw.state)),
        docker: check_docker(&mut checker, table(raw.docker)),
        plane: check_plane(&mut checker, table(raw.plane)),
        log: check_log(&mut checker, table(raw.log)),
        interfaces: check_interfaces(&mut checker, tables(raw.interface)),
        routes: check_routes(&mut checker, tables(raw.route)),
        joins: check_joins(&mut checker, tables(raw.join)),
        proxies: check_proxies(&mut checker, tables(raw.proxy)),
        discovery: check_discovery(&mut checker, tables(raw.discovery)),
        mrdisc: check_mrdisc(&mut checker, table(raw.mrdisc)),
        mnat: raw.mnat.and_then(|raw| check_mnat(&mut checker, raw.0)),
        amt: check_amt(&mut checker, table(raw.amt)),
        monitor: check_monitor(&mut checker, table(raw.monitor)),
        limits: check_limits(&mut checker, table(raw.limits)),
        skipped: Vec::new(),
        doubtful: Vec::new(),
        unreadable: None,
    };
    // Cycles over proxies can only be found in settings that are otherwise good.
    if checker.has_no_problems() {
        refuse_proxy_cycles(&mut checker, &settings.routes, &settings.proxies);
    }
    settings
}

fn table<T: Default>(raw: Option<RawTable<T>>) -> T {
    raw.map(|table| table.0).unwrap_or_default()
}

/// Returns the entries of an array of tables; nothing in place of a refused entry.
fn tables<T>(raw: Option<Vec<Option<RawTable<T>>>>) -> impl Iterator<Item = Option<T>> {
    let entries = raw.unwrap_or_default().into_iter();
    entries.map(|entry| entry.map(|table| table.0))
}
