//! Discovery between a LAN and containers behind a masquerading bridge: devices are found, and then
//! connected to.

use std::any::Any;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::cases;
use crate::lab::discovery_site::{
    Device, FOUND, SEARCH, answers, asker, browse, discovery, http_get, minidlna, probe,
    probe_match, serve, site, start,
};
use crate::lab::tun::Tun;
use crate::lab::{
    Capture, IpPacket, Lab, LinkEnd, Ns, Router, TIMEOUT, Udp, avahi, connect, eventually,
    wait_until,
};

cases!("discovery":
    #[Iptables] answers_reach_containers_from_the_device,
    #[Iptables] answers_in_fragments_reach_containers,
    #[Iptables] ipv6_answers_reach_the_asker,
    #[Iptables] question_limits_hold,
    #[Iptables] #[Program("minidlnad", "minidlna")]
    media_server_is_found_and_read_from_container,
    #[Iptables] #[Program("wsdd", "wsdd")]
    ws_discovery_host_is_found_and_read_from_container,
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    mdns_service_is_found_and_read_from_container,
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    denied_service_is_not_on_the_wire,
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    only_allowed_services_cross_and_only_in_their_direction,
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")]
    legacy_question_is_answered_by_unicast,
    #[Iptables] #[Program("avahi-daemon", "avahi-daemon")]
    second_asker_need_not_wait_until_it_asks_again,
    #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    reflectors_in_a_triangle_cause_no_storm,
    #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    two_avahi_reflectors_in_a_triangle_cause_no_storm,
    #[Iptables] questions_take_little_longer_than_directly,
    #[Iptables] broadcasts_of_one_port_cross,
    #[Iptables] ssdp_policy_withholds_questions_and_answers,
    #[Iptables] reload_changes_what_crosses,
    #[Iptables] questions_cross_a_tunnel_without_addresses,
);

/// The case from the field: a container asks by multicast, and the device answers to the source that
/// it sees. Every answer arrives, and comes from the device, on a host that forwards and admits
/// nothing.
fn answers_reach_containers_from_the_device(lab: &Lab) {
    let site = site(lab, 2);
    let router = start(lab, &site, &discovery("\"ssdp\", \"ws-discovery\"", ""));
    let devices =
        [(1900, FOUND.to_vec()), (3702, probe_match().into_bytes())].map(|(port, answer)| {
            (
                Device::join(&site.device, &format!("239.255.255.250:{port}")),
                port,
                answer,
            )
        });
    const ROUNDS: usize = 10;
    let mut expected = [0; 2];
    let mut received = [0; 2];
    let mut sources = BTreeSet::new();
    for round in 0..ROUNDS {
        for (n, container) in site.containers.iter().enumerate() {
            for (device, port, answer) in &devices {
                let socket = asker(container, "0.0.0.0:0");
                let question = match port {
                    1900 => SEARCH.to_vec(),
                    _ => probe(round as u32 * 16 + n as u32).into_bytes(),
                };
                // Repeated searches of one sender are limited, as those of a reflector.
                let question = [question, format!("\r\nX: {round}").into_bytes()].concat();
                let question = if *port == 1900 {
                    question
                } else {
                    probe(round as u32).into_bytes()
                };
                socket
                    .send_to(&question, ("239.255.255.250", *port))
                    .expect("a question");
                expected[n] += 1;
                let mut all = Vec::new();
                wait_until(TIMEOUT, || {
                    sources.extend(device.answer(answer));
                    all.extend(answers(&socket));
                    !all.is_empty()
                });
                for (payload, source) in &all {
                    assert_eq!(payload, answer);
                    assert_eq!(*source, SocketAddr::from(([10, 0, 0, 10], *port)));
                }
                received[n] += all.len();
            }
        }
    }
    assert_eq!(received, expected, "answers of {ROUNDS} rounds");
    assert!(
        sources
            .iter()
            .all(|s| s.ip() == IpAddr::from([10, 0, 0, 1])),
        "{sources:?}"
    );
    assert!(
        sources.iter().all(|s| (61_440..61_952).contains(&s.port())),
        "{sources:?}"
    );
    let sent = |kind: &str| router.metric("mcastor_discovery_messages_total", &[("kind", kind)]);
    assert_eq!(sent("answer"), 4.0 * ROUNDS as f64);
}

