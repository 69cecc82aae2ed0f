use serde_json::{Value, json};

use super::super::mappings::{MappingEnd, MappingStatus};
use super::super::protocol::MAX_REQUEST_LEN;
use super::*;
use crate::model::BootTime;

const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(300);

/// A machine with a simulated clock, and the events that it reported.
struct TestMachine {
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

impl TestMachine {
    fn new(role: MnatRole) -> Self {
        let now = Instant::now();
        Self {
            machine: Machine::new(role, GRACE, now, 7),
            now,
            changes: Vec::new(),
            events: Vec::new(),
        }
    }

    fn set_joins(&mut self, joins: &[Channel]) {
        let joins = joins.iter().copied().collect();
        self.machine.set_joins(self.now, &joins);
        self.collect_events();
    }

    fn collect_events(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                MnatEvent::Change(change) => self.changes.push(change),
                other => self.events.push(other),
            }
        }
    }

    /// Advances the clock to the next request.
    fn next_request(&mut self) -> MnatRequest {
        loop {
            self.machine.handle_timeout(self.now);
            self.collect_events();
            if let Some(request) = self.machine.poll_request(self.now) {
                return request;
            }
            let next = self.machine.poll_timeout().expect("a pending timeout");
            assert!(next > self.now, "the timeout is in the future");
            self.now = next;
        }
    }

    fn handle_outcome(&mut self, outcome: Result<(u16, &str), &str>) {
        let outcome = outcome.map(|(s, b)| (s, b.as_bytes()));
        let outcome = outcome.map_err(str::to_string);
        self.machine.handle_outcome(self.now, outcome);
        self.collect_events();
    }

    /// Handles the next request, which must be of kind `op`. Returns the request.
    fn expect(&mut self, op: Op, outcome: Result<(u16, &str), &str>) -> MnatRequest {
        let request = self.next_request();
        assert_eq!(request.op, op);
        self.handle_outcome(outcome);
        request
    }

    /// Registers a session with this id.
    fn start_session(&mut self, id: &str) {
        let watcher = json!({ "watcher-id": id, "refresh-period": 20 }).to_string();
        self.expect(Op::NewWatcher, Ok((200, &watcher)));
        self.expect(Op::Register, Ok((201, "")));
        if self.machine.role() == MnatRole::Egress {
            self.expect(Op::Join, Ok((204, "")));
        }
    }

    /// Advances to the next poll and answers it. Answers refreshes and joins before.
    fn poll(&mut self, entries: &[Value]) {
        let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
        let body = body.to_string();
        loop {
            match self.next_request().op {
                Op::Poll => return self.handle_outcome(Ok((200, &body))),
                Op::Refresh | Op::Join => self.handle_outcome(Ok((204, ""))),
                other => panic!("{other:?}"),
            }
        }
    }

    fn take_changes(&mut self) -> Vec<MappingChange> {
        std::mem::take(&mut self.changes)
    }

    fn take_removals(&mut self) -> Vec<(Channel, MappingEnd)> {
        let removal = |change| match change {
            MappingChange::Remove { global, why, .. } => (global, why),
            other => panic!("{other:?}"),
        };
        self.take_changes().into_iter().map(removal).collect()
    }
}

/// The response to a poll with an unknown watcher id.
const UNKNOWN_WATCHER: &str = r#"{"ietf-mnat:watcher": [{}]}"#;

#[test]
fn egress_receives_the_requested_mappings() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1), global(2)]);
    test.start_session("A");
    test.now += SECOND;
    test.poll(&[entry(global(1), Some(local(1))), entry(global(2), None)]);
    assert_eq!(
        test.take_changes(),
        [MappingChange::Add {
            global: global(1),
            local: local(1),
            waited: Some(SECOND)
        }]
    );
    assert_eq!(test.machine.counts(), [1, 0, 1, 0]);
    // A mapping that this egress does not request is ignored.
    test.poll(&[
        entry(global(1), Some(local(1))),
        entry(global(3), Some(local(3))),
    ]);
    assert_eq!(test.take_changes(), []);
    test.set_joins(&[global(2)]);
    assert_eq!(
        test.take_removals(),
        [(global(1), MappingEnd::NotRequested)]
    );
    let now = test.now;
    let request = test.expect(Op::Join, Ok((204, "")));
    assert_eq!(test.now, now, "sent at once");
    let body = String::from_utf8(request.body.unwrap()).unwrap();
    assert!(
        body.contains("23.0.0.3") && !body.contains("23.0.0.2"),
        "{body}"
    );
    assert_eq!(test.machine.counts(), [0, 0, 1, 0]);
}

