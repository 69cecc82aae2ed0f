//! A change of `[mnat]` that is reloaded: what did not change goes on.

use std::fs;

use super::cases;
use super::mnat::{G, Way, mapped, wait_mapped, wait_rewritten};
use crate::lab::mnat::Owner;
use crate::lab::{Capture, Lab, Numbered, Router, eventually, in_order, missing};

cases!("mnat_reload":
    streams_go_on_through_a_reload_of_each_setting,
    an_end_comes_and_goes_and_changes_its_role,
);

#[track_caller]
fn reload(router: &Router, toml: &str) {
    router.rewrite(toml);
    let said = router.tell("reload");
    assert!(
        said.starts_with("reloaded") && !said.contains("restart"),
        "{said}"
    );
}

fn server(router: &Router) -> String {
    let ends = router.control().show("mnat");
    ends[0]["server"].as_str().unwrap_or("none").to_owned()
}

fn state(router: &Router) -> Vec<String> {
    mapped(router)
        .into_iter()
        .map(|(.., state)| state)
        .collect()
}

fn streams_go_on_through_a_reload_of_each_setting(lab: &Lab) {
    let way = Way::new(lab);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let owner = Owner::starting_at(0);
    let _server = way.serve(&owner);
    let egress = way.egress(lab, &reads);
    let ingress = way.ingress(lab, &writes);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.1"]);
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    let wire = Capture::new(&way.rcv, "eth1");
    let sender = Numbered::start(&way.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    eventually("the first packet", true, || !wire.to(G).is_empty());
    let registered = |router: &Router, op| {
        let labels = [("op", op), ("code", "200")];
        router.metric("mcastor_mnat_requests_total", &labels)
    };

    // Nothing of it changed: the client goes on as who it was.
    let settings = way.settings("egress", "net0", "out", &reads);
    let before = registered(&egress, "new_watcher");
    reload(&egress, &settings);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    sender.more(50);
    assert_eq!(registered(&egress, "new_watcher"), before);

    // Another server, which is not there yet: what is mapped is held.
    let elsewhere = settings.replace(":8443", ":8444");
    reload(&egress, &elsewhere);
    eventually("it asks the other", "10.9.0.2:8444".to_string(), || {
        server(&egress)
    });
    eventually("held", vec!["held".to_string()], || state(&egress));
    sender.more(100);
    assert_eq!(state(&egress), ["held"]);
    let _other = way.serve_at("10.9.0.2:8444", None, &owner);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    sender.more(50);

    // Another joinfile, another grace.
    let more = lab.file("more.sgs");
    fs::write(&more, "10.0.0.10,232.1.1.1\n10.0.0.10,232.1.1.2\n").unwrap();
    let file = |name: &std::path::Path| format!("joinfile = \"{}\"", name.display());
    let both = elsewhere.replace(&file(&reads), &file(&more)) + "grace = \"1m\"\n";
    reload(&egress, &both);
    wait_mapped(&egress, &[(G, "239.1.1.1"), ("232.1.1.2", "239.1.1.2")]);
    sender.more(50);
    // The ingress too asks elsewhere, by SIGHUP.
    let settings = way.settings("ingress", "in", "mid", &writes);
    reload(&ingress, &settings.replace(":8443", ":8444"));
    wait_mapped(&ingress, &[(G, "239.1.1.1"), ("232.1.1.2", "239.1.1.2")]);
    sender.more(50);
    let sent = sender.finish();
    let there = |n: u32| in_order(&wire, G).last() == Some(&n);
    eventually("the last packet", true, || there(sent - 1));
    assert_eq!(missing(sent, &in_order(&wire, G)), [0; 0]);
}

fn an_end_comes_and_goes_and_changes_its_role(lab: &Lab) {
    let way = Way::new(lab);
    let reads = lab.file("egress.sgs");
    fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let owner = Owner::starting_at(0);
    let _server = way.serve(&owner);
    way.egr.ip("link add out2 type veth peer name far");
    way.egr.ip_batch("link set far up\nlink set out2 up\n");
    let egress = Router::start(lab, &way.egr, "");
    assert!(egress.control().show("mnat").is_empty());
    let settings = way.settings("egress", "net0", "out", &reads);
    reload(&egress, &settings);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    // To another interface, where its hosts are asked then.
    let to = || {
        let routes = egress.control().show("routes");
        let ours = routes.iter().find(|r| r["origin"] == "mnat");
        ours.map_or(String::new(), |r| r["to"].to_string())
    };
    assert_eq!(to(), "[\"out\"]");
    reload(&egress, &way.settings("egress", "net0", "out2", &reads));
    eventually("the other interface", "[\"out2\"]".to_string(), to);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    // Its own joins go with its role; the server goes on naming what it wanted.
    reload(
        &egress,
        &way.settings("ingress", "net0", "out", &lab.file("written")),
    );
    wait_rewritten(&egress, &["232.1.1.1 -> 239.1.1.1"]);
    assert_eq!(egress.control().show("mnat")[0]["role"], "ingress");
    egress.expect_metric("mcastor_mnat_mappings", &[("role", "egress")], 0);
    // Without the table, nothing is left of it.
    reload(&egress, "");
    wait_rewritten(&egress, &[]);
    assert!(egress.control().show("mnat").is_empty());
    egress.expect_metric("mcastor_mnat_mappings", &[], 0);
    egress.expect_metric("mcastor_mnat_server_up", &[], 0);
}
