//! Discovery between a LAN and containers behind a masquerading bridge, as a container engine makes
//! it, and programs on both sides.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use socket2::{InterfaceIndexOrAddress, SockRef};

use super::eventually;
use super::link::{LinkEnd, connect};
use super::ns::{Lab, Ns};
use super::program::Program;
use super::router::Router;
use super::switch::connect_to_bridge;

/// A LAN with devices, and a host with containers.
///
/// ```text
///     device 10.0.0.10 -- eth0 \
///                               lan bridge -- eth0 rtr 10.0.0.1, br0 172.20.0.1 -- c0 172.20.0.2
///     other  10.0.0.11 -- eth0 /                                                \- c1 172.20.0.3
/// ```
///
/// The host translates the source of what the containers send (masquerade), and forwards nothing else
/// (`FORWARD` policy DROP). No route leads from the LAN to the containers.
pub struct Site {
    /// A device, 10.0.0.10 and fd00::10.
    pub device: Ns,
    /// Another device, 10.0.0.11 and fd00::11.
    pub other: Ns,
    /// The host of the containers.
    pub rtr: Ns,
    /// 172.20.0.2 and fd20::2, and so on.
    pub containers: Vec<Ns>,
}

/// A firewall as that of a container engine.
const FIREWALL: &str = "set -e
iptables -t nat -A POSTROUTING -s 172.20.0.0/16 -o eth0 -j MASQUERADE
iptables -P FORWARD DROP
iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables -A FORWARD -i br0 -j ACCEPT
";

/// A firewall of the host itself that admits nothing.
const INPUT_FIREWALL: &str = "set -e
for program in iptables ip6tables; do
  $program -P INPUT DROP
  $program -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
  $program -A INPUT -i lo -j ACCEPT
done
ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
";

/// Lets a host admit nothing but answers to what it sent.
pub fn drop_input(ns: &Ns) {
    let firewall = ns.output("sh", &["-c", INPUT_FIREWALL]);
    assert!(firewall.status.success(), "{firewall:?}");
}

/// Creates a site with this number of containers.
pub fn site(lab: &Lab, containers: usize) -> Site {
    let [device, other, lan, rtr] = ["device", "other", "lan", "rtr"].map(|role| lab.ns(role));
    lan.ip_batch("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n");
    connect_to_bridge(&lan, 0, &device, &["10.0.0.10/24", "fd00::10/64"]);
    connect_to_bridge(&lan, 1, &other, &["10.0.0.11/24", "fd00::11/64"]);
    connect_to_bridge(&lan, 2, &rtr, &["10.0.0.1/24", "fd00::1/64"]);
    rtr.ip_batch(
        "link add br0 type bridge\naddress add 172.20.0.1/16 dev br0\n\
         address add fd20::1/64 dev br0 nodad\nlink set br0 up\n",
    );
    rtr.sysctl("net/ipv4/ip_forward", "1");
    let firewall = rtr.output("sh", &["-c", FIREWALL]);
    assert!(firewall.status.success(), "{firewall:?}");
    drop_input(&rtr);
    let containers = (0..containers).map(|n| {
        let container = lab.ns(&format!("c{n}"));
        let port = format!("c{n}");
        let (v4, v6) = (
            format!("172.20.0.{}/16", 2 + n),
            format!("fd20::{}/64", 2 + n),
        );
        connect(
            LinkEnd::new(&rtr, port.as_str(), &[]),
            LinkEnd::new(&container, "eth0", &[&v4, &v6]),
        );
        rtr.ip(&format!("link set {port} master br0"));
        container.ip("route add default via 172.20.0.1");
        container
    });
    let containers = containers.collect();
    Site {
        device,
        other,
        rtr,
        containers,
    }
}

/// Returns a `[[discovery]]` between the LAN and the containers.
pub fn discovery(protocols: &str, extra: &str) -> String {
    format!("[[discovery]]\nbetween = [\"eth0\", \"br0\"]\nprotocols = [{protocols}]\n{extra}\n")
}

/// Starts the router, and waits until it takes part on both links.
pub fn start(lab: &Lab, site: &Site, settings: &str) -> Router {
    start_on(lab, &site.rtr, settings, &["eth0", "br0"])
}

/// Starts a router, and waits until it takes part on these links.
pub fn start_on(lab: &Lab, ns: &Ns, settings: &str, links: &[&str]) -> Router {
    let router = Router::start(lab, ns, settings);
    eventually("all links are open", true, || {
        let log = router.program.stderr() + &router.program.stdout();
        let mut links = links.iter();
        links.all(|link| log.contains(&format!("taking part on {link}")))
    });
    router
}

/// A socket of a device: it has joined a group, and answers what it receives.
pub struct Device {
    /// The socket.
    pub socket: UdpSocket,
}

impl Device {
    /// Joins a group on eth0 of the device.
    pub fn join(ns: &Ns, group: &str) -> Self {
        let group: SocketAddr = group.parse().expect("address:port");
        let index = ns.index("eth0");
        let socket = ns.enter(|| {
            let any: IpAddr = match group {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, group.port())).expect("bind");
            match group.ip() {
                IpAddr::V4(group) => {
                    let interface = InterfaceIndexOrAddress::Index(index);
                    SockRef::from(&socket).join_multicast_v4_n(&group, &interface)
                }
                IpAddr::V6(group) => socket.join_multicast_v6(&group, index),
            }
            .expect("join");
            socket.set_nonblocking(true).expect("nonblocking");
            socket
        });
        Self { socket }
    }

    /// Answers the waiting questions, by `sendto` to the source. Returns these sources.
    pub fn answer(&self, answer: &[u8]) -> Vec<SocketAddr> {
        let mut sources = Vec::new();
        let mut buffer = [0; 65_536];
        while let Ok((_, source)) = self.socket.recv_from(&mut buffer) {
            self.socket.send_to(answer, source).expect("an answer");
            sources.push(source);
        }
        sources
    }
}