/// ONVIF cameras answer with kilobytes.
fn answers_in_fragments_reach_containers(lab: &Lab) {
    let site = site(lab, 1);
    // The kernel reassembles such an answer, so its firewall must admit it.
    let words = "-A INPUT -p udp --dport 61440:61951 -j ACCEPT";
    let words: Vec<&str> = words.split(' ').collect();
    assert!(site.rtr.output("iptables", &words).status.success());
    let _router = start(lab, &site, &discovery("\"239.1.2.3:5000\"", ""));
    let device = Device::join(&site.device, "239.1.2.3:5000");
    let socket = asker(&site.containers[0], "0.0.0.0:0");
    let answer: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
    socket
        .send_to(b"question", "239.1.2.3:5000")
        .expect("a question");
    let mut received = Vec::new();
    let arrived = wait_until(TIMEOUT, || {
        device.answer(&answer);
        received.extend(answers(&socket));
        !received.is_empty()
    });
    assert!(arrived);
    assert_eq!(
        received,
        [(answer, "10.0.0.10:5000".parse().expect("address"))]
    );
}

/// Both directions with IPv6: the answer comes from the address of the device.
fn ipv6_answers_reach_the_asker(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"ssdp\"", ""));
    let device = Device::join(&site.device, "[ff05::c]:1900");
    let container = &site.containers[0];
    let socket = asker(container, "[fd20::2]:0");
    let index = container.index("eth0");
    let socket = socket2::Socket::from(socket);
    socket
        .set_multicast_if_v6(index)
        .expect("IPV6_MULTICAST_IF");
    let socket = UdpSocket::from(socket);
    socket
        .send_to(SEARCH, "[ff05::c]:1900")
        .expect("a question");
    let found = String::from_utf8_lossy(FOUND).replace("10.0.0.10", "[fd00::10]");
    let mut received = Vec::new();
    let arrived = wait_until(TIMEOUT, || {
        device.answer(found.as_bytes());
        received.extend(answers(&socket));
        !received.is_empty()
    });
    assert!(arrived);
    assert_eq!(received[0].1, "[fd00::10]:1900".parse().expect("address"));
}

/// One asker cannot take all ports: its further questions are counted, and others are still served.
fn question_limits_hold(lab: &Lab) {
    let site = site(lab, 2);
    let limits = "limits = { questions_per_asker = 8, messages_per_second = 10000 }";
    let router = start(lab, &site, &discovery("\"239.1.2.3:5000\"", limits));
    let device = Device::join(&site.device, "239.1.2.3:5000");
    let greedy: Vec<UdpSocket> = (0..50)
        .map(|_| asker(&site.containers[0], "0.0.0.0:0"))
        .collect();
    for (n, socket) in greedy.iter().enumerate() {
        socket
            .send_to(&[n as u8], "239.1.2.3:5000")
            .expect("a question");
    }
    let labels = [("reason", "asker_limit"), ("protocol", "group")];
    router.expect_metric("mcastor_discovery_withheld_total", &labels, 42);
    let other = asker(&site.containers[1], "0.0.0.0:0");
    other
        .send_to(b"other", "239.1.2.3:5000")
        .expect("a question");
    eventually("the other asker has its answer", 1, || {
        device.answer(b"answer");
        answers(&other).len()
    });
    let mut answered = vec![false; greedy.len()];
    let mut count_answered = || {
        for (answered, socket) in answered.iter_mut().zip(&greedy) {
            *answered |= !answers(socket).is_empty();
        }
        answered.iter().filter(|answered| **answered).count()
    };
    eventually("the first questions have answers", 8, &mut count_answered);
    assert_eq!(count_answered(), 8);
}

/// minidlna on the LAN, and a container that searches: the URL of the answer leads to the description
/// of the media server.
fn media_server_is_found_and_read_from_container(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"ssdp\"", ""));
    let _server = minidlna(lab, &site.device);
    let container = &site.containers[0];
    let target = "urn:schemas-upnp-org:device:MediaServer:1";
    let search = String::from_utf8_lossy(SEARCH).replace("ssdp:all", target);
    let mut round = 0;
    let mut found = None;
    wait_until(TIMEOUT, || {
        round += 1;
        let socket = asker(container, "0.0.0.0:0");
        let search = format!("{search}X: {round}");
        socket
            .send_to(search.as_bytes(), "239.255.255.250:1900")
            .expect("a question");
        wait_until(Duration::from_secs(2), || {
            found = answers(&socket).pop();
            found.is_some()
        })
    });
    let (answer, source) = found.expect("an answer");
    assert_eq!(source, "10.0.0.10:1900".parse().expect("address"));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let url = answer
        .lines()
        .find_map(|line| line.strip_prefix("LOCATION:"))
        .expect("a URL")
        .trim();
    assert!(url.starts_with("http://10.0.0.10:8200/"), "{url}");
    let description = http_get(container, url);
    assert!(description.contains("<friendlyName>shelf"), "{description}");
}

