//! The OpenAPI document: live answers of every path of `/api/v1` are validated against it.

use std::path::Path;
use std::process::Command;

use mcastor::api::events::EVENTS_PATH;
use mcastor::api::openapi::{OPENAPI_PATH, api_paths};
use serde_json::{Value, json};

use super::{cases, route};
use crate::lab::http::{self, Answer, Events};
use crate::lab::mnat::Ca;
use crate::lab::proxy::{join_source, proxy};
use crate::lab::{GroupMember, Injector, Lab, Router, Star, Udp, eventually};

cases!("openapi":
    #[Python("jsonschema", "python3-jsonschema")]
    answers_match_the_document,
);

/// Properties that only answers of the eBPF plane have, which not every kernel can run.
const PLANE_PROPERTIES: [&str; 2] = [
    "no answer has the property ExplainedIngress.declined",
    "no answer has the property FlowView.declined",
];

/// Answers, one JSON object for each: the input of `check.py`.
#[derive(Default)]
struct Answers(String);

impl Answers {
    fn add(&mut self, path: &str, answer: &Answer) {
        let media_type = answer.head.lines().find_map(|line| {
            let value = line.strip_prefix("content-type: ")?;
            value.split(';').next()
        });
        let line = json!({
            "path": path,
            "status": answer.status,
            "type": media_type,
            "body": answer.body,
        });
        self.0 += &format!("{line}\n");
    }

    fn get(&mut self, router: &Router, path: &str, status: u16) -> Value {
        let answer = router.get(path).expect("an answer");
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        self.add(path, &answer);
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// Returns the problems that `check.py` finds.
    fn problems(&self, lab: &Lab, document: &Value) -> Vec<String> {
        let (document_file, answers_file) = (lab.file("openapi.json"), lab.file("answers"));
        std::fs::write(&document_file, document.to_string()).expect("the document");
        std::fs::write(&answers_file, &self.0).expect("the answers");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = Command::new("/usr/bin/python3")
            .arg(root.join("tests/openapi/check.py"))
            .args([document_file, answers_file])
            .output()
            .expect("python3");
        let printed = String::from_utf8_lossy(&out.stdout);
        let problems: Vec<String> = printed.lines().map(String::from).collect();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.success(), problems.is_empty(), "{stderr}");
        problems
    }
}

/// Returns settings with which each field of the answers has a value: routes, one of which
/// translates, one waits, one is monitored, and one merges two paths; a proxy with two upstream
/// interfaces; an end of multicast NAT whose server does not answer; and both ends of a tunnel.
fn settings(lab: &Lab) -> String {
    let (ca, joins) = (lab.file("ca.pem"), lab.file("joins"));
    std::fs::write(&ca, Ca::new().pem()).expect("the CA");
    std::fs::write(&joins, "10.0.0.10,232.1.1.1\n").expect("the joinfile");
    let rewrite = "[route.rewrite]\ngroup = \"225.8.8.8\"\n";
    [
        route("r", "in", "10.0.0.10", "225.1.2.3", &["out1", "out2"], ""),
        route("new", "in", "", "225.9.9.9", &["out1"], rewrite),
        route("late", "in", "", "225.7.7.7", &["absent0"], ""),
        route(
            "seen",
            "in",
            "",
            "225.5.5.5",
            &["out1"],
            "monitor = \"rtp\"\n",
        ),
        route(
            "feed",
            "in",
            "",
            "225.4.4.4",
            &["out1"],
            "merge = { with = \"out3\", window = \"50ms\" }\n",
        ),
        "[[interface]]\nname = \"out2\"\nttl_threshold = 32\nbandwidth = \"1Gbit\"\n".into(),
        proxy(
            &["in", "out3"],
            &["out1"],
            "deny_groups = [\"239.7.0.0/16\"]\n",
        ),
        format!(
            "[mnat]\nrole = \"egress\"\nserver = \"https://10.0.0.10:8443\"\nca = \"{}\"\n\
             upstream = \"in\"\ndownstream = \"out4\"\njoinfile = \"{}\"\n",
            ca.display(),
            joins.display()
        ),
        // The gateway of its own relay.
        "[[amt.relay]]\nname = \"tunnels\"\nlisten = [\"10.0.0.1:2268\"]\n\
         advertise = [\"10.0.0.1\"]\n[[amt.gateway]]\nname = \"tun\"\nrelay = \"10.0.0.1\"\n\
         [[join]]\ninterface = \"tun\"\nsource = \"10.0.0.10\"\ngroup = \"232.9.9.9\"\n"
            .into(),
        "[[discovery]]\nbetween = [\"in\", \"out2\"]\nprotocols = [\"ssdp\"]\n\
         deny = [{ st = \"secret\" }]\n"
            .into(),
    ]
    .concat()
}

