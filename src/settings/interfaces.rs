//! Checks of `[[interface]]`.

use std::collections::HashMap;

use super::checker::{Checker, default_boolean};
use super::key_path::KeyPath;
use super::raw::RawInterface;
use super::validated::InterfaceSettings;
use crate::model::{IfPattern, KernelForwarding, TtlThreshold};

/// Checks all interfaces. Returns those that could be built; problems go to `checker`.
pub(super) fn check_interfaces(
    checker: &mut Checker<'_>,
    raw: impl Iterator<Item = Option<RawInterface>>,
) -> Vec<InterfaceSettings> {
    let mut first_path: HashMap<IfPattern, KeyPath> = HashMap::new();
    let mut interfaces = Vec::new();
    for (n, raw) in raw.enumerate() {
        let Some(raw) = raw else { continue };
        let path = KeyPath::root("interface").index(n);
        let name_path = path.key("name");
        let ttl_threshold = raw.ttl_threshold.and_then(|number| {
            let zero_help = "For no threshold, omit the key.";
            let ttl = checker.ttl(&path.key("ttl_threshold"), number, zero_help)?;
            TtlThreshold::new(ttl)
        });
        let Some(name) = checker.required(raw.name, &path, "name") else {
            continue;
        };
        let Some(name) = checker.pattern(&name_path, &name) else {
            continue;
        };
        if let Some(first) = first_path.get(&name) {
            let location = checker.sources.value(first).short();
            let texts = (
                format!("a second [[interface]] for \"{name}\""),
                "one for each name",
                format!("The first is in {location}. Move all options there."),
            );
            checker.refuse_related(&name_path, texts, (first, "the first"));
        }
        first_path.entry(name.clone()).or_insert(name_path);
        let versions = raw.version.map(|table| table.0).unwrap_or_default();
        let mut version = |key: &str, number| {
            let help = "Omit the key to use the version of the querier.";
            let version = checker.integer(&path.key("version").key(key), number, help);
            version.map(|version| version as u8)
        };
        let igmp_version = version("igmp", versions.igmp);
        let mld_version = version("mld", versions.mld);
        let refresh = checker.duration(&path.key("refresh"), raw.refresh);
        let bandwidth = checker.bandwidth(&path.key("bandwidth"), raw.bandwidth);
        let planes = [
            ("auto", KernelForwarding::Auto),
            ("packet", KernelForwarding::Never),
            ("peer", KernelForwarding::ToPeer),
        ];
        let kernel_forwarding = checker.word(&path.key("plane"), raw.plane, &planes);
        let flag = |value: Option<bool>, name| value.unwrap_or(default_boolean(&path.key(name)));
        interfaces.push(InterfaceSettings {
            name,
            ttl_threshold,
            enabled: flag(raw.enabled, "enabled"),
            mrdisc: flag(raw.mrdisc, "mrdisc"),
            capture: flag(raw.capture, "capture"),
            kernel_forwarding,
            igmp_version,
            mld_version,
            refresh,
            bandwidth,
        });
    }
    interfaces
}