/// wsdd on the LAN: a container probes, and reads the metadata at the address of the answer.
fn ws_discovery_host_is_found_and_read_from_container(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"ws-discovery\"", ""));
    let _host = site
        .device
        .spawn(lab, "wsdd", &["-4", "-i", "eth0", "-n", "shelf"]);
    let container = &site.containers[0];
    let mut id = 0;
    let mut found = None;
    wait_until(TIMEOUT, || {
        id += 1;
        let socket = asker(container, "0.0.0.0:0");
        socket
            .send_to(probe(id).as_bytes(), "239.255.255.250:3702")
            .expect("a probe");
        wait_until(Duration::from_secs(1), || {
            found = answers(&socket).pop();
            found.is_some()
        })
    });
    let (answer, source) = found.expect("an answer");
    assert_eq!(source.ip(), IpAddr::from([10, 0, 0, 10]));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("ProbeMatches"), "{answer}");
    // wsdd gives its address only after a Resolve; its port is that of the protocol.
    let reached = container.enter(|| TcpStream::connect("10.0.0.10:5357").is_ok());
    assert!(reached);
}

/// Returns the payloads of the UDP packets to port 5353 that arrived, as text.
fn mdns_arrived(capture: &Capture) -> Vec<String> {
    let frames = capture.frames();
    let incoming = frames.iter().filter(|frame| !frame.outgoing);
    let texts = incoming.filter(|f| f.bytes.windows(2).any(|w| w == 5353u16.to_be_bytes()));
    texts
        .map(|f| String::from_utf8_lossy(&f.bytes).into_owned())
        .collect()
}

/// Returns the messages of mDNS that arrived.
fn mdns_messages(capture: &Capture) -> Vec<Vec<u8>> {
    let frames = capture.frames();
    let incoming = frames.iter().filter(|frame| !frame.outgoing);
    let messages = incoming.filter_map(|frame| {
        let is_v4 = frame.bytes.get(12..14)? == [8, 0];
        let udp = frame.bytes.get(if is_v4 { 34 } else { 54 }..)?;
        let is_mdns = udp.get(2..4)? == 5353u16.to_be_bytes();
        is_mdns.then(|| udp.get(8..).map(<[u8]>::to_vec)).flatten()
    });
    messages.collect()
}

/// Returns the messages of mDNS with any record that arrived, as text.
fn mdns_offers(capture: &Capture) -> Vec<String> {
    // The numbers of answers, authorities and additionals.
    let has_records = |message: &Vec<u8>| {
        let counts = message.get(6..12);
        counts.is_some_and(|counts| counts.iter().any(|byte| *byte != 0))
    };
    let messages = mdns_messages(capture).into_iter().filter(has_records);
    let text = |message: Vec<u8>| String::from_utf8_lossy(&message).into_owned();
    messages.map(text).collect()
}

/// Returns the number of responses about `_http._tcp` that arrived.
fn http_responses(capture: &Capture) -> usize {
    let is_response = |message: &&Vec<u8>| {
        let is_response = message.get(2).is_some_and(|flags| flags & 0x80 != 0);
        is_response && message.windows(5).any(|label| label == b"_http")
    };
    mdns_messages(capture).iter().filter(is_response).count()
}

const HTTP: (&str, &str, u16) = ("shelf", "_http._tcp", 8000);
const SSH: (&str, &str, u16) = ("vault", "_ssh._tcp", 2222);

/// avahi on the LAN, zeroconf in a container: the service is found, resolved, and read.
fn mdns_service_is_found_and_read_from_container(lab: &Lab) {
    let site = site(lab, 1);
    let router = start(lab, &site, &discovery("\"mdns\"", ""));
    serve(&site.device, 8000, "books");
    let _avahi = avahi::start(lab, &site.device, "shelf", &["eth0"], &[HTTP], false);
    let browser = browse(
        lab,
        &site.containers[0],
        "172.20.0.2",
        &["_http._tcp.local."],
    );
    let read = "read shelf._http._tcp.local. 10.0.0.10 8000 books";
    assert!(
        wait_until(TIMEOUT, || browser.stdout().contains(read)),
        "{}",
        browser.stdout()
    );
    let shown = router.run("show discovery");
    for part in ["shelf (_http._tcp)", "10.0.0.10", "mdns: answers relay"] {
        assert!(shown.contains(part), "{shown}");
    }
    let asker = serde_json::json!({"from": "br0", "to": "eth0", "protocol": "mdns",
        "asker": "172.20.0.2", "what": "_http._tcp", "instance": "", "withheld": null});
    assert_eq!(asker_of(&router, "_http._tcp"), asker);
    assert!(shown.contains("172.20.0.2"), "{shown}");
}