/// Returns a socket from which to ask.
pub fn asker(ns: &Ns, address: &str) -> UdpSocket {
    ns.enter(|| {
        let socket = UdpSocket::bind(address).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    })
}

/// Returns the datagrams that arrived, with their sources.
pub fn answers(socket: &UdpSocket) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 65_536];
    let receive = || {
        let (len, source) = socket.recv_from(&mut buffer).ok()?;
        Some((buffer[..len].to_vec(), source))
    };
    std::iter::from_fn(receive).collect()
}

/// A search of SSDP for everything.
pub const SEARCH: &[u8] = b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n";
/// An answer to [`SEARCH`].
pub const FOUND: &[u8] = b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nST: upnp:rootdevice\r\nUSN: uuid:1::upnp:rootdevice\r\nLOCATION: http://10.0.0.10:8200/rootDesc.xml\r\n\r\n";

/// A probe of WS-Discovery.
pub fn probe(id: u32) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><e:Envelope xmlns:e=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:w=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
         xmlns:d=\"http://schemas.xmlsoap.org/ws/2005/04/discovery\" xmlns:wsdp=\"http://schemas.xmlsoap.org/ws/2006/02/devprof\"><e:Header>\
         <w:MessageID>urn:uuid:84ede3de-7dec-11d0-c360-f0123456{id:04x}</w:MessageID>\
         <w:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</w:To>\
         <w:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</w:Action></e:Header>\
         <e:Body><d:Probe><d:Types>wsdp:Device</d:Types></d:Probe></e:Body></e:Envelope>"
    )
}

/// The answer to [`probe`].
pub fn probe_match() -> String {
    probe(0)
        .replace("<d:Probe>", "<d:ProbeMatches><d:ProbeMatch>")
        .replace(
            "</d:Probe>",
            "<d:XAddrs>http://10.0.0.10:5357/x</d:XAddrs></d:ProbeMatch></d:ProbeMatches>",
        )
}

/// Reads a document over HTTP, as a client does that has found its URL. Returns it with its header.
pub fn http_get(ns: &Ns, url: &str) -> String {
    let rest = url
        .strip_prefix("http://")
        .unwrap_or_else(|| panic!("a URL: {url}"));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    ns.enter(|| {
        let mut stream = TcpStream::connect(host).unwrap_or_else(|e| panic!("{host}: {e}"));
        write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n").expect("a request");
        let mut text = Vec::new();
        stream.read_to_end(&mut text).expect("an answer");
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Finds services with python3-zeroconf: prints what it finds, and reads from each service.
const BROWSE: &str = r#"
import socket, sys, time
from zeroconf import Zeroconf, ServiceBrowser
address, kinds = sys.argv[1], sys.argv[2:]
class Listener:
    def add_service(self, zeroconf, kind, name):
        print("found", name, flush=True)
        names.append((kind, name))
    update_service = lambda *_: None
    remove_service = lambda *_: None
names = []
zeroconf = Zeroconf(interfaces=[address])
browsers = [ServiceBrowser(zeroconf, kind, Listener()) for kind in kinds]
while True:
    while names:
        kind, name = names.pop()
        info = zeroconf.get_service_info(kind, name, timeout=5000)
        if info is None:
            names.append((kind, name))
            continue
        where = info.parsed_addresses()[0]
        try:
            text = socket.create_connection((where, info.port), 5).recv(100).decode()
        except OSError as error:
            text = str(error)
        print("read", name, where, info.port, text, flush=True)
    time.sleep(0.05)
"#;

/// Browses for service types from `address`, with [`BROWSE`].
pub fn browse(lab: &Lab, ns: &Ns, address: &str, kinds: &[&str]) -> Program {
    let script = lab.file("browse.py");
    std::fs::write(&script, BROWSE).expect("a script");
    let mut words = vec![Path::to_str(&script).expect("a path"), address];
    words.extend(kinds);
    ns.spawn(lab, "/usr/bin/python3", &words)
}

/// Serves a text to each connection over IPv4 or IPv6, until the test ends.
pub fn serve(ns: &Ns, port: u16, text: &'static str) {
    let listener = ns.enter(|| TcpListener::bind(("::", port)).expect("bind"));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(text.as_bytes());
        }
    });
}

/// Connects, and returns what is read.
pub fn read_from(ns: &Ns, address: &str) -> String {
    let address: SocketAddr = address.parse().expect("an address");
    ns.enter(|| {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10));
        let mut text = String::new();
        let mut stream = stream.unwrap_or_else(|e| panic!("{address}: {e}"));
        stream.read_to_string(&mut text).expect("a text");
        text
    })
}

/// Starts minidlna on `eth0`, with its description at port 8200.
pub fn minidlna(lab: &Lab, ns: &Ns) -> Program {
    let folder = lab.file("minidlna");
    std::fs::create_dir_all(&folder).expect("a folder");
    let folder = folder.display();
    let conf = lab.file("minidlna.conf");
    let text = format!(
        "media_dir={folder}\ndb_dir={folder}\nlog_dir={folder}\nfriendly_name=shelf\nport=8200\n\
         network_interface=eth0\ninotify=no\nnotify_interval=2\n"
    );
    std::fs::write(&conf, text).expect("settings");
    let (conf, pid) = (conf.display().to_string(), format!("{folder}/pid"));
    ns.spawn(lab, "minidlnad", &["-S", "-f", &conf, "-P", &pid])
}
