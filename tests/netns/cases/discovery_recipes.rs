//! The recipes of docs/discovery.md, with the very settings of the document: what is found is
//! connected to.

use std::net::UdpSocket;
use std::time::Duration;

use super::cases;
use crate::lab::avahi::AvahiWithBus;
use crate::lab::discovery_site::{
    Device, answers, asker, browse, discovery, read_from, serve, site, start, start_on,
};
use crate::lab::harness::pypi_program;
use crate::lab::recipe_site::{Bridge, RecipeSite, add_addresses, connect_port, python, recipe};
use crate::lab::tun::TunPair;
use crate::lab::{
    Capture, Lab, LinkEnd, Ns, Program, TIMEOUT, avahi, connect, eventually, wait_until,
};

cases!("discovery_recipes":
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")] #[Program("avahi-browse", "avahi-utils")]
    #[Program("dbus-daemon", "dbus-daemon")]
    players_in_a_vlan_are_found_and_connected_to,
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")] #[Program("avahi-browse", "avahi-utils")]
    #[Program("dbus-daemon", "dbus-daemon")] #[Program("ippeveprinter", "cups-ipp-utils")]
    guest_finds_printer_and_prints,
    #[Iptables] #[PyPi("wsdiscover")] camera_is_found_and_read_by_recorder,
    #[Iptables] #[PyPi("aiohomekitctl")] home_assistant_controls_devices,
    #[Iptables] #[PyPi("atvremote")] cast_and_airplay_devices_in_a_vlan_are_used,
    #[Iptables] #[Program("knxd", "knxd")] knx_gateway_is_found_and_connected_to,
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    matter_device_is_found_and_read_over_ipv6,
    #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    services_of_a_second_site_are_found_and_read,
    #[Iptables] tuner_is_found_and_read,
    #[Iptables] #[Program("ddsperf", "cyclonedds-tools")] dds_works_over_a_routed_bridge,
    #[Iptables] #[Program("ddsperf", "cyclonedds-tools")] dds_fails_behind_a_masquerading_bridge,
);

/// Two networks, with a device in one and an asker in the other.
///
/// ```text
///     device 10.1.0.10 eth0 ---- <near> rtr <far> ---- eth0 10.2.0.10 asker
/// ```
///
/// The router forwards what the asker sends to the device, and the replies.
struct Networks {
    device: Ns,
    rtr: Ns,
    asker: Ns,
}

impl Networks {
    /// `near` and `far` are the interfaces of the router. One named `vlan` and a number is a VLAN,
    /// where the kernel has VLANs.
    fn new(lab: &Lab, near: &str, far: &str) -> Self {
        let [device, rtr, asker] = ["device", "rtr", "asker"].map(|role| lab.ns(role));
        for (n, host, port) in [(1, &device, near), (2, &asker, far)] {
            connect_port(&rtr, port, &[&format!("10.{n}.0.1/24")], host);
            add_addresses(host, "eth0", &[&format!("10.{n}.0.10/24")]);
            host.ip(&format!("route add default via 10.{n}.0.1"));
        }
        rtr.sysctl("net/ipv4/ip_forward", "1");
        let rules = format!(
            "set -e\niptables -P FORWARD DROP\n\
             iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             iptables -A FORWARD -i {far} -o {near} -j ACCEPT\n"
        );
        let firewall = rtr.output("sh", &["-c", &rules]);
        assert!(firewall.status.success(), "{firewall:?}");
        Self { device, rtr, asker }
    }
}

/// Browses with avahi-browse until an instance is resolved over IPv4. Returns its address and port.
fn resolve(avahi: &AvahiWithBus, kind: &str) -> String {
    let mut found = None;
    let is_found = wait_until(TIMEOUT, || {
        let lines = avahi.browse(kind).unwrap_or_default();
        // =;interface;protocol;instance;type;domain;host;address;port;texts
        let fields = lines
            .lines()
            .map(|line| line.split(';').collect::<Vec<_>>());
        found = fields
            .into_iter()
            .find_map(|fields| match fields.as_slice() {
                ["=", _, "IPv4", _, _, _, _, address, port, ..] => {
                    Some(format!("{address}:{port}"))
                }
                _ => None,
            });
        found.is_some()
    });
    assert!(is_found, "avahi-browse finds no {kind}");
    found.expect("an address")
}

const SEARCH: &str = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\n\
    MX: 1\r\nST: urn:dial-multiscreen-org:service:dial:1\r\n\r\n";

