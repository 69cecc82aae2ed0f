//! avahi-daemon in a namespace, with services or as a reflector.

use std::fs;

use super::ns::{Lab, Ns};
use super::program::Program;

/// Starts avahi-daemon. `interfaces` are those that it uses, `services` the name, type and port of
/// each service that it offers, `host` its host name.
pub fn start(
    lab: &Lab,
    ns: &Ns,
    host: &str,
    interfaces: &[&str],
    services: &[(&str, &str, u16)],
    is_reflector: bool,
) -> Program {
    let folder = lab.file(&format!("avahi-{host}"));
    fs::create_dir_all(folder.join("services")).expect("a folder");
    for (n, (name, kind, port)) in services.iter().enumerate() {
        let text = format!(
            "<?xml version=\"1.0\"?><!DOCTYPE service-group SYSTEM \"avahi-service.dtd\">\
             <service-group><name>{name}</name><service><type>{kind}</type><port>{port}</port>\
             </service></service-group>"
        );
        fs::write(folder.join(format!("services/{n}.service")), text).expect("a service");
    }
    let (flag, enabled) = (
        if is_reflector { "yes" } else { "no" },
        interfaces.join(","),
    );
    let conf = format!(
        "[server]\nhost-name={host}\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces={enabled}\n\
         enable-dbus=no\nratelimit-interval-usec=0\n[publish]\npublish-hinfo=no\n\
         publish-workstation=no\n[reflector]\nenable-reflector={flag}\n"
    );
    fs::write(folder.join("avahi.conf"), conf).expect("settings");
    // The folders of avahi are fixed, so it gets its own ones. It stays in this network namespace.
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && \
         mount --bind {0}/services /etc/avahi/services && \
         exec /usr/sbin/avahi-daemon -f {0}/avahi.conf --no-drop-root --no-chroot --no-rlimits",
        folder.display()
    );
    ns.spawn(lab, "unshare", &["--mount", "sh", "-c", &script])
}
