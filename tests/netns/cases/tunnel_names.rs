//! A tunnel interface and a link of the kernel with the same name.

use serde_json::Value;

use super::cases;
use crate::lab::{Lab, Router, eventually};

cases!("tunnel_names":
    tunnel_with_name_of_kernel_link_is_refused,
    later_kernel_link_with_the_name_is_ignored,
);

const GATEWAY: &str = "[[amt.gateway]]\nname = \"internet\"\nrelay = \"192.0.2.1\"\n\
    [[join]]\ninterface = \"internet\"\nsource = \"203.0.113.1\"\ngroup = \"232.1.1.1\"\n";

const REFUSED: &str = "the kernel has an interface internet already";

fn tunnel_with_name_of_kernel_link_is_refused(lab: &Lab) {
    let ns = lab.ns("rtr");
    ns.ip("link add internet type veth peer name peer");
    let mut refused = Router::launch(lab, &ns, GATEWAY, &[]);
    assert_eq!(refused.program.wait().code(), Some(1));
    let log = refused.program.stderr();
    assert!(log.contains(REFUSED), "{log}");
    let router = Router::start(lab, &ns, "");
    router.write_settings(GATEWAY);
    let reload = router.try_run("reload");
    let printed = String::from_utf8_lossy(&reload.stderr);
    assert!(
        !reload.status.success() && printed.contains(REFUSED),
        "{printed}"
    );
    ns.ip("link del internet");
    router.run("reload");
    assert!(router.run("show interfaces").contains("internet"));
}

/// The tunnel keeps its joins. The link is not used before it is renamed.
fn later_kernel_link_with_the_name_is_ignored(lab: &Lab) {
    let ns = lab.ns("rtr");
    let route =
        "[[route]]\nname = \"r\"\nfrom = \"internet\"\ngroup = \"225.1.2.3\"\nto = [\"later\"]\n";
    let router = Router::start(lab, &ns, &format!("{GATEWAY}{route}"));
    ns.ip("link add internet up type veth peer name peer");
    eventually("a warning", true, || {
        let log = router.program.stderr();
        log.contains("the kernel has an interface with the name of a tunnel")
    });
    let waiting = || -> Vec<String> {
        let routes = router.control().show("routes");
        let names = routes[0]["waiting_for"].as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(String::from).collect()
    };
    assert_eq!(waiting(), ["later"]);
    let groups = router.control().show("groups");
    assert_eq!(groups.len(), 2, "{groups:?}");
    ns.ip("link set internet down");
    ns.ip("link set internet name later");
    ns.ip("link set later up");
    eventually("the renamed link is used", true, || waiting().is_empty());
}