/// Returns who asks for a service type, as `show discovery` knows it, without numbers.
#[track_caller]
fn asker_of(router: &Router, service: &str) -> serde_json::Value {
    let discovery = router.control().show("discovery");
    let mut askers = discovery.iter().flat_map(|rule| {
        let askers = rule["askers"].as_array().expect("askers");
        askers.iter().cloned()
    });
    let is_asker = |asker: &serde_json::Value| asker["what"] == service && asker["instance"] == "";
    let asker = askers.find(is_asker);
    let mut asker = asker.unwrap_or_else(|| panic!("no asker of {service}: {discovery:?}"));
    let values = asker.as_object_mut().expect("an asker");
    for key in ["idle_ms", "messages", "mac", "explanation"] {
        assert!(values.remove(key).is_some(), "{key}");
    }
    asker
}

/// A denied service is found on neither side of the wire: no record about it reaches the containers,
/// and no question for it the LAN. The host's other service is found and read.
fn denied_service_is_not_on_the_wire(lab: &Lab) {
    let site = site(lab, 1);
    let deny = "deny = [{ service = \"_ssh._tcp\" }]";
    let router = start(lab, &site, &discovery("\"mdns\"", deny));
    serve(&site.device, 8000, "books");
    let inside = Capture::new(&site.containers[0], "eth0");
    let lan = Capture::new(&site.other, "eth0");
    let _avahi = avahi::start(lab, &site.device, "shelf", &["eth0"], &[HTTP, SSH], false);
    let kinds = ["_ssh._tcp.local.", "_http._tcp.local."];
    let browser = browse(lab, &site.containers[0], "172.20.0.2", &kinds);
    let read = "read shelf._http._tcp.local. 10.0.0.10 8000 books";
    assert!(
        wait_until(TIMEOUT, || browser.stdout().contains(read)),
        "{}",
        browser.stdout()
    );
    let withheld = |kind| {
        let labels = [("kind", kind), ("reason", "denied")];
        router.metric("mcastor_discovery_withheld_total", &labels)
    };
    assert!(wait_until(TIMEOUT, || withheld("question") > 0.0
        && withheld("announcement") > 0.0));
    assert!(!browser.stdout().contains("vault"));
    let asker = asker_of(&router, "_ssh._tcp");
    assert_eq!(
        (&asker["asker"], &asker["withheld"]),
        (&"172.20.0.2".into(), &"denied".into())
    );
    let secret = |text: &&String| text.contains("_ssh") || text.contains("vault");
    let (inside, lan) = (mdns_arrived(&inside), mdns_arrived(&lan));
    assert!(
        inside.iter().any(|text| text.contains("_http")),
        "{} packets",
        inside.len()
    );
    assert_eq!(
        inside.iter().filter(secret).count(),
        0,
        "of {} packets",
        inside.len()
    );
    // On the LAN, only the device itself says anything about it.
    let from_router = lan
        .iter()
        .filter(secret)
        .filter(|text| !text.contains("vault"));
    assert_eq!(from_router.count(), 0, "of {} packets", lan.len());
}

