//! Name servers of others: BIND and NSD.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use super::eventually;
use super::ns::{Lab, Ns};
use super::program::Program;

/// A zone: its name, and its records as in a zone file, without the SOA and NS records. Without
/// records, the file of the zone is missing, and the server fails for its names.
pub type Zone<'a> = (&'a str, Option<&'a str>);

/// A name server that serves zones at an address of a namespace. It ends when it is dropped.
pub struct NameServer {
    _program: Program,
}

impl NameServer {
    /// Starts BIND.
    #[track_caller]
    pub fn bind(lab: &Lab, ns: &Ns, address: &str, zones: &[Zone]) -> Self {
        let folder = folder(lab, zones);
        let path = folder.display();
        let mut conf = format!(
            "options {{ directory \"{path}\"; listen-on {{ {address}; }}; listen-on-v6 {{ none; }}; \
             pid-file none; session-keyfile none; lock-file none; recursion no; \
             dnssec-validation no; }};\ncontrols {{ }};\n"
        );
        for (zone, _) in zones {
            conf += &format!("zone \"{zone}\" {{ type primary; file \"{zone}\"; }};\n");
        }
        let file = folder.join("named.conf");
        fs::write(&file, conf).expect("named.conf");
        let file = file.display().to_string();
        // One thread is enough, and starts faster.
        let program = ns.spawn(lab, "/usr/sbin/named", &["-g", "-n", "1", "-c", &file]);
        Self::ready(ns, address, program)
    }

    /// Starts NSD, which knows records of type 260 only as `TYPE260`.
    #[track_caller]
    pub fn nsd(lab: &Lab, ns: &Ns, address: &str, zones: &[Zone]) -> Self {
        let folder = folder(lab, zones);
        let path = folder.display();
        let mut conf = format!(
            "server:\n  ip-address: {address}\n  username: \"\"\n  zonesdir: \"{path}\"\n  \
             database: \"\"\n  pidfile: \"{path}/pid\"\n  xfrdfile: \"{path}/xfrd\"\n  \
             xfrdir: \"{path}\"\n  zonelistfile: \"{path}/list\"\n  server-count: 1\n\
             remote-control:\n  control-enable: no\n"
        );
        for (zone, _) in zones {
            conf += &format!("zone:\n  name: \"{zone}\"\n  zonefile: \"{zone}\"\n");
        }
        let file = folder.join("nsd.conf");
        fs::write(&file, conf).expect("nsd.conf");
        let file = file.display().to_string();
        let program = ns.spawn(lab, "/usr/sbin/nsd", &["-d", "-c", &file]);
        Self::ready(ns, address, program)
    }

    /// Waits until the server answers.
    #[track_caller]
    fn ready(ns: &Ns, address: &str, program: Program) -> Self {
        let socket = ns.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        let timeout = Some(Duration::from_millis(100));
        socket.set_read_timeout(timeout).expect("a timeout");
        let server = SocketAddr::new(address.parse().expect("an address"), 53);
        // The NS records of the root.
        let query = [0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        eventually("an answer of the name server", true, || {
            let sent = ns.enter(|| socket.send_to(&query, server)).is_ok();
            sent && socket.recv(&mut [0; 512]).is_ok()
        });
        Self { _program: program }
    }
}

/// Writes the files of the zones into a new folder.
fn folder(lab: &Lab, zones: &[Zone]) -> PathBuf {
    let folder = lab.file("zones");
    fs::create_dir(&folder).expect("a folder");
    for (zone, records) in zones {
        let Some(records) = records else { continue };
        let text = format!(
            "$ORIGIN {zone}.\n$TTL 60\n@ SOA ns.example. admin.example. 1 60 60 60 60\n\
             @ NS ns.example.\n{records}\n"
        );
        fs::write(folder.join(zone), text).expect("a zone file");
    }
    folder
}
