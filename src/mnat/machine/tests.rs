use serde_json::{Value, json};

use super::super::mappings::{MappingEnd, MappingStatus};
use super::super::protocol::LONGEST_REQUEST;
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(300);

/// A machine, a clock, and what happened.
struct Bench {
    machine: Machine,
    now: Instant,
    changes: Vec<MappingChange>,
    events: Vec<MnatEvent>,
}

fn global(n: usize) -> Channel {
    let source = format!("23.0.{}.{}", n / 250, n % 250 + 1);
    Channel::parse(Some(&source), "232.1.1.1").unwrap()
}

fn local(n: usize) -> Channel {
    let group = format!("239.1.{}.{}", n / 250, n % 250);
    Channel::parse(Some("10.9.1.2"), &group).unwrap()
}

fn entry(global: Channel, local: Option<Channel>) -> Value {
    let pair = |c: Channel| json!({ "source": c.source(), "group": c.group().to_string() });
    match local {
        Some(local) => json!({ "id": 1, "global-subscription": pair(global),
            "state": "ietf-mnat:assigned-local-multicast", "local-mapping": pair(local) }),
        None => json!({ "id": 1, "global-subscription": pair(global),
            "state": "ietf-mnat:unassigned" }),
    }
}

impl Bench {
    fn new(role: MnatRole) -> Self {
        let now = Instant::now();
        Self {
            machine: Machine::new(role, GRACE, now, 7),
            now,
            changes: Vec::new(),
            events: Vec::new(),
        }
    }

    fn want(&mut self, wanted: &[Channel]) {
        let wanted = wanted.iter().copied().collect();
        self.machine.want(self.now, &wanted);
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                MnatEvent::Change(change) => self.changes.push(change),
                other => self.events.push(other),
            }
        }
    }

    /// Goes on to the next request.
    fn request(&mut self) -> MnatRequest {
        loop {
            self.machine.handle_timeout(self.now);
            self.collect();
            if let Some(request) = self.machine.poll_request(self.now) {
                return request;
            }
            let next = self.machine.poll_timeout().expect("something to wait for");
            assert!(next > self.now, "it would turn in a circle");
            self.now = next;
        }
    }

    fn outcome(&mut self, outcome: Result<(u16, &str), &str>) {
        let outcome = outcome.map(|(s, b)| (s, b.as_bytes()));
        let outcome = outcome.map_err(str::to_string);
        self.machine.handle_outcome(self.now, outcome);
        self.collect();
    }

    fn expect(&mut self, op: Op, outcome: Result<(u16, &str), &str>) -> MnatRequest {
        let request = self.request();
        assert_eq!(request.op, op);
        self.outcome(outcome);
        request
    }

    fn session(&mut self, id: &str) {
        let watcher = json!({ "watcher-id": id, "refresh-period": 20 }).to_string();
        self.expect(Op::NewWatcher, Ok((200, &watcher)));
        self.expect(Op::Register, Ok((201, "")));
        if self.machine.role() == MnatRole::Egress {
            self.expect(Op::Join, Ok((204, "")));
        }
    }

    /// Goes on to the next poll, answering refreshes.
    fn poll(&mut self, entries: &[Value]) {
        let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
        let body = body.to_string();
        loop {
            match self.request().op {
                Op::Poll => return self.outcome(Ok((200, &body))),
                Op::Refresh | Op::Join => self.outcome(Ok((204, ""))),
                other => panic!("{other:?}"),
            }
        }
    }

    fn changes(&mut self) -> Vec<MappingChange> {
        std::mem::take(&mut self.changes)
    }

    fn gone(&mut self) -> Vec<(Channel, MappingEnd)> {
        let gone = |change| match change {
            MappingChange::Remove { global, why, .. } => (global, why),
            other => panic!("{other:?}"),
        };
        self.changes().into_iter().map(gone).collect()
    }
}

const FORGOTTEN: &str = r#"{"ietf-mnat:watcher": [{}]}"#;