#[test]
fn duplicate_local_channel_stays_with_its_user() {
    for role in MnatRole::ALL {
        let mut test = TestMachine::new(role);
        test.set_joins(&[global(1), global(2)]);
        test.start_session("A");
        test.poll(&[entry(global(2), Some(local(1)))]);
        assert_eq!(test.take_changes().len(), 1);
        let both = [
            entry(global(1), Some(local(1))),
            entry(global(2), Some(local(1))),
        ];
        test.poll(&both);
        assert_eq!(test.take_changes(), [], "{role}");
        assert_eq!(test.machine.counts(), [1, 0, 0, 1], "{role}");
        let reports = test.machine.mapping_reports();
        assert_eq!(reports[0].global, global(1));
        assert_eq!(reports[0].status, MappingStatus::Conflict);
        let why = reports[0].why.clone().unwrap_or_default();
        assert!(why.contains(&global(2).to_string()), "{why}");
        // The server corrects the assignment.
        let corrected = [
            entry(global(1), Some(local(2))),
            entry(global(2), Some(local(1))),
        ];
        test.poll(&corrected);
        assert!(matches!(
            test.take_changes()[..],
            [MappingChange::Add { .. }]
        ));
        assert_eq!(test.machine.counts(), [2, 0, 0, 0], "{role}");
    }
}

#[test]
fn polls_and_refreshes_keep_their_interval() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    let start = test.now;
    test.start_session("A");
    let mut seen = Vec::new();
    while test.now < start + SECOND * 61 {
        let op = test.next_request().op;
        seen.push(((test.now - start).as_secs(), op));
        let body = r#"{"ietf-mnat:watcher": [{"id": "A", "mapped-sg": []}]}"#;
        // Slow responses do not delay the next requests.
        test.now += SECOND / 10;
        test.handle_outcome(Ok((200, body)));
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
fn mappings_survive_an_outage_for_the_grace_time() {
    for role in MnatRole::ALL {
        let mut test = TestMachine::new(role);
        test.set_joins(&[global(1)]);
        test.start_session("A");
        test.poll(&[entry(global(1), Some(local(1)))]);
        test.take_changes();
        let start = test.now;
        let mut attempts = 0;
        while test.changes.is_empty() {
            test.next_request();
            test.now += SECOND / 100;
            test.handle_outcome(Err("dropped"));
            attempts += 1;
            assert!(test.now < start + GRACE * 2);
        }
        let outage = test.now - start;
        assert!(
            outage >= GRACE && outage < GRACE + MAX_BACKOFF * 2,
            "{outage:?}"
        );
        assert_eq!(test.take_removals(), [(global(1), MappingEnd::Expired)]);
        assert!((60..120).contains(&attempts), "{attempts} attempts");
        let is_new = |e: &&MnatEvent| matches!(e, MnatEvent::Failed { is_new: true, .. });
        assert!(test.events.iter().filter(is_new).count() <= 2 * attempts);
        assert_eq!(
            test.events
                .iter()
                .filter(|e| **e == MnatEvent::ServerDown)
                .count(),
            1
        );
        assert!(!test.machine.is_up());
        test.poll(&[entry(global(1), Some(local(1)))]);
        assert_eq!(test.take_changes().len(), 1);
        assert!(test.machine.is_up());
    }
}

#[test]
fn server_is_down_after_2_5_refresh_intervals() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    test.start_session("A");
    test.poll(&[]);
    let last_response = test.now;
    while test.machine.is_up() {
        test.next_request();
        test.handle_outcome(Err("dropped"));
    }
    assert!(
        test.now >= last_response + SECOND * 50,
        "{:?}",
        test.now - last_response
    );
}

