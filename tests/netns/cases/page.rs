//! The page at `/`, and the event stream that it shows: as an HTTP client gets them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use mcastor::frontend::http::page_files;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{cases, route, star_v4};
use crate::lab::http::{self, Events};
use crate::lab::{Injector, Lab, Router, Star, Udp, eventually};

cases!("page":
    #[Program("curl", "curl")] files_are_served_compressed_and_with_their_policy,
    page_is_a_part_of_the_api,
    events_have_what_has_changed,
    events_of_each_view_have_its_tables,
    flows_are_searched_and_paged,
    event_streams_are_limited,
    client_that_reads_no_events_is_closed,
);

const ADDRESS: &str = "127.0.0.1:9464";
const GROUP: &str = "225.1.2.3";

fn address() -> SocketAddr {
    ADDRESS.parse().expect("an address")
}

fn events(star: &Star, query: &str) -> Events {
    Events::open(&star.rtr, address(), &format!("/api/v1/events?{query}"))
}

fn files_are_served_compressed_and_with_their_policy(lab: &Lab) {
    let (star, _router) = star_v4(lab, 1);
    let curl = |arguments: &[&str], path: &str| {
        let url = format!("http://{ADDRESS}{path}");
        let arguments = [&["-sS", "--max-time", "5"], arguments, &[&url]].concat();
        let out = star.rtr.output("curl", &arguments);
        assert!(out.status.success(), "{path}: {out:?}");
        out.stdout
    };
    let head = |arguments: &[&str], path: &str| {
        let head = curl(&[&["-D", "-", "-o", "/dev/null"], arguments].concat(), path);
        String::from_utf8_lossy(&head).to_lowercase()
    };
    assert!(page_files().len() > 5);
    let mut sent = 0;
    for file in page_files() {
        let path = file.path;
        assert!(curl(&["--compressed"], path) == file.bytes, "{path}, gzip");
        assert!(curl(&[], path) == file.bytes, "{path}, identity");
        sent += curl(&["-H", "Accept-Encoding: gzip"], path).len();
        let head_text = head(&["--compressed"], path);
        for line in [
            "http/1.1 200 ok\r\n".to_owned(),
            format!("content-type: {}\r\n", file.media_type),
            "content-encoding: gzip\r\n".into(),
            "content-security-policy: default-src 'none'; script-src 'self';".into(),
            "frame-ancestors 'none'".into(),
            "x-content-type-options: nosniff\r\n".into(),
            "referrer-policy: no-referrer\r\n".into(),
            "cache-control: no-cache\r\n".into(),
        ] {
            assert!(head_text.contains(&line), "{path}, {line:?}: {head_text}");
        }
        let etag = head_text
            .lines()
            .find_map(|line| line.strip_prefix("etag: w/"));
        let etag = etag.unwrap_or_else(|| panic!("no etag: {head_text}"));
        let known = head(&["-H", &format!("If-None-Match: W/{etag}")], path);
        assert!(known.starts_with("http/1.1 304 "), "{path}: {known}");
    }
    println!("{sent} bytes in {} files", page_files().len());
    assert!(sent < 100_000, "{sent} bytes");
}

/// The page is protected and turned off like the API.
fn page_is_a_part_of_the_api(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let status = |method: &str, path: &str, host: &str| {
        let text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = http::request(&star.rtr, address(), &text);
        answer.expect("an answer").status
    };
    assert_eq!(status("GET", "/", "localhost"), 200);
    for path in ["/", "/page/main.js", "/api/v1/events"] {
        assert_eq!(status("GET", path, "evil.example"), 421, "{path}");
        assert_eq!(status("POST", path, "localhost"), 404, "{path}");
    }
    for path in ["/page/absent.js", "/page/", "/page/../page/main.js"] {
        assert_eq!(status("GET", path, "localhost"), 404, "{path}");
    }
    router.stop();
    let toml = "[http]\napi = false\n".to_string() + &route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    for path in ["/", "/page/main.js", "/api/v1/events"] {
        assert_eq!(router.get(path).expect("an answer").status, 404, "{path}");
    }
}