#[test]
fn an_egress_gets_what_it_wants() {
    let mut bench = Bench::new(MnatRole::Egress);
    bench.want(&[global(1), global(2)]);
    bench.session("A");
    bench.now += SECOND;
    bench.poll(&[entry(global(1), Some(local(1))), entry(global(2), None)]);
    assert_eq!(
        bench.changes(),
        [MappingChange::Add {
            global: global(1),
            local: local(1),
            waited: Some(SECOND)
        }]
    );
    assert_eq!(bench.machine.counts(), [1, 0, 1, 0]);
    // What nobody here wants is no mapping of ours.
    bench.poll(&[
        entry(global(1), Some(local(1))),
        entry(global(3), Some(local(3))),
    ]);
    assert_eq!(bench.changes(), []);
    bench.want(&[global(2)]);
    assert_eq!(bench.gone(), [(global(1), MappingEnd::Unwanted)]);
    let now = bench.now;
    let request = bench.expect(Op::Join, Ok((204, "")));
    assert_eq!(bench.now, now, "at once");
    let body = String::from_utf8(request.body.unwrap()).unwrap();
    assert!(
        body.contains("23.0.0.3") && !body.contains("23.0.0.2"),
        "{body}"
    );
    assert_eq!(bench.machine.counts(), [0, 0, 1, 0]);
}

#[test]
fn a_local_channel_given_to_two_stays_with_the_first() {
    for role in MnatRole::ALL {
        let mut bench = Bench::new(role);
        bench.want(&[global(1), global(2)]);
        bench.session("A");
        bench.poll(&[entry(global(2), Some(local(1)))]);
        assert_eq!(bench.changes().len(), 1);
        let both = [
            entry(global(1), Some(local(1))),
            entry(global(2), Some(local(1))),
        ];
        bench.poll(&both);
        assert_eq!(bench.changes(), [], "{role}");
        assert_eq!(bench.machine.counts(), [1, 0, 0, 1], "{role}");
        let stands = bench.machine.standings();
        assert_eq!(stands[0].global, global(1));
        assert_eq!(stands[0].standing, MappingStatus::Conflict);
        let why = stands[0].why.clone().unwrap_or_default();
        assert!(why.contains(&global(2).to_string()), "{why}");
        // The server mends it.
        let mended = [
            entry(global(1), Some(local(2))),
            entry(global(2), Some(local(1))),
        ];
        bench.poll(&mended);
        assert!(matches!(bench.changes()[..], [MappingChange::Add { .. }]));
        assert_eq!(bench.machine.counts(), [2, 0, 0, 0], "{role}");
    }
}

#[test]
fn polls_and_refreshes_keep_their_beat() {
    let mut bench = Bench::new(MnatRole::Ingress);
    let start = bench.now;
    bench.session("A");
    let mut seen = Vec::new();
    while bench.now < start + SECOND * 61 {
        let op = bench.request().op;
        seen.push(((bench.now - start).as_secs(), op));
        let body = r#"{"ietf-mnat:watcher": [{"id": "A", "mapped-sg": []}]}"#;
        // Answers that take a while do not put the next ones off.
        bench.now += SECOND / 10;
        bench.outcome(Ok((200, body)));
    }
    let expected = [
        (0, Op::Poll),
        (10, Op::Poll),
        (20, Op::Refresh),
        (20, Op::Poll),
        (30, Op::Poll),
        (40, Op::Refresh),
        (40, Op::Poll),
        (50, Op::Poll),
        (60, Op::Refresh),
        (60, Op::Poll),
    ];
    assert_eq!(seen[..expected.len()], expected);
}

#[test]
fn a_server_away_costs_nothing_for_the_grace_time() {
    for role in MnatRole::ALL {
        let mut bench = Bench::new(role);
        bench.want(&[global(1)]);
        bench.session("A");
        bench.poll(&[entry(global(1), Some(local(1)))]);
        bench.changes();
        let start = bench.now;
        let mut attempts = 0;
        while bench.changes.is_empty() {
            bench.request();
            bench.now += SECOND / 100;
            bench.outcome(Err("dropped"));
            attempts += 1;
            assert!(bench.now < start + GRACE * 2);
        }
        let away = bench.now - start;
        assert!(
            away >= GRACE && away < GRACE + LONGEST_BACKOFF * 2,
            "{away:?}"
        );
        assert_eq!(bench.gone(), [(global(1), MappingEnd::GraceOver)]);
        assert!((60..120).contains(&attempts), "{attempts} attempts");
        let news = |e: &&MnatEvent| matches!(e, MnatEvent::Failed { news: true, .. });
        assert!(bench.events.iter().filter(news).count() <= 2 * attempts);
        assert_eq!(
            bench
                .events
                .iter()
                .filter(|e| **e == MnatEvent::Away)
                .count(),
            1
        );
        assert!(!bench.machine.is_up());
        bench.poll(&[entry(global(1), Some(local(1)))]);
        assert_eq!(bench.changes().len(), 1);
        assert!(bench.machine.is_up());
    }
}