/// Searches for a player of DIAL by SSDP, which answers from this address of the device.
fn find_dial_player(device: &Ns, address: &str, searcher: &Ns) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nST: urn:dial-multiscreen-org:service:dial:1\r\nUSN: uuid:1\r\n\
         LOCATION: http://{address}:8008/ssdp/device-desc.xml\r\n\r\n"
    );
    let device = Device::join(device, "239.255.255.250:1900");
    let socket = asker(searcher, "0.0.0.0:0");
    socket
        .send_to(SEARCH.as_bytes(), "239.255.255.250:1900")
        .expect("a question");
    let mut received = Vec::new();
    eventually("the answer to the search", true, || {
        device.answer(answer.as_bytes());
        received.extend(answers(&socket));
        !received.is_empty()
    });
    let expected = (answer.into_bytes(), format!("{address}:1900").parse());
    assert_eq!((received[0].0.clone(), Ok(received[0].1)), expected);
}

/// A player of Chromecast, AirPlay and DIAL in a VLAN of its own: avahi-browse on the other side
/// finds it, and connects. Its SSH server is not on the wire there.
fn players_in_a_vlan_are_found_and_connected_to(lab: &Lab) {
    let networks = Networks::new(lab, "vlan20", "eth0");
    let settings = recipe("Chromecast and AirPlay in a VLAN");
    let _router = start_on(lab, &networks.rtr, &settings, &["vlan20", "eth0"]);
    serve(&networks.device, 8009, "cast");
    serve(&networks.device, 7000, "play");
    let seen = Capture::new(&networks.asker, "eth0");
    let services = [
        ("Living Room", "_googlecast._tcp", 8009),
        ("Living Room", "_airplay._tcp", 7000),
        ("vault", "_ssh._tcp", 22),
    ];
    let _player = avahi::start(lab, &networks.device, "tv", &["eth0"], &services, false);
    let avahi = AvahiWithBus::start(lab, &networks.asker, "phone");
    for (kind, text) in [("_googlecast._tcp", "cast"), ("_airplay._tcp", "play")] {
        assert_eq!(read_from(&networks.asker, &resolve(&avahi, kind)), text);
    }
    find_dial_player(&networks.device, "10.1.0.10", &networks.asker);
    let _ = avahi.browse("_ssh._tcp");
    let frames = seen.frames();
    let incoming = frames.iter().filter(|frame| !frame.outgoing);
    let secret = incoming.filter(|frame| frame.bytes.windows(5).any(|word| word == b"vault"));
    assert_eq!(secret.count(), 0, "of {} frames", frames.len());
}

/// A print job, as a test file of ipptool.
const PRINT_JOB: &str = "{\nOPERATION Print-Job\nGROUP operation-attributes-tag\n\
    ATTR charset attributes-charset utf-8\nATTR language attributes-natural-language en\n\
    ATTR uri printer-uri $uri\nATTR name requesting-user-name guest\nATTR name job-name page\n\
    ATTR mimeMediaType document-format text/plain\nFILE $filename\nSTATUS successful-ok\n}\n";

fn guest_finds_printer_and_prints(lab: &Lab) {
    let networks = Networks::new(lab, "lan", "guest");
    let settings = recipe("Printers for a guest network");
    let _router = start_on(lab, &networks.rtr, &settings, &["lan", "guest"]);
    print_page(lab, (&networks.device, "10.1.0.10"), &networks.asker);
}

