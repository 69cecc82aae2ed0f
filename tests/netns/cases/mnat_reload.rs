//! Reloads of a changed `[mnat]` table: streams whose mapping did not change continue.

use std::fs;

use super::cases;
use super::mnat::{G, MnatTopology, mapped, wait_mapped, wait_rewritten};
use crate::lab::mnat::ServerState;
use crate::lab::{Capture, Lab, NumberedStream, Router, eventually, missing, received_in_order};

cases!("mnat_reload":
    reload_of_each_setting_keeps_streams,
    reload_adds_removes_and_changes_role,
);

#[track_caller]
fn reload(router: &Router, toml: &str) {
    router.write_settings(toml);
    let printed = router.run("reload");
    assert!(
        printed.starts_with("reloaded") && !printed.contains("restart"),
        "{printed}"
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

fn reload_of_each_setting_keeps_streams(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    let egress = topology.egress(lab, &reads);
    let ingress = topology.ingress(lab, &writes);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.1"]);
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    let wire = Capture::new(&topology.rcv, "eth1");
    let sender = NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    eventually("the first packet", true, || !wire.to(G).is_empty());
    let requests = |router: &Router, op| {
        let labels = [("op", op), ("code", "200")];
        router.metric("mcastor_mnat_requests_total", &labels)
    };

    // A reload without a change: the client keeps its registration.
    let settings = topology.settings("egress", "net0", "out", &reads);
    let before = requests(&egress, "new_watcher");
    reload(&egress, &settings);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    sender.wait_for_more(50);
    assert_eq!(requests(&egress, "new_watcher"), before);

    // A server that is not reachable yet: the mappings are held.
    let elsewhere = settings.replace(":8443", ":8444");
    reload(&egress, &elsewhere);
    eventually(
        "the other server is used",
        "10.9.0.2:8444".to_string(),
        || server(&egress),
    );
    eventually("held", vec!["held".to_string()], || state(&egress));
    sender.wait_for_more(100);
    assert_eq!(state(&egress), ["held"]);
    let _other = topology.serve_at("10.9.0.2:8444", None, &server_state);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    sender.wait_for_more(50);

    // Another joinfile and another grace period.
    let more = lab.file("more.sgs");
    fs::write(&more, "10.0.0.10,232.1.1.1\n10.0.0.10,232.1.1.2\n").unwrap();
    let file = |name: &std::path::Path| format!("joinfile = \"{}\"", name.display());
    let both = elsewhere.replace(&file(&reads), &file(&more)) + "grace = \"1m\"\n";
    reload(&egress, &both);
    wait_mapped(&egress, &[(G, "239.1.1.1"), ("232.1.1.2", "239.1.1.2")]);
    sender.wait_for_more(50);
    // The ingress changes its server too.
    let settings = topology.settings("ingress", "in", "mid", &writes);
    reload(&ingress, &settings.replace(":8443", ":8444"));
    wait_mapped(&ingress, &[(G, "239.1.1.1"), ("232.1.1.2", "239.1.1.2")]);
    sender.wait_for_more(50);
    let sent = sender.finish();
    let last_arrived = |n: u32| received_in_order(&wire, G).last() == Some(&n);
    eventually("the last packet", true, || last_arrived(sent - 1));
    assert_eq!(missing(sent, &received_in_order(&wire, G)), [0; 0]);
}

fn reload_adds_removes_and_changes_role(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let reads = lab.file("egress.sgs");
    fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    topology.egr.ip("link add out2 type veth peer name far");
    topology.egr.ip_batch("link set far up\nlink set out2 up\n");
    let egress = Router::start(lab, &topology.egr, "");
    assert!(egress.control().show("mnat").is_empty());
    let settings = topology.settings("egress", "net0", "out", &reads);
    reload(&egress, &settings);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    // Another downstream interface, whose hosts are queried from now on.
    let to = || {
        let routes = egress.control().show("routes");
        let ours = routes.iter().find(|r| r["origin"] == "mnat");
        ours.map_or(String::new(), |r| r["to"].to_string())
    };
    assert_eq!(to(), "[\"out\"]");
    reload(
        &egress,
        &topology.settings("egress", "net0", "out2", &reads),
    );
    eventually("the other interface", "[\"out2\"]".to_string(), to);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    // The joins end with the role of an egress; the server still lists them for an ingress.
    reload(
        &egress,
        &topology.settings("ingress", "net0", "out", &lab.file("written")),
    );
    wait_rewritten(&egress, &["232.1.1.1 -> 239.1.1.1"]);
    assert_eq!(egress.control().show("mnat")[0]["role"], "ingress");
    egress.expect_metric("mcastor_mnat_mappings", &[("role", "egress")], 0);
    // Without the `[mnat]` table, no route or mapping is left.
    reload(&egress, "");
    wait_rewritten(&egress, &[]);
    assert!(egress.control().show("mnat").is_empty());
    egress.expect_metric("mcastor_mnat_mappings", &[], 0);
    egress.expect_metric("mcastor_mnat_server_up", &[], 0);
}
