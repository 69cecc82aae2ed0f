//! avahi-daemon in a namespace, with services, as a reflector, or with clients.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ns::{Lab, Ns};
use super::program::Program;
use super::{TIMEOUT, wait_until};

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
    let settings = Settings {
        host,
        interfaces,
        is_reflector,
        bus: None,
    };
    settings.launch(lab, ns, &folder)
}

/// What is in the settings of avahi-daemon.
struct Settings<'a> {
    host: &'a str,
    interfaces: &'a [&'a str],
    is_reflector: bool,
    /// The address of its message bus.
    bus: Option<&'a str>,
}

impl Settings<'_> {
    /// Starts avahi-daemon with these settings and the services in `folder`.
    fn launch(&self, lab: &Lab, ns: &Ns, folder: &Path) -> Program {
        let word = |is_on| if is_on { "yes" } else { "no" };
        let conf = format!(
            "[server]\nhost-name={}\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces={}\n\
             enable-dbus={}\nratelimit-interval-usec=0\n[publish]\npublish-hinfo=no\n\
             publish-workstation=no\n[reflector]\nenable-reflector={}\n",
            self.host,
            self.interfaces.join(","),
            word(self.bus.is_some()),
            word(self.is_reflector)
        );
        fs::write(folder.join("avahi.conf"), conf).expect("settings");
        // The folders of avahi are fixed, so it gets its own ones. It stays in this network namespace.
        let script = format!(
            "mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && \
             mount --bind {0}/services /etc/avahi/services && \
             exec /usr/sbin/avahi-daemon -f {0}/avahi.conf --no-drop-root --no-chroot --no-rlimits",
            folder.display()
        );
        let mut command = ns.command("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        command.envs(self.bus.map(|address| (BUS, address)));
        Program::start(lab, command)
    }
}

/// The environment variable with the address of the message bus.
const BUS: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// A message bus on which everything is permitted.
const BUS_SETTINGS: &str = "<!DOCTYPE busconfig PUBLIC \
    \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
    \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
    <busconfig><type>system</type><auth>EXTERNAL</auth><policy context=\"default\">\
    <allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\" eavesdrop=\"true\"/>\
    <allow eavesdrop=\"true\"/></policy>";

/// avahi-daemon on `eth0` with a message bus of its own, for programs that are its clients.
pub struct AvahiWithBus {
    ns: Ns,
    address: String,
    _daemon: Program,
    _bus: Program,
}

impl AvahiWithBus {
    /// Starts both, and waits until clients can connect.
    pub fn start(lab: &Lab, ns: &Ns, host: &str) -> Self {
        let folder = lab.file(&format!("avahi-{host}"));
        fs::create_dir_all(folder.join("services")).expect("a folder");
        let socket: PathBuf = folder.join("bus");
        let address = format!("unix:path={}", socket.display());
        let mut settings = BUS_SETTINGS.to_owned();
        write!(settings, "<listen>{address}</listen></busconfig>").expect("text");
        let file = folder.join("bus.conf");
        fs::write(&file, settings).expect("settings");
        let option = format!("--config-file={}", file.display());
        let bus = ns.spawn(lab, "dbus-daemon", &["--nofork", "--nopidfile", &option]);
        assert!(wait_until(TIMEOUT, || socket.exists()), "{}", bus.stderr());
        let settings = Settings {
            host,
            interfaces: &["eth0"],
            is_reflector: false,
            bus: Some(&address),
        };
        let daemon = settings.launch(lab, ns, &folder);
        let avahi = Self {
            ns: ns.clone(),
            address,
            _daemon: daemon,
            _bus: bus,
        };
        let is_ready = || avahi.browse("_ready._tcp").is_some();
        assert!(wait_until(TIMEOUT, is_ready), "avahi-browse fails");
        avahi
    }

    /// Returns a command that is a client of this avahi-daemon.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.ns.command(program);
        command.env(BUS, &self.address);
        command
    }

    /// Returns what `avahi-browse` finds and resolves within a second; `None` if it fails.
    pub fn browse(&self, kind: &str) -> Option<String> {
        let mut command = self.command("avahi-browse");
        command.args([
            "--resolve",
            "--parsable",
            "--terminate",
            "--no-db-lookup",
            kind,
        ]);
        let out = command.output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        out.status.success().then_some(text)
    }
}