/// ippeveprinter at this address of the LAN announces itself; ippfind of a guest finds it, and ipptool
/// prints. The document arrives.
pub(super) fn print_page(lab: &Lab, (device, address): (&Ns, &str), laptop: &Ns) {
    let spool = lab.file("spool");
    std::fs::create_dir(&spool).expect("a folder");
    let printer = AvahiWithBus::start(lab, device, "shelf");
    let mut command = printer.command("ippeveprinter");
    command.args(["-k", "-p", "8631", "-f", "text/plain"]);
    command.arg("-d").arg(&spool).arg("Floor 2");
    let program = Program::start(lab, command);
    let guest = AvahiWithBus::start(lab, laptop, "laptop");
    let mut found = String::new();
    let is_found = wait_until(TIMEOUT, || {
        let mut command = guest.command("ippfind");
        command.args(["-T", "2", "_ipp._tcp", "--print"]);
        let out = command.output().expect("ippfind");
        found = String::from_utf8_lossy(&out.stdout).into_owned();
        found.contains("ipp://")
    });
    assert!(is_found, "{found}{}", program.stderr());
    assert!(
        found.contains("ipp://shelf.local:8631/ipp/print"),
        "{found}"
    );
    // ippfind prints a name, which programs resolve with nss-mdns. Here, avahi resolves it.
    let found = resolve(&guest, "_ipp._tcp");
    assert_eq!(found, format!("{address}:8631"));
    let (page, job) = (lab.file("page.txt"), lab.file("print.test"));
    std::fs::write(&page, "a page of text\n").expect("a document");
    std::fs::write(&job, PRINT_JOB).expect("a job");
    let mut command = laptop.command("ipptool");
    command
        .arg("-tf")
        .arg(&page)
        .arg(format!("ipp://{found}/ipp/print"));
    let printed = command.arg(&job).output().expect("ipptool");
    assert!(printed.status.success(), "{printed:?}");
    let is_spooled = || {
        let files = std::fs::read_dir(&spool).expect("the spool");
        let mut files = files.filter_map(|file| std::fs::read(file.ok()?.path()).ok());
        files.any(|bytes| bytes == b"a page of text\n")
    };
    eventually("the document arrives", true, is_spooled);
}

fn camera_is_found_and_read_by_recorder(lab: &Lab) {
    find_camera(lab, &RecipeSite::plain(lab, Bridge::Masqueraded));
}

/// A camera on the LAN and a recorder in a container, with the library WSDiscovery on both sides.
pub(super) fn find_camera(lab: &Lab, site: &RecipeSite) {
    // The library answers questions over IPv6 with an IPv4 socket, and ends.
    for ns in [&site.device, &site.container] {
        ns.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    }
    let _router = site.start(lab, "ONVIF cameras for a recorder in a container");
    serve(&site.device, 80, "a picture");
    let url = "http://10.0.0.10/onvif/device_service";
    let camera = python(lab, &site.device, "onvif_camera", &[url]);
    let recorder = python(lab, &site.container, "onvif_recorder", &[]);
    expect_printed(&recorder, &camera, &format!("found {url}"));
    assert_eq!(read_from(&site.container, "10.0.0.10:80"), "a picture");
}

/// Waits until a client has printed a text.
#[track_caller]
fn expect_printed(client: &Program, device: &Program, text: &str) {
    let is_printed = wait_until(TIMEOUT, || client.stdout().contains(text));
    let all = [client, device].map(|program| program.stdout() + &program.stderr());
    assert!(is_printed, "{text:?} is not in the output: {all:?}");
}

fn home_assistant_controls_devices(lab: &Lab) {
    control_devices(lab, &RecipeSite::plain(lab, Bridge::Masqueraded));
}

/// The libraries of Home Assistant in a container find devices of HomeKit and ESPHome on the LAN, and
/// switch them on: aiohomekit pairs with an accessory of HAP-python, and aioesphomeapi connects to
/// the name of a device.
pub(super) fn control_devices(lab: &Lab, site: &RecipeSite) {
    let _router = site.start(lab, "Home Assistant in a bridge network");
    let pairings = lab.file("accessory.state").display().to_string();
    let device = |script, arguments: &[&str]| {
        let arguments = [&["10.0.0.10"][..], arguments].concat();
        python(lab, &site.device, script, &arguments)
    };
    let lamp = device("homekit_accessory", &[&pairings]);
    let switch = device("esphome_device", &[]);
    let [controller, client] = ["homekit_controller", "esphome_client"]
        .map(|script| python(lab, &site.container, script, &["172.20.0.2"]));
    expect_printed(&controller, &lamp, "found Lamp 000007 10.0.0.10");
    expect_printed(&lamp, &controller, "the lamp is on");
    expect_printed(&client, &switch, "connected to lamp");
    expect_printed(&switch, &client, "switch 7 is on");
}

fn cast_and_airplay_devices_in_a_vlan_are_used(lab: &Lab) {
    let networks = Networks::new(lab, "vlan20", "eth0");
    let settings = recipe("Chromecast and AirPlay in a VLAN");
    let _router = start_on(lab, &networks.rtr, &settings, &["vlan20", "eth0"]);
    let (device, user) = (&networks.device, &networks.asker);
    use_players(lab, (device, "10.1.0.10"), (user, "10.2.0.10"));
}