#[test]
fn a_server_is_away_only_after_two_and_a_half_periods() {
    let mut bench = Bench::new(MnatRole::Ingress);
    bench.session("A");
    bench.poll(&[]);
    let contact = bench.now;
    while bench.machine.is_up() {
        bench.request();
        bench.outcome(Err("dropped"));
    }
    assert!(
        bench.now >= contact + SECOND * 50,
        "{:?}",
        bench.now - contact
    );
}

/// All that a broken server may say leaves the mapping alone.
#[test]
fn nonsense_costs_nothing() {
    let mut bench = Bench::new(MnatRole::Egress);
    bench.want(&[global(1)]);
    bench.session("A");
    bench.poll(&[entry(global(1), Some(local(1)))]);
    bench.changes();
    let mut garbled = entry(global(1), Some(local(1)));
    garbled["local-mapping"] = json!({ "source": "10.0.0.1", "group": "nonsense" });
    let mut unreadable = entry(global(1), Some(local(1)));
    unreadable["global-subscription"]["group"] = json!("nonsense");
    let list = |e: &Value| json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": [e] }] });
    for (status, body) in [
        (500, "oops".to_string()),
        (200, "<html>".into()),
        (200, "{}".into()),
        (200, list(&garbled).to_string()),
        (200, list(&unreadable).to_string()),
        (200, FORGOTTEN.into()),
    ] {
        loop {
            match bench.request().op {
                Op::Poll => break bench.outcome(Ok((status, &body))),
                _ => bench.outcome(Ok((204, ""))),
            }
        }
        assert_eq!(bench.changes(), [], "{status} {body}");
        assert_eq!(bench.machine.assigned().count(), 1);
    }
    let odd = bench
        .events
        .iter()
        .filter(|e| matches!(e, MnatEvent::Oddity(_)));
    assert_eq!(odd.count(), 2);
    // It forgot us, and is told all anew; the mapping is another one now.
    bench.session("B");
    bench.poll(&[entry(global(1), Some(local(2)))]);
    let [MappingChange::Swap { old, new, .. }] = bench.changes()[..] else {
        panic!();
    };
    assert_eq!((old, new), (local(1), local(2)));
}

#[test]
fn a_restarted_server_takes_nothing_from_an_ingress_before_all_egresses_came_back() {
    let mut bench = Bench::new(MnatRole::Ingress);
    bench.session("A");
    bench.poll(&[
        entry(global(1), Some(local(1))),
        entry(global(2), Some(local(2))),
    ]);
    bench.changes();
    // In a session that goes on, absence means that the last receiver left.
    bench.poll(&[entry(global(1), Some(local(1)))]);
    assert_eq!(bench.gone(), [(global(2), MappingEnd::TakenBack)]);
    loop {
        match bench.request().op {
            Op::Refresh => break bench.outcome(Ok((500, ""))),
            _ => bench.outcome(Err("dropped")),
        }
    }
    bench.session("B");
    let start = bench.now;
    bench.poll(&[]);
    assert_eq!(bench.changes(), []);
    assert_eq!(bench.machine.counts(), [0, 1, 0, 0]);
    while bench.changes.is_empty() {
        bench.poll(&[]);
    }
    assert_eq!(bench.now - start, SECOND * 50);
    assert_eq!(bench.gone(), [(global(1), MappingEnd::TakenBack)]);
}

#[test]
fn a_local_channel_given_to_another_is_given_up_at_once() {
    let mut bench = Bench::new(MnatRole::Ingress);
    bench.session("A");
    bench.poll(&[entry(global(1), Some(local(1)))]);
    bench.changes();
    bench.expect(Op::Poll, Ok((200, FORGOTTEN)));
    bench.session("B");
    bench.poll(&[entry(global(2), Some(local(1)))]);
    let changes = bench.changes();
    assert_eq!(changes.len(), 2);
    assert!(changes.contains(&MappingChange::Remove {
        global: global(1),
        local: local(1),
        why: MappingEnd::GivenAway
    }));
}

