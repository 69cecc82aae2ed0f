//! The page in a browser: headless Chromium, driven by `tests/page/browser.py`.

use std::path::Path;

use super::{cases, route};
use crate::lab::proxy::proxy;
use crate::lab::{GroupMember, Injector, Lab, NumberedStream, Router, Star, Udp, eventually};

cases!("page_browser":
    #[Variable("MCASTOR_AXE", "test-page")]
    #[Program("chromium", "chromium")]
    #[Python("websocket", "python3-websocket")]
    page_works_in_a_browser,
);

/// Flows besides that of the stream.
const FLOWS: usize = 10_000;

/// Figures move under traffic, 10,000 flows are searched, everything works by keyboard and on a
/// phone, and axe-core finds nothing. With `MCASTOR_BLESS`, the pictures in docs/ are written.
fn page_works_in_a_browser(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let settings = [
        "[limits]\nflow_idle = 600\n[monitor]\nsequence_offset = 0\nsequence_bytes = 4\n".into(),
        route(
            "cameras",
            "in",
            "",
            "225.1.2.0/24",
            &["out1", "out2"],
            "monitor = \"sequence\"\n",
        ),
        route("market data", "in", "", "239.7.0.0/16", &["out1"], ""),
        route("spare", "in", "", "225.9.9.9", &["wlan0"], ""),
        proxy(&["in"], &["out3"], ""),
    ];
    let router = Router::start(lab, &star.rtr, &settings.concat());
    let _member = GroupMember::any_source(&star.rcv, "eth3", "239.1.2.3");
    let inject = Injector::new(&star.src, "eth0");
    let send = |to: &str, ttl: u8| {
        let payload = [b'x'; 1316];
        inject.send(&Udp::new("10.0.0.10:9", to, &payload[..]).ttl(ttl).frame());
    };
    for n in 0..FLOWS {
        send(&format!("239.7.{}.{}:5000", n / 250, n % 250), 16);
    }
    for _ in 0..20 {
        send("225.1.2.7:5004", 1);
        send("239.255.9.9:5000", 16);
    }
    eventually("all flows", true, || {
        // A router that is busy with new flows may answer late.
        let answer = router.get("/api/v1/flows?limit=1");
        answer.is_ok_and(|answer| answer.body.contains(&format!("\"total\":{FLOWS}")))
    });
    let streams = ["225.1.2.3:5004", "225.1.2.4:5004", "239.1.2.3:5004"];
    let streams = [(0, 400), (1, 150), (2, 60)]
        .map(|(n, rate)| NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", streams[n], rate));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/browser.py");
    let pictures = match std::env::var_os("MCASTOR_BLESS") {
        Some(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"),
        None => lab.file("pictures"),
    };
    let (script, pictures) = (script.display().to_string(), pictures.display().to_string());
    let axe = std::env::var("MCASTOR_AXE").expect("the path of axe-core");
    let arguments = [
        &script,
        "http://127.0.0.1:9464/",
        &axe,
        &pictures,
        &FLOWS.to_string(),
    ];
    let out = star.rtr.output("/usr/bin/python3", &arguments.map(|a| a));
    let printed = String::from_utf8_lossy(&out.stdout);
    println!("{printed}");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{printed}\n{stderr}");
    streams.into_iter().for_each(|stream| _ = stream.finish());
}