/// pychromecast and atvremote of pyatv find devices and use them: one changes the volume, and the
/// other one plays a video. A player of DIAL is found too.
pub(super) fn use_players(lab: &Lab, (device, address): (&Ns, &str), (user, own): (&Ns, &str)) {
    find_dial_player(device, address, user);
    let start = |script| python(lab, device, script, &[address]);
    let (cast, airplay) = (start("cast_device"), start("airplay_device"));
    let client = python(lab, user, "cast_client", &[own]);
    expect_printed(&client, &cast, "volume 0.75");
    expect_printed(&cast, &client, "volume 0.25");
    let remote = pypi_program("atvremote");
    let remote = remote.to_str().expect("a path");
    let url = format!("http://{own}/video.mp4");
    let play = format!("play_url={url}");
    let words = ["--storage", "none", "-t", "3", "-n", "Living Room", &play];
    let mut printed = String::new();
    // The scan ends after three seconds. On a busy machine that may be too early.
    let is_played = wait_until(TIMEOUT, || {
        let mut remote = user.spawn(lab, remote, &words);
        remote.wait();
        printed = remote.stdout() + &remote.stderr();
        airplay.stdout().contains(&format!("plays {url}"))
    });
    assert!(is_played, "{printed}{}", airplay.stderr());
}

/// Returns a header of KNXnet/IP and what follows it, with the length of both.
fn knx(service: u16, body: &[u8]) -> Vec<u8> {
    let len = 6 + body.len() as u16;
    let header = [6, 0x10];
    [
        &header[..],
        &service.to_be_bytes(),
        &len.to_be_bytes(),
        body,
    ]
    .concat()
}

fn knx_gateway_is_found_and_connected_to(lab: &Lab) {
    open_knx_tunnel(lab, &RecipeSite::plain(lab, Bridge::Masqueraded));
}

/// knxd on the LAN is a gateway. A container searches for it, and opens a tunnel with the NAT mode
/// of ISO 22510: the addresses in the request are zero.
pub(super) fn open_knx_tunnel(lab: &Lab, site: &RecipeSite) {
    site.device.ip("route add 224.0.0.0/4 dev eth0");
    let _router = site.start(lab, "KNX/IP");
    let bus = lab.file("bus");
    let bus = bus.to_str().expect("a path");
    let words = [
        "-e", "1.1.1", "-E", "1.1.2:8", "-u", bus, "-n", "gateway", "-D", "-T", "-R", "-S",
    ];
    let words = [&words[..], &["-b", "dummy:"]].concat();
    let gateway = site.device.spawn(lab, "knxd", &words);
    let socket = asker(&site.container, "172.20.0.2:0");
    let port = socket.local_addr().expect("an address").port();
    let endpoint = [&[8, 1, 172, 20, 0, 2][..], &port.to_be_bytes()].concat();
    let ask = |request: Vec<u8>, to: &str| {
        let mut received = Vec::new();
        wait_until(TIMEOUT, || {
            let _ = socket.send_to(&request, to);
            wait_until(Duration::from_secs(1), || {
                received.extend(answers(&socket));
                !received.is_empty()
            })
        });
        received
            .pop()
            .unwrap_or_else(|| panic!("no answer: {}", gateway.stderr()))
    };
    let (found, source) = ask(knx(0x0201, &endpoint), "224.0.23.12:3671");
    assert_eq!(source, "10.0.0.10:3671".parse().expect("an address"));
    // SEARCH_RESPONSE with the control endpoint of the gateway and its name.
    assert_eq!(
        found[2..14],
        [2, 2, 0, found[5], 8, 1, 10, 0, 0, 10, 0x0e, 0x57]
    );
    assert!(found.windows(7).any(|name| name == b"gateway"), "{found:?}");
    let unknown = [8, 1, 0, 0, 0, 0, 0, 0];
    let connect = [&unknown[..], &unknown, &[4, 4, 2, 0]].concat();
    let (connected, _) = ask(knx(0x0205, &connect), "10.0.0.10:3671");
    // CONNECT_RESPONSE: the status behind the channel is 0.
    assert_eq!(
        (&connected[2..4], connected[7]),
        (&[2, 6][..], 0),
        "{connected:?}"
    );
}

fn matter_device_is_found_and_read_over_ipv6(lab: &Lab) {
    read_matter_device(lab, &RecipeSite::plain(lab, Bridge::Masqueraded));
}