fn send(inject: &Injector, group: &str, packets: usize) {
    let frame = Udp::new("10.0.0.10:9", &format!("{group}:5000"), "x").frame();
    (0..packets).for_each(|_| inject.send(&frame));
}

/// The counters of a flow and of interfaces are those of the packets that were sent, and an event
/// has nothing that the client knows already.
fn events_have_what_has_changed(lab: &Lab) {
    let (star, _router) = star_v4(lab, 1);
    let inject = Injector::new(&star.src, "eth0");
    send(&inject, GROUP, 300);
    let key = format!("in 10.0.0.10 {GROUP}");
    let flow = |state: &Value| state["tables"]["flows"]["rows"][&key].clone();
    let mut flows = events(&star, "view=flows");
    assert!(
        flows.head.contains("content-type: text/event-stream\r\n"),
        "{}",
        flows.head
    );
    flows.read_until("300 packets", |state| flow(state)["packets"] == 300);
    let first = flow(&flows.state);
    assert_eq!(
        (&first["route"], &first["oifs"]),
        (&json!("r"), &json!(["out1"]))
    );
    let mut interfaces = events(&star, "view=interfaces");
    let counts = |state: &Value| {
        let rows = &state["tables"]["interfaces"]["rows"];
        let count = |name: &str, counter: &str| rows[name][counter].as_u64().unwrap_or(0);
        (
            count("in", "received_packets"),
            count("out1", "transmitted_packets"),
        )
    };
    interfaces.read_until("300 packets", |state| counts(state) == (300, 300));

    send(&inject, GROUP, 200);
    let mut patches = Vec::new();
    while flow(&flows.state)["packets"] != 500 {
        patches.push(flows.next());
    }
    for patch in &patches {
        let row = &patch["tables"]["flows"]["rows"][&key];
        for property in ["source", "group", "route", "oifs", "iif"] {
            assert_eq!(row.get(property), None, "{patch}");
        }
        assert_eq!(patch["router"].get("version"), None, "{patch}");
        assert_eq!(patch["tables"]["flows"].get("order"), None, "{patch}");
    }
    interfaces.read_until("500 packets", |state| counts(state) == (500, 500));
    let rates = |state: &Value| flow(state)["rates"]["packets"].as_f64();
    flows.read_until("a rate", |state| {
        rates(state).is_some_and(|rate| rate > 0.0)
    });
    flows.read_until("no rate", |state| rates(state) == Some(0.0));
}

fn events_of_each_view_have_its_tables(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let inject = Injector::new(&star.src, "eth0");
    send(&inject, "225.6.6.6", 7);
    for (view, tables) in [
        (
            "overview",
            &["drops", "flows", "interfaces", "pending", "streams"][..],
        ),
        ("interfaces", &["interfaces"]),
        ("routes", &["pending", "routes"]),
        ("flows", &["flows"]),
        ("streams", &["streams"]),
        ("groups", &["groups"]),
        ("drops", &["drops"]),
        ("tunnels", &["tunnels"]),
        ("discovery", &["askers", "offers", "protocols", "questions"]),
        ("mnat", &["mappings", "mnat"]),
    ] {
        let mut events = events(&star, &format!("view={view}"));
        let state = events.next();
        let found = state["tables"].as_object().expect("tables");
        let found: Vec<&String> = found.keys().collect();
        assert_eq!(found, tables, "{view}");
        assert_eq!(state["router"]["is_ready"], true);
    }
    let mut drops = events(&star, "view=drops&search=225.6.0.0/16");
    let key = "in no_route 10.0.0.10 225.6.6.6";
    let row = |state: &Value| state["tables"]["drops"]["rows"][key].clone();
    drops.read_until("the drops", |state| row(state)["packets"] == 7);
    assert!(row(&drops.state)["remedy"].is_string());
    let text = router
        .get("/api/v1/events?order=x&view=flows")
        .expect("an answer");
    assert_eq!(text.status, 400, "{}", text.body);
}