/// Each path answers with each status that a test can cause. All answers match the document that
/// the router serves, and together they have each of its properties. If the document lacks a
/// property, or declares another type, this is reported.
fn answers_match_the_document(lab: &Lab) {
    let star = Star::v4(lab, 4);
    let router = Router::start(lab, &star.rtr, &settings(lab));
    let _member = GroupMember::any_source(&star.rcv, "eth1", "239.1.2.3");
    let _source_member = join_source(&star.rcv, "eth1", "10.0.0.10", "239.1.2.4");
    let _denied = GroupMember::any_source(&star.rcv, "eth1", "239.7.1.1");
    let inject = Injector::new(&star.src, "eth0");
    let refused = || {
        let answer = router.get("/api/v1/explain?iif=in&source=10.0.0.10&group=239.7.1.1");
        answer.expect("an answer").body.contains("group_denied")
    };
    eventually("the report is refused", true, refused);
    eventually("both ends of a tunnel", 2, || {
        let answer = router.get("/api/v1/tunnels").expect("an answer");
        answer.body.matches("\"role\"").count()
    });
    let send = |group: &str, ttl: u8| {
        let to = format!("{group}:5000");
        inject.send(&Udp::new("10.0.0.10:9", &to, "x").ttl(ttl).frame());
    };
    eventually("the member gets packets", true, || {
        send("239.1.2.3", 9);
        router.metric("mcastor_route_packets_total", &[("oif", "out1")]) > 0.0
    });
    eventually("an offer and a question", true, || {
        for text in [
            "NOTIFY * HTTP/1.1\r\nNT: secret\r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n",
        ] {
            let to = "239.255.255.250:1900";
            inject.send(&Udp::new("10.0.0.10:1900", to, text).ttl(2).frame());
        }
        let answer = router.get("/api/v1/discovery").expect("an answer");
        answer.body.contains("\"denied\"") && answer.body.contains("\"asker\"")
    });
    // RTP with MPEG-TS.
    let mut number = 0u16;
    eventually("the health of a stream", true, || {
        number += 1;
        let mut payload = vec![0x80, 33];
        payload.extend(number.to_be_bytes());
        payload.extend([0; 8]);
        payload.extend([[0x47; 188]; 7].concat());
        let packet = Udp::new("10.0.0.10:9", "225.5.5.5:5004", payload);
        inject.send(&packet.ttl(9).frame());
        let answer = router.get("/api/v1/streams").expect("an answer");
        answer.body.contains("\"delay_factor_us\"")
    });
    send("225.1.2.3", 64);
    send("225.6.6.6", 64);
    for path in ["/api/v1/drops", "/api/v1/flows?dropped=true"] {
        let is_listed = || {
            let answer = router.get(path).expect("an answer");
            answer.body.contains("225.6.6.6")
        };
        eventually("the dropped packet is listed", true, is_listed);
    }

    let mut answers = Answers::default();
    for path in api_paths() {
        if !["/api/v1/explain", EVENTS_PATH].contains(&path.as_str()) {
            answers.get(&router, &path, 200);
        }
    }
    let address = "127.0.0.1:9464".parse().expect("an address");
    let events = Events::open(&star.rtr, address, EVENTS_PATH);
    let events = Answer {
        status: 200,
        head: events.head,
        body: "data: {}".into(),
    };
    answers.add(EVENTS_PATH, &events);
    let document = answers.get(&router, OPENAPI_PATH, 200);
    for arguments in [
        "flows?dropped=true&order=packets&limit=10",
        "flows?search=in%20239.0.0.0/8&order=rate&offset=1",
        "drops?iif=in&limit=1",
        "streams?iif=in&limit=1",
        "explain?source=10.0.0.10&group=239.7.1.1&iif=in",
        "explain?source=10.0.0.10&group=239.1.2.3&iif=in",
        "explain?source=10.0.0.10&group=225.1.2.3&ttl=1",
        "explain?source=10.0.0.10&group=225.1.2.3&ttl=9",
        "explain?source=10.0.0.10&group=225.9.9.9",
        "explain?source=10.0.0.10&group=225.4.4.4",
        "explain?source=10.0.0.10&group=225.6.6.6",
    ] {
        answers.get(&router, &format!("/api/v1/{arguments}"), 200);
    }
    for arguments in [
        "flows?limit=x",
        "flows?iif=absent0",
        "events?view=absent",
        "events?limit=1000",
        "drops?limt=1",
        "streams?limt=1",
        "drops?source=a%E2%80%AEb",
        "explain",
        "explain?source=10.0.0.10&group=10.0.0.9",
    ] {
        let answer = answers.get(&router, &format!("/api/v1/{arguments}"), 400);
        let keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["error", "version"]);
    }
    for path in api_paths() {
        let text = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        let answer = http::request(&star.rtr, address, &text).expect("an answer");
        assert_eq!(answer.status, 421);
        answers.add(&path, &answer);
    }
    router.stop();
    let without_api = "[http]\napi = false\n".to_string() + &settings(lab);
    let router = Router::start(lab, &star.rtr, &without_api);
    for path in api_paths() {
        answers.get(&router, &path, 404);
    }

    let mut problems = answers.problems(lab, &document);
    problems.retain(|problem| !PLANE_PROPERTIES.iter().any(|name| problem.ends_with(name)));
    assert_eq!(problems, Vec::<String>::new());
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let committed = std::fs::read_to_string(committed).expect("the document");
    let committed: Value = serde_json::from_str(&committed).expect("JSON");
    assert!(document == committed, "the router serves another document");

    for (at, expected) in [
        ("InterfaceView/properties/mtu", "('mtu' was unexpected)"),
        ("QuerierView/properties/us", "('us' was unexpected)"),
        ("Error/properties/error", "('error' was unexpected)"),
    ] {
        let (parent, name) = at.rsplit_once('/').expect("a parent");
        let mut without = document.clone();
        let parent = without.pointer_mut(&format!("/components/schemas/{parent}"));
        let parent = parent.and_then(Value::as_object_mut).expect("properties");
        parent.remove(name).expect("the property");
        let problems = answers.problems(lab, &without).join("\n");
        assert!(problems.contains(expected), "{at}: {problems}");
    }
    let mut other_type = document.clone();
    other_type["components"]["schemas"]["FlowView"]["properties"]["age_ms"]["type"] =
        "string".into();
    let problems = answers.problems(lab, &other_type).join("\n");
    assert!(problems.contains("is not of type 'string'"), "{problems}");
}