#[test]
fn an_id_that_is_refused_is_given_up() {
    let mut bench = Bench::new(MnatRole::Ingress);
    bench.session("A");
    for _ in 0..3 {
        let op = bench.request().op;
        assert!(matches!(op, Op::Poll | Op::Refresh));
        bench.outcome(Ok((403, "")));
    }
    bench.session("B");
    // One that is forgotten at once is not asked for in a circle.
    let start = bench.now;
    for n in 0..5 {
        bench.expect(Op::Poll, Ok((200, FORGOTTEN)));
        bench.session(&n.to_string());
    }
    assert!(bench.now - start > SECOND, "{:?}", bench.now - start);
}

#[test]
fn a_refused_join_does_not_stop_polls_and_refreshes() {
    let mut bench = Bench::new(MnatRole::Egress);
    bench.want(&[global(1)]);
    bench.session("A");
    bench.poll(&[entry(global(1), Some(local(1)))]);
    bench.changes();
    bench.want(&[global(1), global(2)]);
    let start = bench.now;
    let mut seen = Vec::new();
    while bench.now < start + SECOND * 60 {
        let op = bench.request().op;
        seen.push(op);
        match op {
            Op::Join => bench.outcome(Err("dropped")),
            Op::Poll => {
                let list = json!([entry(global(1), Some(local(1)))]);
                let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": list }] });
                bench.outcome(Ok((200, &body.to_string())));
            }
            _ => bench.outcome(Ok((204, ""))),
        }
    }
    let count = |op| seen.iter().filter(|o| **o == op).count();
    assert!(count(Op::Poll) >= 5 && count(Op::Refresh) >= 2, "{seen:?}");
    assert!(count(Op::Join) >= 5, "{seen:?}");
    assert_eq!(bench.changes(), []);
}

#[test]
fn a_server_that_takes_no_asm_still_gets_the_rest() {
    let asm = Channel::parse(None, "239.5.5.5").unwrap();
    let mut bench = Bench::new(MnatRole::Egress);
    bench.want(&[asm, global(1)]);
    let watcher = r#"{"watcher-id": "A", "refresh-period": 20}"#;
    bench.expect(Op::NewWatcher, Ok((200, watcher)));
    bench.expect(Op::Register, Ok((201, "")));
    let with_asm =
        |r: &MnatRequest| String::from_utf8_lossy(r.body.as_ref().unwrap()).contains("asm");
    let first = bench.expect(Op::Join, Err("dropped"));
    assert!(with_asm(&first));
    bench.poll(&[]);
    let told = |b: &Bench| {
        b.events
            .iter()
            .any(|e| *e == MnatEvent::AsmRefused(vec![asm]))
    };
    while !told(&bench) {
        let request = bench.request();
        let asm = request.op == Op::Join && with_asm(&request);
        bench.outcome(if asm { Err("dropped") } else { Ok((204, "")) });
    }
    bench.poll(&[entry(global(1), Some(local(1)))]);
    assert_eq!(bench.changes().len(), 1);
    // Later it is asked again: the server may be another one.
    let start = bench.now;
    loop {
        let request = bench.request();
        let asm = request.op == Op::Join && with_asm(&request);
        bench.outcome(match request.op {
            Op::Poll => Err("dropped"),
            _ => Ok((204, "")),
        });
        if asm {
            break;
        }
    }
    assert!(bench.now - start >= SECOND * 50, "{:?}", bench.now - start);
}

#[test]
fn what_is_wanted_meanwhile_is_told_next() {
    let mut bench = Bench::new(MnatRole::Egress);
    bench.session("A");
    bench.poll(&[]);
    bench.want(&[global(1)]);
    assert_eq!(bench.request().op, Op::Join);
    bench.want(&[global(2)]);
    assert!(bench.machine.poll_request(bench.now).is_none());
    bench.outcome(Ok((204, "")));
    let request = bench.expect(Op::Join, Ok((204, "")));
    let body = String::from_utf8(request.body.unwrap()).unwrap();
    assert!(
        body.contains("23.0.0.3") && !body.contains("23.0.0.2"),
        "{body}"
    );
}