/// Invalid responses do not end a mapping, and neither does a forgotten session.
#[test]
fn invalid_responses_keep_the_mapping() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    test.poll(&[entry(global(1), Some(local(1)))]);
    test.take_changes();
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
        (200, UNKNOWN_WATCHER.into()),
    ] {
        loop {
            match test.next_request().op {
                Op::Poll => break test.handle_outcome(Ok((status, &body))),
                _ => test.handle_outcome(Ok((204, ""))),
            }
        }
        assert_eq!(test.take_changes(), [], "{status} {body}");
        assert_eq!(test.machine.assigned().count(), 1);
    }
    let invalid = test
        .events
        .iter()
        .filter(|e| matches!(e, MnatEvent::InvalidMappings { count: 1, .. }));
    assert_eq!(invalid.count(), 2);
    // The server forgot the session. The next session assigns another local channel.
    test.start_session("B");
    test.poll(&[entry(global(1), Some(local(2)))]);
    let [MappingChange::Swap { old, new, .. }] = test.take_changes()[..] else {
        panic!();
    };
    assert_eq!((old, new), (local(1), local(2)));
}

#[test]
fn changes_soon_after_an_outage_are_marked() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    let mut mapped = 1;
    test.start_session("A");
    test.poll(&[entry(global(1), Some(local(mapped)))]);
    test.take_changes();
    let mut change_is_marked = |test: &mut TestMachine| {
        mapped += 1;
        test.poll(&[entry(global(1), Some(local(mapped)))]);
        match test.take_changes()[..] {
            [MappingChange::Swap { after_outage, .. }] => after_outage,
            ref other => panic!("{other:?}"),
        }
    };
    // The other clients may have started at the same time.
    assert!(change_is_marked(&mut test));
    test.now += RECOVERY_TIME;
    for _ in 0..4 {
        change_is_marked(&mut test);
    }
    assert!(!change_is_marked(&mut test));
    // The server is away for some seconds.
    let end = test.now + POLL_INTERVAL + 5 * SECOND;
    while test.now < end {
        test.next_request();
        test.handle_outcome(Err("refused"));
    }
    assert!(change_is_marked(&mut test));
    assert!(change_is_marked(&mut test), "other clients may try later");
    for _ in 0..3 {
        change_is_marked(&mut test);
    }
    assert!(!change_is_marked(&mut test));
    // The server forgot the session, and its clients register again.
    while test.next_request().op != Op::Poll {
        test.handle_outcome(Ok((204, "")));
    }
    test.handle_outcome(Ok((200, UNKNOWN_WATCHER)));
    test.start_session("B");
    assert!(change_is_marked(&mut test));
    assert!(!change_is_marked(&mut test));
}

/// As many invalid mappings as a response can have, and more, cause one event with a few examples.
#[test]
fn invalid_mappings_cause_one_event() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    test.start_session("A");
    let invalid = |n: usize| {
        let mut invalid = entry(global(1), Some(local(1)));
        invalid["global-subscription"]["group"] = json!(format!("nonsense\u{202e}{n}"));
        invalid
    };
    let entries: Vec<Value> = (0..65_546).map(invalid).collect();
    for _ in 0..2 {
        test.poll(&entries);
    }
    let counts = test.events.iter().filter_map(|e| match e {
        MnatEvent::InvalidMappings { count, examples } => Some((*count, examples)),
        _ => None,
    });
    let [(count, examples)] = counts.collect::<Vec<_>>()[..] else {
        panic!("{} events", test.events.len());
    };
    // 65,536 are read. One problem is that there are more.
    assert_eq!((count, examples.len()), (65_537, 5));
    let escaped = |example: &String| example.contains("nonsense\\u{202e}");
    assert!(
        examples.iter().filter(|e| escaped(e)).count() >= 4,
        "{examples:?}"
    );
}