/// With `allow`, nothing else crosses, and nothing in the other direction.
fn only_allowed_services_cross_and_only_in_their_direction(lab: &Lab) {
    let site = site(lab, 1);
    let container = &site.containers[0];
    let allow = "allow = [{ service = \"_http._tcp\", from = \"eth0\", to = \"br0\" }]";
    let _router = start(lab, &site, &discovery("\"mdns\"", allow));
    serve(&site.device, 8000, "books");
    let inside = Capture::new(container, "eth0");
    let lan = Capture::new(&site.other, "eth0");
    let services = [("hidden", "_http._tcp", 9000)];
    let _avahi = avahi::start(lab, &site.device, "shelf", &["eth0"], &[HTTP, SSH], false);
    let _inner = avahi::start(lab, container, "inner", &["eth0"], &services, false);
    let kinds = ["_ssh._tcp.local.", "_http._tcp.local."];
    let browser = browse(lab, container, "172.20.0.2", &kinds);
    let outer = browse(lab, &site.other, "10.0.0.11", &["_http._tcp.local."]);
    let read = "read shelf._http._tcp.local. 10.0.0.10 8000 books";
    for browser in [&browser, &outer] {
        assert!(
            wait_until(TIMEOUT, || browser.stdout().contains(read)),
            "{}",
            browser.stdout()
        );
    }
    assert!(!outer.stdout().contains("hidden"), "{}", outer.stdout());
    let inside = mdns_arrived(&inside);
    let count = |texts: &[String], word: &str| texts.iter().filter(|t| t.contains(word)).count();
    assert_eq!((count(&inside, "vault"), count(&inside, "_ssh")), (0, 0));
    // The browser may ask the LAN for the instance before its SRV record is known here. Nothing offers
    // it there: neither a response nor a probe.
    let lan = mdns_offers(&lan);
    let secret = lan
        .iter()
        .filter(|text| text.contains("hidden") || text.contains("inner"));
    assert_eq!(secret.count(), 0, "of {} packets", lan.len());
}

/// A question from another port than 5353 is answered by unicast (RFC 6762 section 6.7), with the
/// identifier of the question.
fn legacy_question_is_answered_by_unicast(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"mdns\"", ""));
    let _avahi = avahi::start(lab, &site.device, "shelf", &["eth0"], &[HTTP], false);
    let mut question = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(b"\x05_http\x04_tcp\x05local\x00\x00\x0c\x00\x01");
    let socket = asker(&site.containers[0], "0.0.0.0:0");
    let mut received = Vec::new();
    let mut asked = Instant::now() - TIMEOUT;
    let arrived = wait_until(TIMEOUT, || {
        // avahi answers when it has probed for its names.
        if asked.elapsed() > Duration::from_secs(1) {
            socket
                .send_to(&question, "224.0.0.251:5353")
                .expect("a question");
            asked = Instant::now();
        }
        received.extend(answers(&socket));
        !received.is_empty()
    });
    assert!(arrived);
    let (answer, source) = &received[0];
    assert_eq!(*source, "10.0.0.10:5353".parse().expect("address"));
    assert_eq!(answer[..2], [0x12, 0x34]);
    assert!(String::from_utf8_lossy(answer).contains("shelf"));
}

/// Returns a question for `_http._tcp`. Its asker wants a unicast answer, or not.
fn http_question(wants_unicast: bool) -> Vec<u8> {
    let mut question = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(b"\x05_http\x04_tcp\x05local\x00\x00\x0c");
    question.extend([if wants_unicast { 0x80 } else { 0 }, 1]);
    question
}

/// A host asks, and the answer is relayed. Another one starts then and asks for a unicast answer, as
/// programs do first (RFC 6762 section 5.4). Its question is a repetition for the LAN, where the
/// device would not answer it. It has its answer, though it asks only once.
fn second_asker_need_not_wait_until_it_asks_again(lab: &Lab) {
    let site = site(lab, 2);
    let router = start(lab, &site, &discovery("\"mdns\"", ""));
    let _avahi = avahi::start(lab, &site.device, "shelf", &["eth0"], &[HTTP], false);
    let first = asker(&site.containers[0], "172.20.0.2:5353");
    let inside = Capture::new(&site.containers[1], "eth0");
    let second = asker(&site.containers[1], "172.20.0.3:5353");
    let ask = |socket: &UdpSocket, wants_unicast| {
        let question = http_question(wants_unicast);
        let sent = socket.send_to(&question, "224.0.0.251:5353");
        sent.expect("a question");
    };
    let withheld = || {
        let labels = [("kind", "question"), ("reason", "repeated")];
        router.metric("mcastor_discovery_withheld_total", &labels)
    };
    let is_repetition = wait_until(TIMEOUT, || {
        // Now the device may multicast its records again.
        std::thread::sleep(Duration::from_millis(1200));
        let (before, responses) = (withheld(), http_responses(&inside));
        ask(&first, false);
        // The device may still probe for its names.
        let is_relayed = || http_responses(&inside) > responses;
        if !wait_until(Duration::from_secs(1), is_relayed) {
            return false;
        }
        ask(&second, true);
        let mut received = Vec::new();
        wait_until(Duration::from_secs(5), || {
            received.extend(answers(&second));
            !received.is_empty()
        });
        let (answer, source) = received.first().expect("an answer");
        assert_eq!(*source, "172.20.0.1:5353".parse().expect("address"));
        assert!(String::from_utf8_lossy(answer).contains("shelf"));
        // On a busy machine, the second asker may come too late for that.
        withheld() > before
    });
    assert!(is_repetition, "no question was a repetition");
}