/// A clock that stood still, and one that leapt by days.
#[test]
fn leaps_of_the_clock_are_survived() {
    let mut bench = Bench::new(MnatRole::Egress);
    bench.want(&[global(1)]);
    bench.session("A");
    bench.poll(&[entry(global(1), Some(local(1)))]);
    bench.changes();
    bench.now += SECOND * 86_400 * 3;
    bench.machine.handle_timeout(bench.now);
    bench.collect();
    assert_eq!(bench.gone(), [(global(1), MappingEnd::GraceOver)]);
    assert!(matches!(bench.request().op, Op::Refresh | Op::Poll));
    bench.outcome(Ok((500, "")));
    let mut requests = 0;
    while !bench.machine.is_up() || bench.machine.assigned().count() == 0 {
        let request = bench.request();
        let body = match request.op {
            Op::NewWatcher => r#"{"watcher-id": "B", "refresh-period": 20}"#.to_string(),
            Op::Poll => {
                let list = [entry(global(1), Some(local(1)))];
                json!({ "ietf-mnat:watcher": [{ "id": "B", "mapped-sg": list }] }).to_string()
            }
            _ => String::new(),
        };
        bench.outcome(Ok((200, &body)));
        requests += 1;
        assert!(requests < 10);
    }
    // An earlier time than before changes nothing.
    bench.machine.handle_timeout(bench.now - SECOND * 3600);
    bench.collect();
    assert_eq!(bench.machine.counts(), [1, 0, 0, 0]);
}

#[test]
fn ten_thousand_mappings_are_compared_in_time_and_one_change_is_one_change() {
    let many: Vec<Channel> = (0..10_000).map(global).collect();
    let mut entries: Vec<Value> = (0..10_000)
        .map(|n| entry(global(n), Some(local(n))))
        .collect();
    for role in MnatRole::ALL {
        let mut bench = Bench::new(role);
        bench.want(&many);
        bench.session("A");
        bench.poll(&entries);
        assert_eq!(bench.changes().len(), 10_000);
        entries[4711]["local-mapping"]["group"] = json!("239.200.0.1");
        let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
        let body = body.to_string();
        assert_eq!(bench.request().op, Op::Poll);
        let start = Instant::now();
        bench.outcome(Ok((200, &body)));
        let took = start.elapsed();
        println!("{role}: {} bytes read and compared in {took:?}", body.len());
        assert!(took < SECOND, "{took:?}");
        let changes = bench.changes();
        assert!(
            matches!(changes[..], [MappingChange::Swap { global: g, .. }] if g == global(4711))
        );
        assert_eq!(bench.machine.counts(), [10_000, 0, 0, 0]);
        entries[4711] = entry(global(4711), Some(local(4711)));
    }
    assert_eq!(
        MappingStatus::ALL.map(MappingStatus::label),
        ["assigned", "held", "unassigned", "conflict"]
    );
}

#[test]
fn joins_past_what_a_request_holds_wait_and_are_counted() {
    let many: Vec<Channel> = (0..40_000).map(global).collect();
    let mut bench = Bench::new(MnatRole::Egress);
    bench.session("A");
    bench.want(&many);
    let request = bench.request();
    assert_eq!(request.op, Op::Join);
    let body = request.body.unwrap();
    assert!(body.len() <= LONGEST_REQUEST, "{}", body.len());
    // As full as it gets.
    assert!(body.len() > LONGEST_REQUEST - 2048, "{}", body.len());
    let told: Value = serde_json::from_slice(&body).unwrap();
    let told = &told["ietf-mnat:watcher"]["joined-sg"];
    let told = told.as_array().unwrap().len();
    let left_out = many.len() - told;
    assert!(bench.events.contains(&MnatEvent::LeftOut(left_out)));
    assert_eq!(bench.machine.counts(), [0, 0, 40_000, 0]);
    bench.outcome(Ok((204, "")));
    // Those that are told are told whole, and the same again is no news.
    bench.events.clear();
    bench.want(&many);
    assert!(bench.events.is_empty());
    // Of just those that are told none is left out any more.
    bench.want(&many[..told]);
    assert_eq!(bench.events, [MnatEvent::LeftOut(0)]);
    assert_eq!(bench.machine.counts(), [0, 0, told, 0]);
    bench.want(&many[..10_000]);
    assert_eq!(bench.machine.counts(), [0, 0, 10_000, 0]);
}