#[test]
fn ingress_keeps_mappings_until_egresses_reregister() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    test.start_session("A");
    test.poll(&[
        entry(global(1), Some(local(1))),
        entry(global(2), Some(local(2))),
    ]);
    test.take_changes();
    // In a continuing session, a missing mapping means that the last receiver left.
    test.poll(&[entry(global(1), Some(local(1)))]);
    assert_eq!(test.take_removals(), [(global(2), MappingEnd::Unassigned)]);
    loop {
        match test.next_request().op {
            Op::Refresh => break test.handle_outcome(Ok((500, ""))),
            _ => test.handle_outcome(Err("dropped")),
        }
    }
    test.start_session("B");
    let start = test.now;
    test.poll(&[]);
    assert_eq!(test.take_changes(), []);
    assert_eq!(test.machine.counts(), [0, 1, 0, 0]);
    while test.changes.is_empty() {
        test.poll(&[]);
    }
    assert_eq!(test.now - start, SECOND * 50);
    assert_eq!(test.take_removals(), [(global(1), MappingEnd::Unassigned)]);
}

#[test]
fn reassigned_local_channel_ends_the_old_mapping() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    test.start_session("A");
    test.poll(&[entry(global(1), Some(local(1)))]);
    test.take_changes();
    test.expect(Op::Poll, Ok((200, UNKNOWN_WATCHER)));
    test.start_session("B");
    test.poll(&[entry(global(2), Some(local(1)))]);
    let changes = test.take_changes();
    assert_eq!(changes.len(), 2);
    assert!(changes.contains(&MappingChange::Remove {
        global: global(1),
        local: local(1),
        why: MappingEnd::Reassigned
    }));
}

#[test]
fn repeated_refusals_start_a_new_session() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    test.start_session("A");
    for _ in 0..3 {
        let op = test.next_request().op;
        assert!(matches!(op, Op::Poll | Op::Refresh));
        test.handle_outcome(Ok((403, "")));
    }
    test.start_session("B");
    // A session that is forgotten before its first poll delays the next one.
    let start = test.now;
    for n in 0..5 {
        test.expect(Op::Poll, Ok((200, UNKNOWN_WATCHER)));
        test.start_session(&n.to_string());
    }
    assert!(test.now - start > SECOND, "{:?}", test.now - start);
}

#[test]
fn a_refused_join_does_not_stop_polls_and_refreshes() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    test.poll(&[entry(global(1), Some(local(1)))]);
    test.take_changes();
    test.set_joins(&[global(1), global(2)]);
    let start = test.now;
    let mut seen = Vec::new();
    while test.now < start + SECOND * 60 {
        let op = test.next_request().op;
        seen.push(op);
        match op {
            Op::Join => test.handle_outcome(Err("dropped")),
            Op::Poll => {
                let list = json!([entry(global(1), Some(local(1)))]);
                let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": list }] });
                test.handle_outcome(Ok((200, &body.to_string())));
            }
            _ => test.handle_outcome(Ok((204, ""))),
        }
    }
    let count = |op| seen.iter().filter(|o| **o == op).count();
    assert!(count(Op::Poll) >= 5 && count(Op::Refresh) >= 2, "{seen:?}");
    assert!(count(Op::Join) >= 5, "{seen:?}");
    assert_eq!(test.take_changes(), []);
}