/// mcastor between A and B and between C and A, avahi between B and C.
fn reflectors_in_a_triangle_cause_no_storm(lab: &Lab) {
    triangle(lab, [Make::Mcastor, Make::Avahi, Make::Mcastor]);
}

/// avahi between A and B and between B and C, mcastor between C and A. A message that both reflectors
/// of avahi repeat does not return to A.
fn two_avahi_reflectors_in_a_triangle_cause_no_storm(lab: &Lab) {
    triangle(lab, [Make::Avahi, Make::Avahi, Make::Mcastor]);
}

#[derive(Clone, Copy)]
enum Make {
    Mcastor,
    Avahi,
}

/// Reflectors in a triangle of the links A, B and C: the first between A and B, the second between B
/// and C, the third between C and A. A service of A is found on C, and few packets circulate.
fn triangle(lab: &Lab, makes: [Make; 3]) {
    let [server, client, lan, r1, r2, r3] =
        ["server", "client", "lan", "r1", "r2", "r3"].map(|role| lab.ns(role));
    for (n, name) in ["br0", "br1", "br2"].iter().enumerate() {
        lan.ip_batch(&format!(
            "link add {name} type bridge mcast_snooping 0\nlink set {name} up\n"
        ));
        let ends: [(&Ns, &str, u8); 3] = match n {
            0 => [(&server, "eth0", 10), (&r1, "e0", 1), (&r3, "e1", 3)],
            1 => [(&r1, "e1", 1), (&r2, "e0", 2), (&lan, "unused", 9)],
            _ => [(&r2, "e1", 2), (&r3, "e0", 3), (&client, "eth0", 11)],
        };
        for (at, (ns, iface, host)) in ends.iter().enumerate().filter(|(_, e)| e.1 != "unused") {
            let port = format!("p{n}{at}");
            let address = format!("10.0.{n}.{host}/24");
            connect(
                LinkEnd::new(&lan, port.as_str(), &[]),
                LinkEnd::new(ns, *iface, &[&address]),
            );
            lan.ip(&format!("link set {port} master {name}"));
        }
    }
    let captures = [
        Capture::new(&server, "eth0"),
        Capture::new(&r2, "e0"),
        Capture::new(&client, "eth0"),
    ];
    let settings = "[[discovery]]\nbetween = [\"e0\", \"e1\"]\nprotocols = [\"mdns\"]\n";
    let links = ["e0", "e1"];
    let _reflectors: [Box<dyn Any>; 3] = [0, 1, 2].map(|n| -> Box<dyn Any> {
        let ns = [&r1, &r2, &r3][n];
        match makes[n] {
            Make::Mcastor => Box::new(Router::start(lab, ns, settings)),
            Make::Avahi => Box::new(avahi::start(lab, ns, &format!("r{n}"), &links, &[], true)),
        }
    });
    let _service = avahi::start(lab, &server, "shelf", &["eth0"], &[HTTP], false);
    let browser = browse(lab, &client, "10.0.2.11", &["_http._tcp.local."]);
    let found = "found shelf._http._tcp.local.";
    assert!(
        wait_until(TIMEOUT, || browser.stdout().contains(found)),
        "{}",
        browser.stdout()
    );
    // What was said at the start has ended; from now on, hosts ask rarely. If nothing recognised
    // repetitions, the same messages would circulate without end: 39 on each link in 2 s.
    let count = || {
        captures.each_ref().map(|capture| {
            capture
                .take_new()
                .iter()
                .filter(|f| f.bytes.windows(2).any(|w| w == 5353u16.to_be_bytes()))
                .count()
        })
    };
    let mut quiet = [usize::MAX; 3];
    let is_quiet = wait_until(TIMEOUT, || {
        count();
        std::thread::sleep(Duration::from_secs(2));
        quiet = count();
        quiet.iter().all(|packets| *packets <= 20)
    });
    println!("packets on each link in 2 s: {quiet:?}");
    assert!(is_quiet, "packets on each link in 2 s: {quiet:?}");
}

