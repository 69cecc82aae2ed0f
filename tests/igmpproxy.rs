//! `igmpproxy.conf`: whatever is converted is valid as settings.

use mcastor::igmpproxy::conf::{is_igmpproxy_format, parse};
use mcastor::igmpproxy::convert::convert;
use mcastor::settings::Settings;
use proptest::prelude::*;

/// A word of the format, or a hostile one.
fn word() -> impl Strategy<Value = String> {
    let words = [
        "quickleave",
        "defaultdown",
        "rescanvif",
        "phyint",
        "phyint",
        "phyint",
        "upstream",
        "downstream",
        "downstream",
        "disabled",
        "ratelimit",
        "threshold",
        "altnet",
        "whitelist",
        "blacklist",
        "eth0",
        "eth1",
        "eth1",
        "eth0:1",
        "lo",
        "br*",
        "10.1.2.3/8",
        "0.0.0.0/0",
        "239.1.2.3/24",
        "224.0.0.0/4",
        "225.1.2.3",
        "300",
        "7",
        "0",
        "# comment",
        "user",
    ];
    prop_oneof![
        20 => proptest::sample::select(words.to_vec()).prop_map(String::from),
        1 => "\\PC{0,8}",
    ]
}

/// A file with valid entries of up to 100 interfaces, which are repeated at times.
fn entries() -> impl Strategy<Value = String> {
    let role = proptest::sample::select(vec!["upstream", "downstream", "downstream", "disabled"]);
    let option = proptest::sample::select(vec![
        "",
        "ratelimit 5",
        "threshold 9",
        "altnet 10.1.2.3/8",
        "altnet 0.0.0.0/0",
        "whitelist 239.1.2.3/24",
        "whitelist 225.0.0.0/8",
        "whitelist 10.0.0.0/8",
        "blacklist 239.255.255.250",
    ]);
    let entry = (0..100u32, role, prop::collection::vec(option, 0..3));
    let entry = entry
        .prop_map(|(n, role, options)| format!("phyint eth{n} {role} {}\n", options.join(" ")));
    let global = proptest::sample::select(vec!["", "quickleave\n", "defaultdown\n"]);
    (global, prop::collection::vec(entry, 0..200))
        .prop_map(|(global, entries)| format!("{global}{}", entries.concat()))
}

/// Converts a file and loads the result. Returns whether the file was valid.
fn check(text: &str) -> bool {
    let _ = is_igmpproxy_format(text);
    let Ok(conf) = parse(text) else {
        return false;
    };
    let subnets = |_: &str| vec!["192.0.2.0/24".parse().unwrap()];
    let Ok(conversion) = convert(&conf, subnets) else {
        return false;
    };
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), &conversion.toml).unwrap();
    if let Err(report) = Settings::load(Some(file.path()), std::iter::empty()) {
        panic!("{text}\n{}\n{report}", conversion.toml);
    }
    true
}

#[test]
fn debian_example_is_valid() {
    let text = "quickleave\nphyint eth0 upstream  ratelimit 0  threshold 1\n        altnet 10.0.0.0/8 \n\
                altnet 192.168.0.0/24\nphyint eth1 downstream  ratelimit 0  threshold 1\n\
                phyint eth2 disabled\n";
    assert!(is_igmpproxy_format(text) && check(text));
}

proptest! {
    #[test]
    fn random_words_never_panic(words in prop::collection::vec(word(), 0..60)) {
        check(&words.join("\n"));
    }

    #[test]
    fn converted_entries_are_valid_settings(text in entries()) {
        check(&text);
    }
}