#[test]
fn refused_asm_join_does_not_block_ssm_joins() {
    let asm = Channel::parse(None, "239.5.5.5").unwrap();
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[asm, global(1)]);
    let watcher = r#"{"watcher-id": "A", "refresh-period": 20}"#;
    test.expect(Op::NewWatcher, Ok((200, watcher)));
    test.expect(Op::Register, Ok((201, "")));
    let with_asm =
        |r: &MnatRequest| String::from_utf8_lossy(r.body.as_ref().unwrap()).contains("asm");
    let first = test.expect(Op::Join, Err("dropped"));
    assert!(with_asm(&first));
    test.poll(&[]);
    let asm_refused = |t: &TestMachine| {
        t.events
            .iter()
            .any(|e| *e == MnatEvent::AsmRefused(vec![asm]))
    };
    while !asm_refused(&test) {
        let request = test.next_request();
        let asm = request.op == Op::Join && with_asm(&request);
        test.handle_outcome(if asm { Err("dropped") } else { Ok((204, "")) });
    }
    test.poll(&[entry(global(1), Some(local(1)))]);
    assert_eq!(test.take_changes().len(), 1);
    // The (*,G) join is retried later, because the server may have changed.
    let start = test.now;
    loop {
        let request = test.next_request();
        let asm = request.op == Op::Join && with_asm(&request);
        test.handle_outcome(match request.op {
            Op::Poll => Err("dropped"),
            _ => Ok((204, "")),
        });
        if asm {
            break;
        }
    }
    assert!(test.now - start >= SECOND * 50, "{:?}", test.now - start);
}

#[test]
fn joins_during_a_request_are_sent_next() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.start_session("A");
    test.poll(&[]);
    test.set_joins(&[global(1)]);
    assert_eq!(test.next_request().op, Op::Join);
    test.set_joins(&[global(2)]);
    assert!(test.machine.poll_request(test.now).is_none());
    test.handle_outcome(Ok((204, "")));
    let request = test.expect(Op::Join, Ok((204, "")));
    let body = String::from_utf8(request.body.unwrap()).unwrap();
    assert!(
        body.contains("23.0.0.3") && !body.contains("23.0.0.2"),
        "{body}"
    );
}

/// The clock jumps forward by three days, and back by an hour.
#[test]
fn clock_jumps_do_not_break_the_session() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    test.poll(&[entry(global(1), Some(local(1)))]);
    test.take_changes();
    test.now += SECOND * 86_400 * 3;
    test.machine.handle_timeout(test.now);
    test.collect_events();
    assert_eq!(test.take_removals(), [(global(1), MappingEnd::Expired)]);
    assert!(matches!(test.next_request().op, Op::Refresh | Op::Poll));
    test.handle_outcome(Ok((500, "")));
    let mut requests = 0;
    while !test.machine.is_up() || test.machine.assigned().count() == 0 {
        let request = test.next_request();
        let body = match request.op {
            Op::NewWatcher => r#"{"watcher-id": "B", "refresh-period": 20}"#.to_string(),
            Op::Poll => {
                let list = [entry(global(1), Some(local(1)))];
                json!({ "ietf-mnat:watcher": [{ "id": "B", "mapped-sg": list }] }).to_string()
            }
            _ => String::new(),
        };
        test.handle_outcome(Ok((200, &body)));
        requests += 1;
        assert!(requests < 10);
    }
    // A time before the last one has no effect.
    test.machine.handle_timeout(test.now - SECOND * 3600);
    test.collect_events();
    assert_eq!(test.machine.counts(), [1, 0, 0, 0]);
}

#[test]
fn one_change_among_10000_mappings_is_found_quickly() {
    let many: Vec<Channel> = (0..10_000).map(global).collect();
    let mut entries: Vec<Value> = (0..10_000)
        .map(|n| entry(global(n), Some(local(n))))
        .collect();
    for role in MnatRole::ALL {
        let mut test = TestMachine::new(role);
        test.set_joins(&many);
        test.start_session("A");
        test.poll(&entries);
        assert_eq!(test.take_changes().len(), 10_000);
        entries[4711]["local-mapping"]["group"] = json!("239.200.0.1");
        let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
        let body = body.to_string();
        assert_eq!(test.next_request().op, Op::Poll);
        let start = Instant::now();
        test.handle_outcome(Ok((200, &body)));
        let duration = start.elapsed();
        println!(
            "{role}: {} bytes parsed and compared in {duration:?}",
            body.len()
        );
        assert!(duration < SECOND, "{duration:?}");
        let changes = test.take_changes();
        assert!(
            matches!(changes[..], [MappingChange::Swap { global: g, .. }] if g == global(4711))
        );
        assert_eq!(test.machine.counts(), [10_000, 0, 0, 0]);
        entries[4711] = entry(global(4711), Some(local(4711)));
    }
    assert_eq!(
        MappingStatus::ALL.map(MappingStatus::label),
        ["assigned", "held", "unassigned", "conflict"]
    );
}

