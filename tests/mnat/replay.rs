//! The recorded exchanges of the prototype's clients and server, played again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mcastor::mnat::client::MnatClient;
use mcastor::mnat::protocol::{self, MnatRequest, Op, ServerResponse};
use mcastor::mnat::{Channel, Machine, MappingChange, MappingStatus, MnatEvent, MnatRole};
use serde_json::{Value, json};

use super::server::{Asked, Ca, Files, Reply, Server};
use super::{block_on, target, tls};

fn recording(name: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mnat/recordings");
    let text = std::fs::read_to_string(folder.join(format!("recorded-{name}.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// A body as it was sent.
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

/// One recorded request, and when.
struct Exchange {
    at: f64,
    method: String,
    path: String,
    /// `None` where it was not recorded.
    body: Option<Value>,
    /// `None` where the connection was dropped instead.
    answer: Option<(u16, Vec<u8>)>,
}

impl Exchange {
    fn of(line: &Value) -> Option<Self> {
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

    fn is(&self, asked: &Asked) -> bool {
        let body = self.body.as_ref();
        self.method == asked.method
            && self.path == asked.path
            && body.is_none_or(|b| *b == parsed(&asked.body))
    }

    fn changes_something(&self) -> bool {
        self.method != "GET" && !self.path.ends_with("refresh-watcher-id")
    }
}

/// What the test and the server share.
#[derive(Default)]
struct Tape {
    exchanges: Vec<Exchange>,
    /// From when to when the server was away.
    away: Vec<(f64, f64)>,
    now: f64,
    /// The next exchange that changes something.
    next: usize,
    /// What was asked and is on no tape.
    strange: Vec<String>,
    /// The changing requests that were answered: method, path, body.
    done: Vec<(String, String, Value)>,
}

impl Tape {
    fn load(name: &str) -> Self {
        let lines = recording(name);
        let mut away: Vec<(f64, f64)> = Vec::new();
        for line in &lines {
            let at = line["t_s"].as_f64().unwrap();
            match line["event"].as_str() {
                Some("connectionLost") => away.push((at, f64::MAX)),
                Some("connectionMade") => {
                    if let Some(last) = away.last_mut() {
                        last.1 = at;
                    }
                }
                _ => {}
            }
        }
        Self {
            exchanges: lines.iter().filter_map(Exchange::of).collect(),
            away,
            ..Self::default()
        }
    }

    fn end(&self) -> f64 {
        self.exchanges.last().unwrap().at
    }

    /// What the client would ask next was not recorded any more.
    fn is_over(&self) -> bool {
        self.next == self.exchanges.len()
    }

    fn is_away(&self) -> bool {
        let within = |(from, to): &(f64, f64)| self.now >= *from && self.now < *to;
        self.away.iter().any(within)
    }

    fn answer(&mut self, asked: Asked) -> Reply {
        let known = |(_, e): &(usize, &Exchange)| e.is(&asked);
        let mut matching = self.exchanges.iter().enumerate().filter(known).peekable();
        if matching.peek().is_none() {
            let body = String::from_utf8_lossy(&asked.body);
            let text = format!("{} {} {body}", asked.method, asked.path);
            self.strange.push(text);
            return Reply::Drop;
        }
        if self.is_away() {
            return Reply::Drop;
        }
        let matching: Vec<(usize, &Exchange)> = matching.collect();
        let changing = matching[0].1.changes_something();
        let found = match changing {
            true => matching.iter().find(|(n, _)| *n >= self.next),
            // What was true next, or at last.
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
            let body = parsed(&asked.body);
            self.done.push((asked.method, asked.path, body));
        }
        Reply::Answer(status, body)
    }
}

/// Channels of a recorded PUT.
fn joined(body: &Value) -> BTreeSet<Channel> {
    let list = body["ietf-mnat:watcher"]["joined-sg"].as_array().unwrap();
    let text = |v: &Value, name: &str| v[name].as_str().map(String::from);
    list.iter()
        .map(|e| Channel::parse(text(e, "source").as_deref(), &text(e, "group").unwrap()).unwrap())
        .collect()
}

struct Played {
    machine: Machine,
    tape: Arc<Mutex<Tape>>,
    changes: Vec<(f64, MappingChange)>,
    failures: usize,
}

/// Lets a client live through a recording: joins change when they did, the server is away when
/// it was, time passes as it did.
fn play(name: &str, role: MnatRole, first: &[Channel]) -> Played {
    let tape = Arc::new(Mutex::new(Tape::load(name)));
    let mut wants: Vec<(f64, BTreeSet<Channel>)> = Vec::new();
    for exchange in &tape.lock().unwrap().exchanges {
        if exchange.method == "PUT"
            && let Some(body) = &exchange.body
        {
            wants.push((exchange.at, joined(body)));
        }
    }
    wants.insert(0, (0.0, first.iter().copied().collect()));
    wants.reverse();
    let ca = Ca::new();
    let answers = tape.clone();
    let server = Server::local(tls(&ca), move |asked| answers.lock().unwrap().answer(asked));
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    let start = Instant::now();
    let end = tape.lock().unwrap().end();
    let mut machine = Machine::new(role, Duration::from_secs(300), start, 3);
    let (mut now, mut changes, mut failures) = (start, Vec::new(), 0);
    block_on(async {
        let mut client = MnatClient::new(target(&server, &files));
        loop {
            let due = machine.poll_timeout().unwrap();
            let want = wants
                .last()
                .map(|(at, _)| start + Duration::from_secs_f64(*at));
            now = now.max(want.map_or(due, |want| want.min(due)));
            let seconds = (now - start).as_secs_f64();
            let over = tape.lock().unwrap().is_over();
            if seconds > end || over {
                break;
            }
            tape.lock().unwrap().now = seconds;
            if want.is_some_and(|want| now >= want) {
                let (_, wanted) = wants.pop().unwrap();
                machine.set_joins(now, &wanted);
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
                let told = outcome.as_ref().map(|(s, b)| (*s, b.as_slice()));
                machine.handle_outcome(now, told.map_err(ToString::to_string));
            }
            while let Some(event) = machine.poll_event() {
                if let MnatEvent::Change(change) = event {
                    changes.push((seconds, change));
                }
            }
        }
    });
    drop(server);
    let strange = std::mem::take(&mut tape.lock().unwrap().strange);
    assert!(strange.is_empty(), "never recorded: {strange:#?}");
    Played {
        machine,
        tape,
        changes,
        failures,
    }
}

impl Played {
    /// The requests that change something are those of the recording, in their order.
    fn is_as_recorded(&self) {
        let tape = self.tape.lock().unwrap();
        let good =
            |e: &&Exchange| e.changes_something() && e.answer.as_ref().is_some_and(|a| a.0 < 300);
        let recorded: Vec<_> = tape
            .exchanges
            .iter()
            .filter(good)
            .map(|e| (e.method.clone(), e.path.clone(), e.body.clone().unwrap()))
            .collect();
        assert_eq!(tape.done, recorded);
    }

    fn locals(&self) -> Vec<(String, Option<String>)> {
        let stands = self.machine.mapping_reports().into_iter();
        let text = stands.map(|s| (s.global.to_string(), s.local.map(|l| l.to_string())));
        text.collect()
    }
}

fn pairs(list: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    let owned = |(g, l): &(&str, Option<&str>)| (g.to_string(), l.map(String::from));
    list.iter().map(owned).collect()
}

#[test]
fn the_session_of_an_egress() {
    let played = play("egress-session", MnatRole::Egress, &[]);
    played.is_as_recorded();
    assert_eq!(
        played.locals(),
        pairs(&[
            ("(23.212.185.4, 232.1.1.1)", Some("(10.9.1.2, 239.1.1.6)")),
            ("(23.212.185.9, 232.1.1.9)", Some("(10.9.1.2, 239.1.1.5)")),
        ])
    );
    // Through the restart of the server both streams went on, and then changed places.
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
        "the server was away: {}",
        played.failures
    );
}

#[test]
fn the_session_of_an_ingress() {
    let played = play("ingress-session", MnatRole::Ingress, &[]);
    played.is_as_recorded();
    // The recording ends as the server is back and knows nothing: both are held.
    let adds = |c: &(f64, MappingChange)| matches!(c.1, MappingChange::Add { .. });
    assert!(played.changes.iter().all(adds), "{:?}", played.changes);
    assert_eq!(played.machine.counts(), [0, 2, 0, 0]);
}

#[test]
fn local_groups_for_any_source() {
    for (name, role) in [
        ("egress-asm-group", MnatRole::Egress),
        ("ingress-asm-group", MnatRole::Ingress),
    ] {
        let joins = [("10.0.0.1", "232.1.1.1"), ("10.0.0.2", "232.1.1.2")];
        let joins = joins.map(|(s, g)| Channel::parse(Some(s), g).unwrap());
        let played = play(name, role, &joins);
        played.is_as_recorded();
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
fn an_exhausted_pool() {
    let joins = [("10.0.0.1", "232.1.1.1"), ("10.0.0.2", "232.1.1.2")];
    let joins = joins.map(|(s, g)| Channel::parse(Some(s), g).unwrap());
    // The server drops the connection for each PUT, and maps what it has all the same.
    let played = play("egress-pool-exhausted", MnatRole::Egress, &joins);
    assert!(played.failures > 3, "{}", played.failures);
    let one = ("(10.0.0.1, 232.1.1.1)", Some("(10.9.1.2, 239.1.1.0)"));
    let both = pairs(&[one, ("(10.0.0.2, 232.1.1.2)", None)]);
    assert_eq!(played.locals(), both);
    let played = play("ingress-pool-exhausted", MnatRole::Ingress, &[]);
    played.is_as_recorded();
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

/// Every answer of the prototype to what we ask is understood as what it is.
#[test]
fn recorded_answers_mean_what_they_say() {
    let (mut read, mut joins) = (0, 0);
    for name in EXCHANGES {
        for line in recording(name) {
            let Some(exchange) = Exchange::of(&line) else {
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
            let right = match (op, &answer) {
                (Op::Poll, Ok(ServerResponse::Mappings { mappings, problems })) => {
                    let globals = mapped.unwrap().iter().map(|e| &e["global-subscription"]);
                    let distinct: BTreeSet<String> = globals.map(Value::to_string).collect();
                    problems.is_empty() && mappings.len() == distinct.len()
                }
                (Op::Poll, Ok(ServerResponse::UnknownWatcher)) => good && mapped.is_none(),
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
            assert!(right, "{name}: {line}: {answer:?}");
            // What a client of the prototype puts, ours would put likewise.
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

/// Every answer ever recorded, to anything, comes as the answer to a poll: what is no list of
/// mappings costs the stream nothing.
#[test]
fn any_recorded_answer_is_survived() {
    let global = Channel::parse(Some("23.0.0.4"), "232.1.1.1").unwrap();
    let mapped = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": [{
        "id": 1, "state": "assigned-local-multicast",
        "global-subscription": { "source": "23.0.0.4", "group": "232.1.1.1" },
        "local-mapping": { "source": "10.9.1.2", "group": "239.1.1.7" } }] }] });
    let mut replies = Vec::new();
    for name in EXCHANGES {
        let lines = recording(name);
        let answers = lines.iter().filter_map(Exchange::of).map(|e| e.answer);
        // A list of mappings without ours takes it back, as it should.
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
    let server = Server::local(tls(&ca), move |asked: Asked| match asked.method.as_str() {
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
                let told = outcome.as_ref().map(|(s, b)| (*s, b.as_slice()));
                machine.handle_outcome(now, told.map_err(ToString::to_string));
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