/// A device of Matter offers itself on ff02::fb with an address of the site, and a controller in a
/// container finds it and connects.
pub(super) fn read_matter_device(lab: &Lab, site: &RecipeSite) {
    let container = &site.container;
    site.rtr.sysctl("net/ipv6/conf/all/forwarding", "1");
    container.ip("-6 route replace default via fd20::1");
    site.device.ip("-6 route add fd20::/64 via fd00::1");
    let _router = site.start(lab, "Matter");
    serve(&site.device, 5540, "a light");
    let service = [("2906C908D115D362-8FC7772401CD0696", "_matter._tcp", 5540)];
    site.device
        .ip("address flush dev eth0 scope global to 10.0.0.0/24");
    let device = avahi::start(lab, &site.device, "light", &["eth0"], &service, false);
    let browser = browse(lab, container, "fd20::2", &["_matter._tcp.local."]);
    expect_printed(&browser, &device, "fd00::10 5540 a light");
}

/// A site with a router and a host, 10.N.0.10 on eth0, behind a tunnel.
struct VpnSite {
    router: Ns,
    host: Ns,
}

impl VpnSite {
    fn new(lab: &Lab, n: u8) -> Self {
        let [router, host] = ["r", "host"].map(|role| lab.ns(&format!("{role}{n}")));
        connect(
            LinkEnd::new(&router, "eth0", &[&format!("10.{n}.0.1/24")]),
            LinkEnd::new(&host, "eth0", &[&format!("10.{n}.0.10/24")]),
        );
        host.ip(&format!("route add default via 10.{n}.0.1"));
        router.sysctl("net/ipv4/ip_forward", "1");
        Self { router, host }
    }
}

/// Gives two routers a tunnel with 10.9.0.1 and 10.9.0.2.
fn connect_vpn(routers: [&Ns; 2]) -> TunPair {
    let tunnel = TunPair::new(routers[0], routers[1], "vpn0");
    for (router, address) in routers.into_iter().zip(["10.9.0.1/24", "10.9.0.2/24"]) {
        add_addresses(router, "vpn0", &[address]);
    }
    tunnel
}

/// Serves a text at port 8000, which avahi offers under this name.
fn offer_text(lab: &Lab, ns: &Ns, name: &str, text: &'static str) -> Program {
    serve(ns, 8000, text);
    avahi::start(
        lab,
        ns,
        name,
        &["eth0"],
        &[(name, "_http._tcp", 8000)],
        false,
    )
}

/// Browses from an address until a line is printed that a service was read.
#[track_caller]
fn expect_read(lab: &Lab, (ns, address): (&Ns, &str), read: &str) {
    let browser = browse(lab, ns, address, &["_http._tcp.local."]);
    let is_read = wait_until(TIMEOUT, || browser.stdout().contains(read));
    assert!(is_read, "{read}: {}{}", browser.stdout(), browser.stderr());
}

/// Two sites with a router each, and a tunnel between the routers: what one site offers is found and
/// read in the other, in both directions.
fn services_of_a_second_site_are_found_and_read(lab: &Lab) {
    let sites = [1, 2].map(|n| VpnSite::new(lab, n));
    let [near, far] = &sites;
    let _tunnel = connect_vpn([&near.router, &far.router]);
    near.router.ip("route add 10.2.0.0/24 via 10.9.0.2");
    far.router.ip("route add 10.1.0.0/24 via 10.9.0.1");
    let settings = recipe("A second site over a VPN");
    let _routers = [near, far].map(|site| {
        let links = ["eth0", "vpn0"];
        start_on(lab, &site.router, &settings, &links)
    });
    let _near = offer_text(lab, &near.host, "shelf", "books");
    let _far = offer_text(lab, &far.host, "desk", "maps");
    let read = "read shelf._http._tcp.local. 10.1.0.10 8000 books";
    expect_read(lab, (&far.host, "10.2.0.10"), read);
    let read = "read desk._http._tcp.local. 10.2.0.10 8000 maps";
    expect_read(lab, (&near.host, "10.1.0.10"), read);
}

/// As [`services_of_a_second_site_are_found_and_read`]. One site is a container, whose network takes
/// the place of `eth0`: it is found at the address of its host in the tunnel, and the published port.
pub(super) fn read_over_vpn(lab: &Lab, site: &RecipeSite) {
    let far = VpnSite::new(lab, 2);
    let _tunnel = connect_vpn([&site.rtr, &far.router]);
    site.rtr.ip("route add 10.2.0.0/24 via 10.9.0.2");
    let settings = recipe("A second site over a VPN");
    let near_settings = settings.replace("\"eth0\"", "\"network:home\"");
    let _routers = (
        site.start_with(lab, &near_settings, ["network:home", "vpn0"]),
        start_on(lab, &far.router, &settings, &["eth0", "vpn0"]),
    );
    let _near = offer_text(lab, &site.container, "shelf", "books");
    let _far = offer_text(lab, &far.host, "desk", "maps");
    let read = "read shelf._http._tcp.local. 10.9.0.1 18000 books";
    expect_read(lab, (&far.host, "10.2.0.10"), read);
    let read = "read desk._http._tcp.local. 10.2.0.10 8000 maps";
    expect_read(lab, (&site.container, "172.20.0.2"), read);
}