#[test]
fn joins_beyond_request_size_are_left_out_and_counted() {
    let many: Vec<Channel> = (0..40_000).map(global).collect();
    let mut test = TestMachine::new(MnatRole::Egress);
    test.start_session("A");
    test.set_joins(&many);
    let request = test.next_request();
    assert_eq!(request.op, Op::Join);
    let body = request.body.unwrap();
    assert!(body.len() <= MAX_REQUEST_LEN, "{}", body.len());
    // The request is filled up to its limit.
    assert!(body.len() > MAX_REQUEST_LEN - 2048, "{}", body.len());
    let body: Value = serde_json::from_slice(&body).unwrap();
    let joined = &body["ietf-mnat:watcher"]["joined-sg"];
    let joined = joined.as_array().unwrap().len();
    let left_out = many.len() - joined;
    assert!(test.events.contains(&MnatEvent::JoinsLeftOut(left_out)));
    assert_eq!(test.machine.counts(), [0, 0, 40_000, 0]);
    test.handle_outcome(Ok((204, "")));
    // The same joins again cause no event.
    test.events.clear();
    test.set_joins(&many);
    assert!(test.events.is_empty());
    // If only the joins that fit remain, none is left out.
    test.set_joins(&many[..joined]);
    assert_eq!(test.events, [MnatEvent::JoinsLeftOut(0)]);
    assert_eq!(test.machine.counts(), [0, 0, joined, 0]);
    test.set_joins(&many[..10_000]);
    assert_eq!(test.machine.counts(), [0, 0, 10_000, 0]);
}

impl TestMachine {
    /// Ends the process and starts another one after `seconds`.
    fn restart(&mut self, role: MnatRole, seconds: u32, server: &str) {
        let clock = |now: Instant, ms: u32| ClockReading {
            now,
            boot: BootTime::from_ms(500_000 + u64::from(ms)),
        };
        let host = |name: &str| (name.to_string(), 443);
        let saved = self.machine.saved(&clock(self.now, 0), host("a"));
        let text = serde_json::to_string(&saved).unwrap();
        let saved: SavedMnat = serde_json::from_str(&text).unwrap();
        self.now += SECOND * seconds;
        self.machine = Machine::new(role, GRACE, self.now, 7);
        let clock = clock(self.now, seconds * 1000);
        self.machine.restore(&clock, &saved, &host(server));
        let joins: Vec<_> = saved.joins.clone();
        self.set_joins(&joins);
    }
}

/// Returns an egress with one mapping, and the change that its restoration reports.
fn mapped_egress() -> (TestMachine, MappingChange) {
    let mut egress = TestMachine::new(MnatRole::Egress);
    egress.set_joins(&[global(0)]);
    egress.start_session("A");
    egress.poll(&[entry(global(0), Some(local(0)))]);
    assert_eq!(egress.take_changes().len(), 1);
    let restored = MappingChange::Add {
        global: global(0),
        local: local(0),
        waited: None,
    };
    (egress, restored)
}

#[test]
fn watcher_id_and_mappings_continue_after_a_restart() {
    let (mut egress, restored) = mapped_egress();
    egress.restart(MnatRole::Egress, 2, "a");
    assert_eq!(egress.take_changes(), [restored]);
    assert!(!egress.machine.is_up());
    // No new id is requested; the joins are sent before the mappings are polled.
    let join = egress.expect(Op::Join, Ok((204, "")));
    assert!(
        String::from_utf8(join.body.unwrap())
            .unwrap()
            .contains("23.0.0.1")
    );
    egress.poll(&[entry(global(0), Some(local(1)))]);
    let changes = egress.take_changes();
    assert!(matches!(changes[..], [MappingChange::Swap { new, .. }] if new == local(1)));
}

