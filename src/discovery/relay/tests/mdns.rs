//! Questions and answers of multicast DNS.

use super::*;

/// The question for instances of `_http._tcp`, without its class.
const HTTP: &[u8] = b"\x05_http\x04_tcp\x05local\x00\x00\x0c";

/// A PTR record of `_http._tcp`, whose name is at offset 12 of the message.
fn instance(name: &str) -> Vec<u8> {
    let rdata = [&[name.len() as u8], name.as_bytes(), &[0xc0, 12]].concat();
    let head = b"\x00\x0c\x00\x01\x00\x00\x11\x94\x00";
    [&head[..], &[rdata.len() as u8], &rdata].concat()
}

/// A question for `_http._tcp`, with the known answers.
pub(super) fn http_question(wants_unicast: bool, known: &[&str]) -> Vec<u8> {
    let class: &[u8] = if wants_unicast {
        b"\x80\x01"
    } else {
        b"\x00\x01"
    };
    let mut bytes = vec![0, 0, 0, 0, 0, 1, 0, known.len() as u8, 0, 0, 0, 0];
    bytes.extend([HTTP, class].concat());
    for name in known {
        bytes.extend([&[0xc0, 12][..], &instance(name)].concat());
    }
    bytes
}

pub(super) fn http_response(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    bytes.extend(&HTTP[..HTTP.len() - 2]);
    bytes.extend(instance(name));
    bytes
}

/// Handles a message of multicast DNS. Returns the links and destinations of what is sent.
pub(super) fn sent_by(
    relay: &mut DiscoveryRelay,
    at: Instant,
    (link, from): (u32, &str),
    payload: &[u8],
) -> Vec<(u32, String)> {
    let from = format!("{from}:5353");
    let received = message(link, &from, MDNS, payload);
    let sent = relay.handle(at, &received, &mut AnyPort::default());
    let end = |sent: &OutgoingMessage| {
        let datagram = UdpDatagram::parse(&sent.packet, true).unwrap();
        (sent.link.get(), datagram.destination.to_string())
    };
    sent.iter().map(end).collect()
}

/// Returns links 2 and 3 with the group, where messages of link 1 are multicast.
pub(super) fn on_other_links() -> Vec<(u32, String)> {
    vec![(2, MDNS.into()), (3, MDNS.into())]
}

/// A host that starts while another one has just asked need not wait until it asks again: it has the
/// answer that was relayed a moment ago, by unicast, unless it knows it.
#[test]
fn second_asker_has_the_answer_of_a_moment_ago() {
    let (mut relay, now) = (relay(vec![], Default::default()), Instant::now());
    let ms = |n| now + Duration::from_millis(n);
    let (first, second) = ((1, "10.0.1.8"), (1, "10.0.1.9"));
    let asked = sent_by(&mut relay, now, first, &http_question(false, &[]));
    assert_eq!(asked, on_other_links());
    let device = (2, "10.0.2.9");
    let answered = sent_by(&mut relay, ms(50), device, &http_response("shelf"));
    assert_eq!(answered, [(1, MDNS.into()), (3, MDNS.into())]);
    let question = http_question(true, &[]);
    let answer = [(1, "10.0.1.9:5353".to_string())];
    assert_eq!(sent_by(&mut relay, ms(300), second, &question), answer);
    // Who asks for a multicast answer waits for the device.
    let multicast = http_question(false, &[]);
    assert!(sent_by(&mut relay, ms(305), second, &multicast).is_empty());
    let knows = http_question(true, &["shelf"]);
    assert!(sent_by(&mut relay, ms(310), second, &knows).is_empty());
    let other_kind = [&question[..12], b"\x04_ipp", &question[18..]].concat();
    let asked = sent_by(&mut relay, ms(315), second, &other_kind);
    assert_eq!(asked, on_other_links());
    // RFC 6762 section 11: hosts beyond the link are not answered.
    assert!(sent_by(&mut relay, ms(320), (1, "192.0.2.9"), &question).is_empty());
    let elsewhere = sent_by(&mut relay, ms(330), (3, "10.0.3.9"), &question);
    assert_eq!(elsewhere, [(3, "10.0.3.9:5353".into())]);
    // The device is asked again after a second. Its first answer is old.
    let later = sent_by(&mut relay, ms(3000), second, &question);
    assert_eq!(later, on_other_links());
}

