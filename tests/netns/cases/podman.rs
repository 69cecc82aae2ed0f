//! Containers of Podman, with its own socket.

use super::cases;
use super::docker::{Site, assert_reachable, hints, proxy, to_names, waiting};
use crate::lab::{Docker, Lab, UdpRx, UdpTx, eventually};

cases!("podman":
    #[Podman] names_resolve_as_podman_containers_change,
    #[Podman] podman_network_is_served_by_a_proxy,
);

/// Names follow start, stop, restart, rename and recreation, as with Docker. A bridge of Podman
/// exists from the start of the first container.
fn names_resolve_as_podman_containers_change(lab: &Lab) {
    let site = Site::with_engine(lab, Docker::start_podman);
    site.network("bridged", 30);
    let podman = &site.docker;
    let all = ["container:app", "label:role=cam", "network:other"];
    let router = site.router(lab, &to_names(&all));
    let expect_pending = |expected: &[&str]| {
        let expected: Vec<String> = expected.iter().map(|n| n.to_string()).collect();
        eventually("pending names", expected, || waiting(&router));
    };
    expect_pending(&all);
    eventually("Podman is followed", true, || {
        router.program.stderr().contains("following Podman")
    });
    podman.run_idle("app", "--network bridged");
    expect_pending(&["label:role=cam", "network:other"]);
    assert_reachable(&site, &podman.namespace_of(lab, "app"), "eth0");
    podman.run("stop --time 0 app");
    expect_pending(&all);
    podman.run("start app");
    expect_pending(&["label:role=cam", "network:other"]);
    assert_reachable(&site, &podman.namespace_of(lab, "app"), "eth0");
    // A restart creates another veth interface.
    podman.run("restart --time 0 app");
    assert_reachable(&site, &podman.namespace_of(lab, "app"), "eth0");
    podman.run("rm --force app");
    expect_pending(&all);
    podman.run_idle("app", "--network bridged");
    assert_reachable(&site, &podman.namespace_of(lab, "app"), "eth0");
    podman.run("rename app apple");
    expect_pending(&all);
    podman.run("rename apple app");
    expect_pending(&["label:role=cam", "network:other"]);
    podman.run_idle("cam", "--network bridged --label role=cam");
    expect_pending(&["network:other"]);
    assert_reachable(&site, &podman.namespace_of(lab, "cam"), "eth0");
    // The bridge of the network appears with its first container.
    site.network("other", 31);
    podman.run_idle("guest", "--network other");
    expect_pending(&[]);
    assert_reachable(&site, &podman.namespace_of(lab, "guest"), "eth0");
    podman.run("network disconnect bridged app");
    expect_pending(&["container:app"]);
    podman.run("network connect bridged app");
    expect_pending(&[]);
    // The network is created again.
    podman.run("rm --force guest");
    podman.run("network rm other");
    expect_pending(&["network:other"]);
    site.network("other", 31);
    podman.run_idle("guest", "--network other");
    expect_pending(&[]);
    assert_reachable(&site, &podman.namespace_of(lab, "guest"), "eth0");
    assert_eq!(hints(&router), Vec::<String>::new());
    router.stop();
}

/// A container joins, and receives each packet of a sender on the LAN once.
fn podman_network_is_served_by_a_proxy(lab: &Lab) {
    let site = Site::with_engine(lab, Docker::start_podman);
    // The bridge of an internal network of CNI has no address, and mcastor sends no queries there.
    site.docker
        .run("network create --ipv6 --subnet 172.30.0.0/24 --subnet fd30::/64 bridged");
    site.docker.run_idle("app", "--network bridged");
    let app = site.docker.namespace_of(lab, "app");
    let router = site.router(lab, &proxy("network:bridged"));
    for to in ["225.1.2.3:5000", "[ff0e::8000:123]:5000"] {
        let group = to.rsplit_once(':').expect("a port").0;
        let group = group.trim_matches(['[', ']']);
        let rx = UdpRx::join(&app, "eth0", to);
        eventually("a member", true, || {
            let groups = router.control().show("groups");
            let is_member = |g: &serde_json::Value| g["role"] == "router" && g["group"] == group;
            groups.iter().any(is_member)
        });
        let tx = UdpTx::new(&site.lan, "eth0", to);
        tx.ttl(1);
        (0..100).for_each(|n: u32| tx.send(n.to_be_bytes()));
        rx.expect(100);
    }
    router.expect_routed("p", &site.docker.bridge("bridged"), 200);
    router.stop();
}