/// Times questions and answers: directly on the LAN, and from a container through the router.
fn questions_take_little_longer_than_directly(lab: &Lab) {
    let site = site(lab, 1);
    let limits = "limits = { messages_per_second = 10000, questions_per_asker = 400 }";
    let _router = start(lab, &site, &discovery("\"239.1.2.3:5000\"", limits));
    let device = Device::join(&site.device, "239.1.2.3:5000");
    let median = |ns: &Ns, address: &str| {
        let socket = asker(ns, address);
        let mut times: Vec<Duration> = (0..200u32)
            .map(|n| {
                let started = Instant::now();
                socket
                    .send_to(&n.to_be_bytes(), "239.1.2.3:5000")
                    .expect("a question");
                let end = started + TIMEOUT;
                while answers(&socket).is_empty() {
                    device.answer(b"answer");
                    assert!(Instant::now() < end, "question {n} has no answer");
                }
                started.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let (direct, routed) = (
        median(&site.other, "10.0.0.11:0"),
        median(&site.containers[0], "172.20.0.2:0"),
    );
    println!("median of 200 questions: {direct:?} directly, {routed:?} through the router");
    assert!(
        routed < direct + Duration::from_millis(50),
        "{direct:?}, {routed:?}"
    );
}

/// HDHomeRun and others: a broadcast to one port crosses, and its answer comes back; other ports do
/// not.
fn broadcasts_of_one_port_cross(lab: &Lab) {
    let site = site(lab, 1);
    let router = start(lab, &site, &discovery("\"broadcast:65001\"", ""));
    let device = site
        .device
        .enter(|| UdpSocket::bind("0.0.0.0:65001").expect("bind"));
    device.set_nonblocking(true).expect("nonblocking");
    let device = Device { socket: device };
    let other_port = asker(&site.device, "0.0.0.0:65002");
    let socket = asker(&site.containers[0], "0.0.0.0:0");
    socket.set_broadcast(true).expect("SO_BROADCAST");
    socket
        .send_to(b"other", "172.20.255.255:65002")
        .expect("a broadcast");
    socket
        .send_to(b"question", "172.20.255.255:65001")
        .expect("a broadcast");
    let mut received = Vec::new();
    let arrived = wait_until(TIMEOUT, || {
        device.answer(b"tuner");
        received.extend(answers(&socket));
        !received.is_empty()
    });
    assert!(arrived);
    assert_eq!(
        received,
        [(
            b"tuner".to_vec(),
            "10.0.0.10:65001".parse().expect("address")
        )]
    );
    assert!(answers(&other_port).is_empty());
    let sent = router.metric(
        "mcastor_discovery_messages_total",
        &[("protocol", "broadcast")],
    );
    assert_eq!(sent, 2.0);
}

/// A rule on the search target withholds questions that no allowed device would answer, and answers
/// of other devices; a rule on the device withholds the answers of one.
fn ssdp_policy_withholds_questions_and_answers(lab: &Lab) {
    let site = site(lab, 1);
    let policy = "allow = [{ st = \"urn:*:MediaServer:*\" }]\ndeny = [{ device = \"10.0.0.11\" }]";
    let router = start(lab, &site, &discovery("\"ssdp\"", policy));
    let server = Device::join(&site.device, "239.255.255.250:1900");
    let denied = site.other.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:1900").expect("bind");
        let (group, own) = ([239, 255, 255, 250].into(), [10, 0, 0, 11].into());
        socket.join_multicast_v4(&group, &own).expect("join");
        socket.set_nonblocking(true).expect("nonblocking");
        Device { socket }
    });
    let answer = |st: &str| String::from_utf8_lossy(FOUND).replace("upnp:rootdevice", st);
    let target = "urn:schemas-upnp-org:device:MediaServer:1";
    let socket = asker(&site.containers[0], "0.0.0.0:0");
    let ask = |st: &str| {
        let question = String::from_utf8_lossy(SEARCH).replace("ssdp:all", st);
        socket
            .send_to(question.as_bytes(), "239.255.255.250:1900")
            .expect("a question");
    };
    let withheld = |reason: &str, kind: &str| {
        let labels = [("reason", reason), ("kind", kind)];
        router.metric("mcastor_discovery_withheld_total", &labels)
    };
    ask("urn:schemas-upnp-org:device:Printer:1");
    eventually("the other question is withheld", 1.0, || {
        withheld("not_allowed", "question")
    });
    ask("ssdp:all");
    // Both devices answer twice: with another target, and with the allowed one.
    let mut sources = [Vec::new(), Vec::new()];
    let asked = wait_until(TIMEOUT, || {
        sources[0].extend(server.answer(answer("upnp:rootdevice").as_bytes()));
        sources[1].extend(denied.answer(answer(target).as_bytes()));
        sources.iter().all(|sources| !sources.is_empty())
    });
    assert!(asked);
    server
        .socket
        .send_to(answer(target).as_bytes(), sources[0][0])
        .expect("an answer");
    let mut received = Vec::new();
    let arrived = wait_until(TIMEOUT, || {
        received.extend(answers(&socket));
        !received.is_empty()
    });
    assert!(arrived);
    eventually("the denied answer", 1.0, || withheld("denied", "answer"));
    eventually("the other answer", 1.0, || {
        withheld("not_allowed", "answer")
    });
    received.extend(answers(&socket));
    let from: Vec<SocketAddr> = received.iter().map(|(_, source)| *source).collect();
    assert_eq!(from, ["10.0.0.10:1900".parse().expect("address")]);
    assert_eq!(sources.map(|sources| sources.len()), [1, 1]);
}

/// A reload applies new rules, starts discovery, and ends it.
fn reload_changes_what_crosses(lab: &Lab) {
    let site = site(lab, 1);
    let router = start(lab, &site, &discovery("\"239.1.2.3:5000\"", ""));
    let device = Device::join(&site.device, "239.1.2.3:5000");
    let is_answered = |text: &str| {
        let socket = asker(&site.containers[0], "0.0.0.0:0");
        socket
            .send_to(text.as_bytes(), "239.1.2.3:5000")
            .expect("a question");
        wait_until(Duration::from_millis(500), || {
            device.answer(b"answer");
            !answers(&socket).is_empty()
        })
    };
    let mut n = 0;
    let mut eventually_answered = |expected: bool| {
        eventually("answered", expected, || {
            n += 1;
            is_answered(&format!("{n}"))
        });
    };
    eventually_answered(true);
    for (settings, expected) in [
        (
            discovery("\"239.1.2.3:5000\"", "deny = [{ from = \"eth0\" }]"),
            false,
        ),
        (discovery("\"239.1.2.3:5000\"", ""), true),
        (String::new(), false),
        (discovery("\"239.1.2.3:5000\"", ""), true),
    ] {
        router.write_settings(&settings);
        router.run("reload");
        eventually_answered(expected);
    }
    // No route forwards the packet itself, so the command fails.
    let explained = router
        .try_run("explain --iif br0 172.20.0.2 239.1.2.3:5000")
        .stdout;
    let explained = String::from_utf8_lossy(&explained).into_owned();
    assert!(
        explained.contains("relays 239.1.2.3:5000 messages"),
        "{explained}"
    );
}

/// A VPN: the far end of a tun interface asks, and has the answer of a device of the LAN.
fn questions_cross_a_tunnel_without_addresses(lab: &Lab) {
    let site = site(lab, 0);
    let tun = Tun::new(&site.rtr, "vpn0");
    site.rtr.ip("address add 10.9.0.1/24 dev vpn0");
    site.rtr.ip("link set vpn0 up");
    let settings = "[[discovery]]\nfrom = [\"eth0\"]\nto = [\"vpn0\"]\nprotocols = [\"ssdp\"]\n";
    let router = Router::start(lab, &site.rtr, settings);
    eventually("the tunnel is open", true, || {
        (router.program.stderr() + &router.program.stdout()).contains("taking part on vpn0")
    });
    let device = Device::join(&site.device, "239.255.255.250:1900");
    let question = Udp::new("10.9.0.2:4000", "239.255.255.250:1900", SEARCH)
        .ttl(2)
        .frame();
    tun.write(&question[14..]);
    let mut answer = None;
    let arrived = wait_until(TIMEOUT, || {
        device.answer(FOUND);
        let packets = tun.read();
        let packets = packets
            .iter()
            .filter_map(|p| IpPacket::parse(&[&[0; 12], &[8, 0][..], p].concat()));
        answer = packets
            .into_iter()
            .find(|p| p.dst == IpAddr::from([10, 9, 0, 2]));
        answer.is_some()
    });
    assert!(arrived);
    let answer = answer.expect("an answer");
    assert_eq!(
        (answer.src, answer.payload()),
        (IpAddr::from([10, 0, 0, 10]), FOUND)
    );
    assert!(answer.udp_ok());
}
