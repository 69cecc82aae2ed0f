//! Replays recorded exchanges between the prototype's clients and server.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mcastor::mnat::client::MnatClient;
use mcastor::mnat::protocol::{self, MnatRequest, Op, ServerResponse};
use mcastor::mnat::{Channel, Machine, MappingChange, MappingStatus, MnatEvent, MnatRole};
use serde_json::{Value, json};

use super::server::{Ca, Files, ReceivedRequest, Reply, Server};
use super::{block_on, target, tls};

fn recording(name: &str) -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mnat/recordings");
    let text = std::fs::read_to_string(directory.join(format!("recorded-{name}.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Returns the bytes of a recorded body.
fn bytes(body: &Value) -> Vec<u8> {
    match body {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or(Value::Null)
}

/// One recorded request with its response.
struct Exchange {
    /// Time in the recording, in seconds.
    at: f64,
    method: String,
    path: String,
    /// `None` if the body was not recorded.
    body: Option<Value>,
    /// `None` if the server dropped the connection.
    answer: Option<(u16, Vec<u8>)>,
}

impl Exchange {
    fn parse(line: &Value) -> Option<Self> {
        let at = line["t_s"].as_f64().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap().to_string();
        if line["event"] == "request-without-response" {
            return Some(Self {
                at,
                method: text(&line["method"]),
                path: text(&line["path"]),
                body: None,
                answer: None,
            });
        }
        let (request, response) = (line.get("request")?, line.get("response")?);
        let status = response["status"].as_u64().map(|s| s as u16);
        Some(Self {
            at,
            method: text(&request["method"]),
            path: text(&request["path"]),
            body: Some(request["body"].clone()),
            answer: status.map(|s| (s, bytes(&response["body"]))),
        })
    }

    fn matches(&self, request: &ReceivedRequest) -> bool {
        let body = self.body.as_ref();
        self.method == request.method
            && self.path == request.path
            && body.is_none_or(|b| *b == parsed(&request.body))
    }

    fn is_change(&self) -> bool {
        self.method != "GET" && !self.path.ends_with("refresh-watcher-id")
    }
}

/// The state that the test and the server share.
#[derive(Default)]
struct Recording {
    exchanges: Vec<Exchange>,
    /// Start and end of each time during which the server was down.
    outages: Vec<(f64, f64)>,
    now: f64,
    /// Index of the next exchange that changes the state of the server.
    next: usize,
    /// Requests that are not in the recording.
    unexpected: Vec<String>,
    /// The answered requests that change the state of the server: method, path and body.
    done: Vec<(String, String, Value)>,
}

impl Recording {
    fn load(name: &str) -> Self {
        let lines = recording(name);
        let mut outages: Vec<(f64, f64)> = Vec::new();
        for line in &lines {
            let at = line["t_s"].as_f64().unwrap();
            match line["event"].as_str() {
                Some("connectionLost") => outages.push((at, f64::MAX)),
                Some("connectionMade") => {
                    if let Some(last) = outages.last_mut() {
                        last.1 = at;
                    }
                }
                _ => {}
            }
        }
        Self {
            exchanges: lines.iter().filter_map(Exchange::parse).collect(),
            outages,
            ..Self::default()
        }
    }

    fn end(&self) -> f64 {
        self.exchanges.last().unwrap().at
    }

    /// Returns true if the last recorded exchange was replayed.
    fn is_over(&self) -> bool {
        self.next == self.exchanges.len()
    }

    fn is_down(&self) -> bool {
        let within = |(from, to): &(f64, f64)| self.now >= *from && self.now < *to;
        self.outages.iter().any(within)
    }

    fn answer(&mut self, request: ReceivedRequest) -> Reply {
        let is_match = |(_, e): &(usize, &Exchange)| e.matches(&request);
        let mut matching = self
            .exchanges
            .iter()
            .enumerate()
            .filter(is_match)
            .peekable();
        if matching.peek().is_none() {
            let body = String::from_utf8_lossy(&request.body);
            let text = format!("{} {} {body}", request.method, request.path);
            self.unexpected.push(text);
            return Reply::Drop;
        }
        if self.is_down() {
            return Reply::Drop;
        }
        let matching: Vec<(usize, &Exchange)> = matching.collect();
        let changing = matching[0].1.is_change();
        let found = match changing {
            true => matching.iter().find(|(n, _)| *n >= self.next),
            // The next recorded response, or else the last one.
            false => matching.iter().find(|(_, e)| e.at >= self.now),
        };
        let found = found.or(matching.last()).copied();
        let Some((n, exchange)) = found else {
            return Reply::Drop;
        };
        let Some((status, body)) = exchange.answer.clone() else {
            return Reply::Drop;
        };
        if changing {
            self.next = n + 1;
            let body = parsed(&request.body);
            self.done.push((request.method, request.path, body));
        }
        Reply::Answer(status, body)
    }
}

/// Returns the channels of a recorded PUT.
fn joined(body: &Value) -> BTreeSet<Channel> {
    let list = body["ietf-mnat:watcher"]["joined-sg"].as_array().unwrap();
    let text = |v: &Value, name: &str| v[name].as_str().map(String::from);
    list.iter()
        .map(|e| Channel::parse(text(e, "source").as_deref(), &text(e, "group").unwrap()).unwrap())
        .collect()
}

/// The result of a replay.
struct Replay {
    machine: Machine,
    recording: Arc<Mutex<Recording>>,
    changes: Vec<(f64, MappingChange)>,
    failures: usize,
}

/// Replays a recording with a client. Joins change and the server is down at the recorded times.
/// The time is simulated. `first` are the joins at the start.
fn replay(name: &str, role: MnatRole, first: &[Channel]) -> Replay {
    let shared = Arc::new(Mutex::new(Recording::load(name)));
    let mut joins: Vec<(f64, BTreeSet<Channel>)> = Vec::new();
    for exchange in &shared.lock().unwrap().exchanges {
        if exchange.method == "PUT"
            && let Some(body) = &exchange.body
        {
            joins.push((exchange.at, joined(body)));
        }
    }
    joins.insert(0, (0.0, first.iter().copied().collect()));
    joins.reverse();
    let ca = Ca::new();
    let answers = shared.clone();
    let server = Server::local(tls(&ca), move |request| {
        answers.lock().unwrap().answer(request)
    });
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    let start = Instant::now();
    let end = shared.lock().unwrap().end();
    let mut machine = Machine::new(role, Duration::from_secs(300), start, 3);
    let (mut now, mut changes, mut failures) = (start, Vec::new(), 0);
    block_on(async {
        let mut client = MnatClient::new(target(&server, &files));
        loop {
            let due = machine.poll_timeout().unwrap();
            let next_join = joins
                .last()
                .map(|(at, _)| start + Duration::from_secs_f64(*at));
            now = now.max(next_join.map_or(due, |next_join| next_join.min(due)));
            let seconds = (now - start).as_secs_f64();
            let over = shared.lock().unwrap().is_over();
            if seconds > end || over {
                break;
            }
            shared.lock().unwrap().now = seconds;
            if next_join.is_some_and(|next_join| now >= next_join) {
                let (_, channels) = joins.pop().unwrap();
                machine.set_joins(now, &channels);
            }
            machine.handle_timeout(now);
            if let Some(request) = machine.poll_request(now) {
                let outcome = client.send(&request).await;
                println!(
                    "{seconds:.3} {} {} -> {:?}",
                    request.method,
                    request.path,
                    outcome.as_ref().map(|o| o.0).map_err(ToString::to_string)
                );
                failures += usize::from(outcome.is_err());
                let result = outcome.as_ref().map(|(s, b)| (*s, b.as_slice()));
                machine.handle_outcome(now, result.map_err(ToString::to_string));
            }
            while let Some(event) = machine.poll_event() {
                if let MnatEvent::Change(change) = event {
                    changes.push((seconds, change));
                }
            }
        }
    });
    drop(server);
    let unexpected = std::mem::take(&mut shared.lock().unwrap().unexpected);
    assert!(
        unexpected.is_empty(),
        "requests that are not in the recording: {unexpected:#?}"
    );
    Replay {
        machine,
        recording: shared,
        changes,
        failures,
    }
}

impl Replay {
    /// Checks that the client sent the recorded changes in the recorded order.
    fn assert_as_recorded(&self) {
        let recording = self.recording.lock().unwrap();
        let good = |e: &&Exchange| e.is_change() && e.answer.as_ref().is_some_and(|a| a.0 < 300);
        let recorded: Vec<_> = recording
            .exchanges
            .iter()
            .filter(good)
            .map(|e| (e.method.clone(), e.path.clone(), e.body.clone().unwrap()))
            .collect();
        assert_eq!(recording.done, recorded);
    }

    fn locals(&self) -> Vec<(String, Option<String>)> {
        let reports = self.machine.mapping_reports().into_iter();
        let text = reports.map(|s| (s.global.to_string(), s.local.map(|l| l.to_string())));
        text.collect()
    }
}

fn pairs(list: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    let owned = |(g, l): &(&str, Option<&str>)| (g.to_string(), l.map(String::from));
    list.iter().map(owned).collect()
}

#[test]
fn egress_session_is_as_recorded() {
    let played = replay("egress-session", MnatRole::Egress, &[]);
    played.assert_as_recorded();
    assert_eq!(
        played.locals(),
        pairs(&[
            ("(23.212.185.4, 232.1.1.1)", Some("(10.9.1.2, 239.1.1.6)")),
            ("(23.212.185.9, 232.1.1.9)", Some("(10.9.1.2, 239.1.1.5)")),
        ])
    );
    // Both streams continued through the restart of the server, and then exchanged their local
    // channels.
    let swaps = played.changes.iter().filter(|(at, change)| {
        assert!(
            *at < 240.0 || matches!(change, MappingChange::Swap { .. }),
            "{at} {change:?}"
        );
        matches!(change, MappingChange::Swap { .. })
    });
    assert_eq!(swaps.count(), 2);
    assert!(
        played.failures > 3,
        "the server was down: {}",
        played.failures
    );
}

#[test]
fn ingress_session_is_as_recorded() {
    let played = replay("ingress-session", MnatRole::Ingress, &[]);
    played.assert_as_recorded();
    // At the end of the recording the server has restarted without state: both mappings are held.
    let adds = |c: &(f64, MappingChange)| matches!(c.1, MappingChange::Add { .. });
    assert!(played.changes.iter().all(adds), "{:?}", played.changes);
    assert_eq!(played.machine.counts(), [0, 2, 0, 0]);
}

#[test]
fn local_groups_for_any_source_are_assigned() {
    for (name, role) in [
        ("egress-asm-group", MnatRole::Egress),
        ("ingress-asm-group", MnatRole::Ingress),
    ] {
        let joins = [("10.0.0.1", "232.1.1.1"), ("10.0.0.2", "232.1.1.2")];
        let joins = joins.map(|(s, g)| Channel::parse(Some(s), g).unwrap());
        let played = replay(name, role, &joins);
        played.assert_as_recorded();
        assert_eq!(
            played.locals(),
            pairs(&[
                ("(10.0.0.1, 232.1.1.1)", Some("(*, 239.1.1.3)")),
                ("(10.0.0.2, 232.1.1.2)", Some("(*, 239.1.1.0)")),
            ]),
            "{name}"
        );
    }
}

#[test]
fn exhausted_pool_leaves_the_second_stream_unassigned() {
    let joins = [("10.0.0.1", "232.1.1.1"), ("10.0.0.2", "232.1.1.2")];
    let joins = joins.map(|(s, g)| Channel::parse(Some(s), g).unwrap());
    // The server drops the connection for each PUT, but assigns as many mappings as it can.
    let played = replay("egress-pool-exhausted", MnatRole::Egress, &joins);
    assert!(played.failures > 3, "{}", played.failures);
    let one = ("(10.0.0.1, 232.1.1.1)", Some("(10.9.1.2, 239.1.1.0)"));
    let both = pairs(&[one, ("(10.0.0.2, 232.1.1.2)", None)]);
    assert_eq!(played.locals(), both);
    let played = replay("ingress-pool-exhausted", MnatRole::Ingress, &[]);
    played.assert_as_recorded();
    assert_eq!(played.locals(), both);
    assert_eq!(played.machine.counts(), [1, 0, 1, 0]);
}

fn op_of(method: &str, path: &str) -> Option<Op> {
    let path = path.strip_prefix("/mnat-ds/")?;
    let (head, _) = path.split_once('=').unwrap_or((path, ""));
    match (method, head) {
        ("POST", "operations/ietf-mnat:get-new-watcher-id") => Some(Op::NewWatcher),
        ("POST", "operations/ietf-mnat:refresh-watcher-id") => Some(Op::Refresh),
        ("POST", "data/ietf-mnat:egress-global-joined" | "data/ietf-mnat:ingress-watching") => {
            Some(Op::Register)
        }
        ("PUT", "data/ietf-mnat:egress-global-joined/watcher") => Some(Op::Join),
        ("GET", "data/ietf-mnat:assigned-channels/watcher") if !path.contains("mapped-sg") => {
            Some(Op::Poll)
        }
        _ => None,
    }
}

const EXCHANGES: [&str; 4] = ["assignment", "delete", "monitors", "bad-input"];

/// Every recorded response to a request of ours is parsed correctly.
#[test]
fn recorded_responses_are_parsed_correctly() {
    let (mut read, mut joins) = (0, 0);
    for name in EXCHANGES {
        for line in recording(name) {
            let Some(exchange) = Exchange::parse(&line) else {
                continue;
            };
            let (Some(op), Some((status, body))) =
                (op_of(&exchange.method, &exchange.path), &exchange.answer)
            else {
                continue;
            };
            read += 1;
            let answer = protocol::parse_response(op, *status, body);
            let value = parsed(body);
            let good = (200..300).contains(status);
            let mapped = value["ietf-mnat:watcher"][0]["mapped-sg"].as_array();
            let is_correct = match (op, &answer) {
                (Op::Poll, Ok(ServerResponse::Mappings { mappings, problems })) => {
                    let globals = mapped.unwrap().iter().map(|e| &e["global-subscription"]);
                    let distinct: BTreeSet<String> = globals.map(Value::to_string).collect();
                    problems.is_empty() && mappings.len() == distinct.len()
                }
                (Op::Poll, Ok(ServerResponse::UnknownWatcher)) => good && mapped.is_none(),
                (Op::Poll, Ok(ServerResponse::NotModified)) => *status == 304,
                (Op::Poll, Err(_)) => !good,
                (Op::NewWatcher, Ok(ServerResponse::Watcher { id, .. })) => {
                    value["watcher-id"] == **id
                }
                (Op::Refresh, Ok(ServerResponse::UnknownWatcher)) => !good,
                (Op::Join, Ok(ServerResponse::UnknownWatcher)) => *status == 404,
                (_, Ok(ServerResponse::Done)) => good,
                (_, Err(fault)) => !good && fault.to_string().contains(&status.to_string()),
                _ => false,
            };
            assert!(is_correct, "{name}: {line}: {answer:?}");
            // Our client sends the same PUT as the prototype's client.
            let body = exchange.body.unwrap();
            if op == Op::Join && good && line["note"].is_null() && name != "bad-input" {
                let id = exchange.path.split_once('=').unwrap().1;
                let ours = MnatRequest::join(id, joined(&body).into_iter());
                assert_eq!(ours.path, exchange.path);
                let (ours, theirs) = (parsed(&ours.body.unwrap()), body);
                assert_eq!(joined(&ours), joined(&theirs));
                let ids = |v: &Value| {
                    let list = v["ietf-mnat:watcher"]["joined-sg"].as_array().unwrap();
                    list.iter().map(|e| e["id"].clone()).collect::<Vec<_>>()
                };
                assert_eq!(ids(&ours), ids(&theirs));
                joins += 1;
            }
        }
    }
    assert!(read > 80 && joins >= 10, "{read} answers, {joins} joins");
}

/// Every recorded response is sent as the response to a poll. A response that is not a list of
/// mappings does not end a mapping.
#[test]
fn unrelated_responses_to_a_poll_keep_the_mapping() {
    let global = Channel::parse(Some("23.0.0.4"), "232.1.1.1").unwrap();
    let mapped = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": [{
        "id": 1, "state": "assigned-local-multicast",
        "global-subscription": { "source": "23.0.0.4", "group": "232.1.1.1" },
        "local-mapping": { "source": "10.9.1.2", "group": "239.1.1.7" } }] }] });
    let mut replies = Vec::new();
    for name in EXCHANGES {
        let lines = recording(name);
        let answers = lines.iter().filter_map(Exchange::parse).map(|e| e.answer);
        // A list of mappings without ours would end it, so such lists are excluded.
        let is_list = |body: &[u8]| parsed(body)["ietf-mnat:watcher"][0]["mapped-sg"].is_array();
        replies.extend(answers.filter(|a| a.as_ref().is_none_or(|(_, body)| !is_list(body))));
    }
    assert!(replies.len() > 60);
    let count = replies.len();
    replies.reverse();
    let left = Arc::new(Mutex::new(replies));
    let taken = left.clone();
    let mut bad = false;
    let ca = Ca::new();
    let server = Server::local(tls(&ca), move |request: ReceivedRequest| {
        match request.method.as_str() {
            "GET" => {
                bad = !bad;
                let good = (200, mapped.to_string().into_bytes());
                let reply = if bad {
                    taken.lock().unwrap().pop()
                } else {
                    None
                };
                match reply.unwrap_or(Some(good)) {
                    Some((status, body)) => Reply::Answer(status, body),
                    None => Reply::Drop,
                }
            }
            _ => {
                let watcher = json!({ "watcher-id": "A", "refresh-period": 20 });
                Reply::Answer(200, watcher.to_string().into_bytes())
            }
        }
    });
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    block_on(async {
        let mut client = MnatClient::new(target(&server, &files));
        let mut now = Instant::now();
        let mut machine = Machine::new(MnatRole::Egress, Duration::from_secs(300), now, 1);
        machine.set_joins(now, &BTreeSet::from([global]));
        let mut changes = Vec::new();
        while !left.lock().unwrap().is_empty() || machine.counts() != [1, 0, 0, 0] {
            now = machine.poll_timeout().unwrap().max(now);
            machine.handle_timeout(now);
            if let Some(request) = machine.poll_request(now) {
                let outcome = client.send(&request).await;
                let result = outcome.as_ref().map(|(s, b)| (*s, b.as_slice()));
                machine.handle_outcome(now, result.map_err(ToString::to_string));
            }
            while let Some(event) = machine.poll_event() {
                if let MnatEvent::Change(change) = event {
                    changes.push(change);
                }
            }
        }
        assert_eq!(changes.len(), 1, "{count} answers: {changes:?}");
        assert_eq!(machine.mapping_reports()[0].status, MappingStatus::Assigned);
    });
}