#[test]
fn restored_mapping_ends_if_server_does_not_assign_it() {
    let (mut egress, _) = mapped_egress();
    egress.restart(MnatRole::Egress, 2, "a");
    egress.take_changes();
    egress.expect(Op::Join, Ok((204, "")));
    egress.poll(&[entry(global(0), None)]);
    assert_eq!(
        egress.take_removals(),
        [(global(0), MappingEnd::Unassigned)]
    );
}

#[test]
fn unknown_restored_watcher_id_is_replaced_without_a_delay() {
    let (mut egress, _) = mapped_egress();
    egress.restart(MnatRole::Egress, 2, "a");
    let restarted = egress.now;
    egress.take_changes();
    egress.expect(Op::Join, Ok((404, "")));
    egress.start_session("B");
    assert_eq!(egress.now, restarted);
    assert_eq!(egress.take_changes(), []);
}

#[test]
fn mappings_that_expired_meanwhile_are_not_restored() {
    let (mut egress, _) = mapped_egress();
    egress.restart(MnatRole::Egress, 301, "a");
    assert_eq!(egress.take_changes(), []);
}

#[test]
fn other_server_gets_a_new_session() {
    let (mut egress, restored) = mapped_egress();
    egress.restart(MnatRole::Egress, 2, "b");
    assert_eq!(egress.take_changes(), [restored]);
    egress.start_session("B");
}

#[test]
fn other_role_restores_nothing() {
    let (mut egress, _) = mapped_egress();
    egress.restart(MnatRole::Ingress, 2, "a");
    assert_eq!(egress.take_changes(), []);
    egress.start_session("B");
}

impl TestMachine {
    /// Answers the next request, which must be a poll, as a server that waits for changes. Returns
    /// the request. `entries` are the mappings; `None` answers that nothing changed.
    fn push(&mut self, tag: &str, entries: Option<&[Value]>) -> MnatRequest {
        let request = self.next_request();
        assert_eq!(request.op, Op::Poll);
        self.answer_push(tag, entries);
        request
    }

    fn answer_push(&mut self, tag: &str, entries: Option<&[Value]>) {
        self.machine.set_entity_tag(Some(tag.into()));
        match entries {
            Some(entries) => {
                let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
                self.handle_outcome(Ok((200, &body.to_string())));
            }
            None => self.handle_outcome(Ok((304, ""))),
        }
    }
}

fn known(request: &MnatRequest) -> Option<&str> {
    request.wait.as_ref()?.known.as_deref()
}

#[test]
fn polls_wait_for_changes_where_the_server_supports_it() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    let first = test.push("1", Some(&[entry(global(1), None)]));
    assert_eq!(known(&first), None);
    let start = test.now;
    let second = test.push("2", Some(&[entry(global(1), Some(local(1)))]));
    assert_eq!(known(&second), Some("1"));
    assert!(
        test.now < start + SECOND,
        "the server waits, not the client"
    );
    assert_eq!(test.take_changes().len(), 1);
    // A server without support is polled in the usual interval.
    test.poll(&[entry(global(1), Some(local(1)))]);
    test.machine.set_entity_tag(None);
    let start = test.now;
    test.next_request();
    test.machine.set_entity_tag(None);
    test.handle_outcome(Ok((200, r#"{"ietf-mnat:watcher": [{"mapped-sg": []}]}"#)));
    assert_eq!(test.next_request().op, Op::Poll);
    assert!(test.now >= start + POLL_INTERVAL);
}

#[test]
fn unchanged_mappings_are_confirmed() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    test.push("1", Some(&[entry(global(1), Some(local(1)))]));
    let end = test.now + GRACE * 2;
    while test.now < end {
        let request = test.next_request();
        match request.op {
            Op::Poll => {
                assert_eq!(known(&request), Some("1"));
                test.now += POLL_INTERVAL;
                test.answer_push("1", None);
            }
            _ => test.handle_outcome(Ok((204, ""))),
        }
    }
    assert_eq!(test.take_changes().len(), 1);
    assert_eq!(test.machine.counts(), [1, 0, 0, 0]);
}

#[test]
fn changed_joins_interrupt_a_waiting_poll() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    test.push("1", Some(&[entry(global(1), Some(local(1)))]));
    assert_eq!(test.next_request().op, Op::Poll);
    assert!(!test.machine.should_cancel(test.now));
    test.set_joins(&[global(1), global(2)]);
    assert!(test.machine.should_cancel(test.now));
    test.machine.handle_cancelled();
    test.expect(Op::Join, Ok((204, "")));
    // The mappings before the change of the joins do not count.
    assert_eq!(known(&test.next_request()), None);
}