/// Twenty hosts that ask one after another all the time do not keep the question from the device.
#[test]
fn question_of_many_askers_crosses_each_second() {
    let (mut relay, now) = (relay(vec![], Default::default()), Instant::now());
    let question = http_question(false, &[]);
    let crossed = (0..200u64).filter(|n| {
        let asker = format!("10.0.1.{}", 10 + n % 20);
        let at = now + Duration::from_millis(50 * n);
        sent_by(&mut relay, at, (1, &asker), &question) == on_other_links()
    });
    assert_eq!(crossed.count(), 13, "in 10 s");
}

/// Devices leave a question unanswered whose asker knows all answers, so it is no reason to withhold
/// that of a host that knows none (RFC 6762 section 7.3).
#[test]
fn known_answers_of_one_asker_do_not_withhold_questions_of_others() {
    let (mut relay, now) = (relay(vec![], Default::default()), Instant::now());
    let ms = |n| now + Duration::from_millis(n);
    sent_by(&mut relay, now, (2, "10.0.2.9"), &http_response("shelf"));
    let mut ask =
        |at, from, known: &[&str]| sent_by(&mut relay, at, (1, from), &http_question(false, known));
    assert_eq!(ask(ms(5000), "10.0.1.8", &["shelf"])[0], (2, MDNS.into()));
    assert_eq!(ask(ms(5100), "10.0.1.9", &[])[0], (2, MDNS.into()));
    assert!(ask(ms(5200), "10.0.1.9", &[]).is_empty());
    // Crossed 850 ms ago; the question for more did so 750 ms ago.
    assert!(ask(ms(5850), "10.0.1.8", &["shelf"]).is_empty());
}

/// One station can announce any number of instances. The newest eight are sent to who asks.
#[test]
fn answers_of_a_moment_ago_are_limited() {
    let (mut relay, now) = (relay(vec![], Default::default()), Instant::now());
    let device = (2, "10.0.2.9");
    for n in 0..200 {
        let response = http_response(&format!("shelf-{n:03}"));
        assert_eq!(sent_by(&mut relay, now, device, &response).len(), 2);
    }
    let received = &http_question(true, &[]);
    let received = message(1, "10.0.1.9:5353", MDNS, received);
    let sent = relay.handle(now, &received, &mut AnyPort::default());
    let answers = sent.iter().filter(|sent| sent.kind.1 == "answer");
    let instances: Vec<String> = answers
        .map(|sent| {
            let at = sent.packet.windows(6).position(|bytes| bytes == b"shelf-");
            let at = at.expect("an instance");
            String::from_utf8_lossy(&sent.packet[at..at + 9]).into_owned()
        })
        .collect();
    let newest: Vec<String> = (192..200).map(|n| format!("shelf-{n:03}")).collect();
    assert_eq!(instances, newest);
}

/// An answer may hold an address that has changed since.
#[test]
fn recent_answers_are_forgotten_when_links_change() {
    let (mut relay, now) = (relay(vec![], Default::default()), Instant::now());
    sent_by(&mut relay, now, (2, "10.0.2.9"), &http_response("shelf"));
    relay.set_links(links(), PublishedPorts::new(), &mut AnyPort::default());
    let question = http_question(true, &[]);
    let asked = sent_by(&mut relay, now, (1, "10.0.1.9"), &question);
    assert_eq!(asked, on_other_links());
}

/// In a rule of one direction, an asker's known answers cross if they came from there: the device
/// need not repeat them. Others are offers of the asker's side.
#[test]
fn known_answers_cross_in_a_rule_of_one_direction() {
    let rule = DiscoveryRule {
        between: Vec::new(),
        from: vec!["e2".parse().unwrap()],
        to: vec!["e1".parse().unwrap()],
        ..rule(OfferPolicy::default(), DiscoveryLimits::default())
    };
    let (mut relay, now) = (relay_of(rule), Instant::now());
    let announced = sent_by(&mut relay, now, (2, "10.0.2.9"), &http_response("shelf"));
    assert_eq!(announced, [(1, MDNS.into())]);
    let known = &http_question(false, &["shelf", "secret"]);
    let received = message(1, "10.0.1.9:5353", MDNS, known);
    let sent = relay.handle(now, &received, &mut AnyPort::default());
    let [sent] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    let has = |word: &[u8]| sent.packet.windows(word.len()).any(|bytes| bytes == word);
    assert!(has(b"shelf") && !has(b"secret"), "{sent:?}");
}