fn tuner_is_found_and_read(lab: &Lab) {
    find_tuner(lab, &RecipeSite::plain(lab, Bridge::Masqueraded));
}

/// A program in a container searches for tuners by a broadcast, and reads from the one that answers.
pub(super) fn find_tuner(lab: &Lab, site: &RecipeSite) {
    let _router = site.start(lab, "Broadcasts");
    let tuner = site
        .device
        .enter(|| UdpSocket::bind("0.0.0.0:65001").expect("bind"));
    tuner.set_nonblocking(true).expect("nonblocking");
    let tuner = Device { socket: tuner };
    serve(&site.device, 5004, "a channel");
    let socket = asker(&site.container, "0.0.0.0:0");
    socket.set_broadcast(true).expect("SO_BROADCAST");
    socket
        .send_to(b"question", "255.255.255.255:65001")
        .expect("a broadcast");
    let mut received = Vec::new();
    eventually("the answer of the tuner", true, || {
        tuner.answer(b"tuner");
        received.extend(answers(&socket));
        !received.is_empty()
    });
    let (answer, source) = &received[0];
    assert_eq!(answer, b"tuner");
    let channel = format!("{}:5004", source.ip());
    assert_eq!(read_from(&site.container, &channel), "a channel");
}

/// Settings of Cyclone DDS: the interface, and multicast only to find participants.
fn cyclone(lab: &Lab) -> String {
    let file = lab.file("cyclonedds.xml");
    let text = "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name=\"eth0\"/>\
        </Interfaces><AllowMulticast>spdp</AllowMulticast></General></Domain></CycloneDDS>";
    std::fs::write(&file, text).expect("settings");
    format!("file://{}", file.display())
}

/// Runs ddsperf with a publisher on the LAN and a subscriber in a container. Returns whether the
/// subscriber has what it wants, and its output.
fn ddsperf(lab: &Lab, publisher: &Ns, subscriber: &Ns, wants: &[&str]) -> (bool, String) {
    let uri = cyclone(lab);
    let run = |ns: &Ns, words: &[&str]| {
        let mut command = ns.command("ddsperf");
        command.env("CYCLONEDDS_URI", &uri).args(words);
        Program::start(lab, command)
    };
    let _publisher = run(publisher, &["-D", "120", "pub", "1kHz", "size", "100"]);
    let words = [wants, &["sub"]].concat();
    let mut subscriber = run(subscriber, &words);
    let status = subscriber.wait();
    let text = subscriber.stdout() + &subscriber.stderr();
    (status.success(), text)
}

fn dds_works_over_a_routed_bridge(lab: &Lab) {
    receive_samples(lab, &RecipeSite::plain(lab, Bridge::Routed));
}

/// Without masquerade, and with routes in both directions, participants find each other through one
/// rule, and samples arrive.
pub(super) fn receive_samples(lab: &Lab, site: &RecipeSite) {
    let _router = site.start(lab, "DDS and ROS 2");
    let wants = [
        "-D",
        "8",
        "-Q",
        "maxwait:6",
        "-Q",
        "minmatch:1",
        "-Q",
        "samples:100",
    ];
    let (is_received, text) = ddsperf(lab, &site.device, &site.container, &wants);
    assert!(is_received, "{text}");
}

/// Behind a masquerade, the publisher learns of the subscriber, and has no way to it.
fn dds_fails_behind_a_masquerading_bridge(lab: &Lab) {
    let site = site(lab, 1);
    let router = start(lab, &site, &discovery("\"dds\"", ""));
    let wants = ["-D", "4", "-Q", "maxwait:3", "-Q", "minmatch:1"];
    let (is_received, text) = ddsperf(lab, &site.device, &site.containers[0], &wants);
    assert!(!is_received, "{text}");
    let labels = [("protocol", "dds"), ("kind", "announcement")];
    assert!(router.metric("mcastor_discovery_messages_total", &labels) > 0.0);
}