#[test]
fn poll_answer_older_than_the_joins_is_dropped() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    assert_eq!(test.next_request().op, Op::Poll);
    // The join ends and starts again before the server learns of it.
    test.set_joins(&[]);
    test.set_joins(&[global(1)]);
    test.answer_push("1", Some(&[entry(global(1), Some(local(1)))]));
    test.expect(Op::Join, Ok((204, "")));
    assert_eq!(known(&test.next_request()), None);
}

#[test]
fn refresh_is_not_delayed_by_a_waiting_poll() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    test.start_session("A");
    test.push("1", Some(&[]));
    let request = test.next_request();
    let wait = request.wait.expect("a wait").time;
    assert!(wait <= POLL_INTERVAL);
    test.now += wait * 3;
    assert!(test.machine.should_cancel(test.now));
}

/// A cancelled poll does not start the wait again: an answer after 12.5 seconds would count as an
/// outage.
#[test]
fn poll_after_cancelled_poll_keeps_the_interval() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    test.push("1", Some(&[entry(global(1), Some(local(1)))]));
    test.set_joins(&[global(1), global(2)]);
    test.expect(Op::Join, Err("refused"));
    test.push("2", Some(&[entry(global(1), Some(local(1)))]));
    assert_eq!(test.next_request().op, Op::Poll);
    test.now += 9 * SECOND;
    assert!(test.machine.should_cancel(test.now));
    test.machine.handle_cancelled();
    test.expect(Op::Join, Ok((204, "")));
    let request = test.next_request();
    assert_eq!(known(&request), Some("2"));
    let wait = request.wait.expect("a wait").time;
    assert!(wait <= 2 * SECOND, "{wait:?}");
}

#[test]
fn first_mappings_after_all_egresses_returned_are_read_again() {
    let mut test = TestMachine::new(MnatRole::Ingress);
    test.start_session("A");
    test.push("1", Some(&[entry(global(1), Some(local(1)))]));
    // The server forgets everything, and the egress does not return.
    test.poll(&[]);
    let mut asked_again = false;
    for _ in 0..40 {
        let request = test.next_request();
        match request.op {
            Op::Poll if known(&request).is_none() => {
                asked_again = true;
                test.answer_push("2", Some(&[]));
            }
            Op::Poll => {
                test.now += POLL_INTERVAL;
                test.answer_push("2", None);
            }
            _ => test.handle_outcome(Ok((204, ""))),
        }
    }
    assert!(asked_again);
    assert_eq!(test.machine.counts(), [0, 0, 0, 0]);
}

/// A join that failed is due later than the next poll. The poll must not be sent and interrupted again
/// and again.
#[test]
fn request_that_interrupts_a_poll_is_sent_next() {
    let mut test = TestMachine::new(MnatRole::Egress);
    test.set_joins(&[global(1)]);
    test.start_session("A");
    test.push("1", Some(&[entry(global(1), Some(local(1)))]));
    test.set_joins(&[global(1), global(2)]);
    test.expect(Op::Join, Err("refused"));
    assert_eq!(test.next_request().op, Op::Poll);
    test.now += POLL_INTERVAL;
    assert!(test.machine.should_cancel(test.now));
    test.machine.handle_cancelled();
    assert_eq!(test.next_request().op, Op::Join);
}