/// The API and the event stream find the same flows.
fn flows_are_searched_and_paged(lab: &Lab) {
    const FLOWS: usize = 300;
    let star = Star::v4(lab, 1);
    let settings = route("many", "in", "", "225.2.0.0/16", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings);
    let inject = Injector::new(&star.src, "eth0");
    let group = |n: usize| format!("225.2.{}.{}", n / 256, n % 256);
    (0..FLOWS).for_each(|n| send(&inject, &group(n), 1));
    let show = |query: &str| -> Value {
        let answer = router
            .get(&format!("/api/v1/flows?{query}"))
            .expect("an answer");
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        answer["show"].clone()
    };
    eventually("all flows", json!(FLOWS), || {
        show("limit=1")["total"].clone()
    });
    let page = show("order=address&offset=298&limit=50");
    let groups = |rows: &Value| -> Vec<String> {
        let rows = rows.as_array().expect("rows");
        rows.iter()
            .map(|row| row["group"].as_str().expect("a group").into())
            .collect()
    };
    assert_eq!(groups(&page["flows"]), [group(298), group(299)]);
    assert_eq!(page["total"], FLOWS);
    let found = show("search=many%20225.2.1.0/24&order=address");
    assert_eq!(
        (found["total"].as_u64(), groups(&found["flows"])[0].clone()),
        (Some(44), group(256))
    );
    assert_eq!(show("search=absent"), json!({"flows": [], "total": 0}));

    let query = "view=flows&search=many%20225.2.1.0/24&order=address&offset=40&limit=2";
    let mut events = events(&star, query);
    let table = events.next()["tables"]["flows"].clone();
    let key = |n: usize| format!("in 10.0.0.10 {}", group(n));
    assert_eq!(table["order"], json!([key(296), key(297)]));
    assert_eq!(
        (&table["total"], &table["offset"]),
        (&json!(44), &json!(40))
    );
}

fn event_streams_are_limited(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let mut open: Vec<Events> = (0..16).map(|_| events(&star, "view=routes")).collect();
    open.iter_mut().for_each(|events| _ = events.next());
    let refused = router.get("/api/v1/events").expect("an answer");
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(
        refused.body.contains("event streams are open"),
        "{}",
        refused.body
    );
    let labels = [("reason", "event_streams")];
    router.expect_metric("mcastor_http_refused_total", &labels, 1);
    let foreign =
        "GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\n\r\n";
    let refused = star.rtr.enter(|| {
        let mut socket = TcpStream::connect(address()).expect("a connection");
        socket.write_all(foreign.as_bytes()).expect("a request");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map(|_| answer)
    });
    let refused = refused.expect("an answer");
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let labels = [("reason", "cross_site")];
    router.expect_metric("mcastor_http_refused_total", &labels, 1);
    // A write to a client that has gone fails.
    open.truncate(8);
    eventually("another stream is permitted", true, || {
        events(&star, "view=routes")
            .head
            .starts_with("http/1.1 200")
    });
}

/// The server keeps no events for a client that does not read them, and closes its connection.
fn client_that_reads_no_events_is_closed(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let settings = route("many", "in", "", "225.2.0.0/16", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings);
    let inject = Injector::new(&star.src, "eth0");
    let send_to_all = || (0..200).for_each(|n| send(&inject, &format!("225.2.0.{n}"), 1));
    send_to_all();
    let stalled = star.rtr.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a size");
        socket.connect(&address().into()).expect("a connection");
        socket
    });
    let request = b"GET /api/v1/events?view=flows&limit=200 HTTP/1.1\r\nHost: a\r\n\r\n";
    (&stalled).write_all(request).expect("a request");
    // Not after the longest time of any connection, which has the same reason.
    eventually("the connection is closed", true, || {
        send_to_all();
        let log = router.program.stderr();
        log.contains("did not read its answer for 5 s")
    });
    let labels = [("reason", "write_timeout")];
    router.expect_metric("mcastor_http_refused_total", &labels, 1);
    let rows = events(&star, "view=flows&limit=200").next()["tables"]["flows"]["total"].clone();
    assert_eq!(rows, 200, "for another client");
}
