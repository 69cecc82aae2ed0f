//! The recipes of docs/discovery.md, with the very settings of the document: what is found is
//! connected to.

use std::time::Duration;

use super::cases;
use crate::lab::avahi::AvahiWithBus;
use crate::lab::discovery_site::{
    Device, answers, asker, browse, discovery, read_from, serve, site, start, start_on,
};
use crate::lab::harness::pypi_program;
use crate::lab::recipe_site::{Bridge, RecipeSite, python, recipe};
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
            connect(
                LinkEnd::new(&rtr, format!("link{n}"), &[]),
                LinkEnd::new(host, "uplink", &[]),
            );
            name_link(&rtr, &format!("link{n}"), port, port);
            name_link(host, "uplink", "eth0", port);
            rtr.ip_batch(&format!(
                "address add 10.{n}.0.1/24 dev {port}\nlink set {port} up\n"
            ));
            host.ip_batch(&format!(
                "address add 10.{n}.0.10/24 dev eth0\nlink set eth0 up\n\
                 route add default via 10.{n}.0.1\n"
            ));
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

/// Gives a link its name, or makes the VLAN of that name on it.
fn name_link(ns: &Ns, link: &str, name: &str, kind: &str) {
    let vlan = kind.strip_prefix("vlan").map(|id| {
        ns.try_ip(&format!(
            "link add link {link} name {name} type vlan id {id}"
        ))
    });
    if vlan.is_none_or(|made| made.is_err()) {
        ns.ip_batch(&format!(
            "link set {link} down\nlink set {link} name {name}\n"
        ));
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
const DIAL: &str = "HTTP/1.1 200 OK\r\nST: urn:dial-multiscreen-org:service:dial:1\r\nUSN: uuid:1\r\n\
    LOCATION: http://10.1.0.10:8008/ssdp/device-desc.xml\r\n\r\n";

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
    let device = Device::join(&networks.device, "239.255.255.250:1900");
    let socket = asker(&networks.asker, "0.0.0.0:0");
    socket
        .send_to(SEARCH.as_bytes(), "239.255.255.250:1900")
        .expect("a question");
    let mut received = Vec::new();
    eventually("the answer to the search", true, || {
        device.answer(DIAL.as_bytes());
        received.extend(answers(&socket));
        !received.is_empty()
    });
    let expected = (DIAL.as_bytes().to_vec(), "10.1.0.10:1900".parse());
    assert_eq!((received[0].0.clone(), Ok(received[0].1)), expected);
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

/// ippeveprinter on the LAN announces itself; ippfind in the guest network finds it, and ipptool
/// prints. The document arrives, and the LAN's other services are not found.
fn guest_finds_printer_and_prints(lab: &Lab) {
    let networks = Networks::new(lab, "lan", "guest");
    let settings = recipe("Printers for a guest network");
    let _router = start_on(lab, &networks.rtr, &settings, &["lan", "guest"]);
    let spool = lab.file("spool");
    std::fs::create_dir(&spool).expect("a folder");
    let printer = AvahiWithBus::start(lab, &networks.device, "shelf");
    let mut command = printer.command("ippeveprinter");
    command.args(["-k", "-p", "8631", "-f", "text/plain"]);
    command.arg("-d").arg(&spool).arg("Floor 2");
    let program = Program::start(lab, command);
    let guest = AvahiWithBus::start(lab, &networks.asker, "laptop");
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
    let address = resolve(&guest, "_ipp._tcp");
    assert_eq!(address, "10.1.0.10:8631");
    let (page, job) = (lab.file("page.txt"), lab.file("print.test"));
    std::fs::write(&page, "a page of text\n").expect("a document");
    std::fs::write(&job, PRINT_JOB).expect("a job");
    let mut command = networks.asker.command("ipptool");
    command
        .arg("-tf")
        .arg(&page)
        .arg(format!("ipp://{address}/ipp/print"));
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

/// pychromecast and atvremote of pyatv find devices in a VLAN and use them: one changes the volume,
/// and the other one plays a video.
fn cast_and_airplay_devices_in_a_vlan_are_used(lab: &Lab) {
    let networks = Networks::new(lab, "vlan20", "eth0");
    let settings = recipe("Chromecast and AirPlay in a VLAN");
    let _router = start_on(lab, &networks.rtr, &settings, &["vlan20", "eth0"]);
    let device = |script| python(lab, &networks.device, script, &["10.1.0.10"]);
    let (cast, airplay) = (device("cast_device"), device("airplay_device"));
    let client = python(lab, &networks.asker, "cast_client", &["10.2.0.10"]);
    expect_printed(&client, &cast, "volume 0.75");
    expect_printed(&cast, &client, "volume 0.25");
    let remote = pypi_program("atvremote");
    let remote = remote.to_str().expect("a path");
    let url = "http://10.2.0.10/video.mp4";
    let play = format!("play_url={url}");
    let words = ["--storage", "none", "-t", "3", "-n", "Living Room", &play];
    let mut printed = String::new();
    // The scan ends after three seconds. On a busy machine that may be too early.
    let is_played = wait_until(TIMEOUT, || {
        let mut remote = networks.asker.spawn(lab, remote, &words);
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

/// Two sites with a router each, and a tunnel between the routers: what one site offers is found and
/// read in the other, in both directions.
fn services_of_a_second_site_are_found_and_read(lab: &Lab) {
    let [near, r1, r2, far] = ["near", "r1", "r2", "far"].map(|role| lab.ns(role));
    let _tunnel = TunPair::new(&r1, &r2, "vpn0");
    for (n, host, rtr) in [(1, &near, &r1), (2, &far, &r2)] {
        let (own, other) = (format!("10.{n}.0"), format!("10.{}.0", 3 - n));
        connect(
            LinkEnd::new(rtr, "eth0", &[&format!("{own}.1/24")]),
            LinkEnd::new(host, "eth0", &[&format!("{own}.10/24")]),
        );
        host.ip(&format!("route add default via {own}.1"));
        rtr.ip_batch(&format!(
            "address add 10.9.0.{n}/24 dev vpn0\nlink set vpn0 up\n\
             route add {other}.0/24 via 10.9.0.{}\n",
            3 - n
        ));
        rtr.sysctl("net/ipv4/ip_forward", "1");
    }
    let settings = recipe("A second site over a VPN");
    let _routers = [&r1, &r2].map(|rtr| start_on(lab, rtr, &settings, &["eth0", "vpn0"]));
    serve(&near, 8000, "books");
    serve(&far, 8000, "maps");
    let kind = "_http._tcp";
    let _near = avahi::start(
        lab,
        &near,
        "near",
        &["eth0"],
        &[("shelf", kind, 8000)],
        false,
    );
    let _far = avahi::start(lab, &far, "far", &["eth0"], &[("desk", kind, 8000)], false);
    for (host, address, read) in [
        (
            &far,
            "10.2.0.10",
            "read shelf._http._tcp.local. 10.1.0.10 8000 books",
        ),
        (
            &near,
            "10.1.0.10",
            "read desk._http._tcp.local. 10.2.0.10 8000 maps",
        ),
    ] {
        let browser = browse(lab, host, address, &["_http._tcp.local."]);
        let is_read = wait_until(TIMEOUT, || browser.stdout().contains(read));
        assert!(is_read, "{}{}", browser.stdout(), browser.stderr());
    }
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
