//! Draws results/forwarding.svg: mcastor relative to ip_mroute, with a row per scenario.

use std::fmt::Write as _;

use crate::peer::Peer;
use crate::results::{Results, Spread};

const LABELS: f64 = 440.0;
const PANEL: f64 = 290.0;
const GAP: f64 = 40.0;
const TOP: f64 = 96.0;
const BAR: f64 = 15.0;
const BETWEEN: f64 = 14.0;
/// The largest ratio that an axis shows. A larger value, such as from a noisy round, is clipped.
const AXIS_LIMIT: f64 = 3.5;
/// Colours for a light and a dark page.
const STYLE: &str = "<style>\n\
    .page { fill: #ffffff; } text { fill: #1f2328; } .muted { fill: #57606a; }\n\
    .mark { stroke: #1f2328; } .grid { stroke: #e3e3e3; }\n\
    .default { fill: #2563a8; } .bypass { fill: #7fb2e5; } .goal { fill: #c2410c; }\n\
    @media (prefers-color-scheme: dark) {\n\
    .page { fill: #0d1117; } text { fill: #e6edf3; } .muted { fill: #a5adb8; }\n\
    .mark { stroke: #e6edf3; } .grid { stroke: #30363d; }\n\
    .default { fill: #4493f8; } .bypass { fill: #1f4f8f; } .goal { fill: #f0883e; }\n\
    }\n</style>\n";
const SERIES: [(Peer, &str, &str); 2] = [
    (Peer::Mcastor, "mcastor", "default"),
    (
        Peer::McastorBypass,
        "mcastor, qdisc_bypass = true",
        "bypass",
    ),
];

struct Panel {
    title: &'static str,
    better: &'static str,
    figure: &'static str,
    /// Scenario IDs and their goals.
    goals: &'static [(&'static str, f64)],
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "CPU per packet at 100k/s",
        better: "less is better",
        figure: "cpu_ns@100k",
        goals: &[
            ("egress-4", 0.9),
            ("offload-on-1", 1.3),
            ("offload-on-4", 1.1),
        ],
    },
    Panel {
        title: "CPU per packet at 300k/s",
        better: "less is better",
        figure: "cpu_ns@300k",
        goals: &[("egress-1", 1.0)],
    },
    Panel {
        title: "maximum rate",
        better: "more is better",
        figure: "max_pps",
        goals: &[("egress-1", 1.7), ("egress-4", 1.15)],
    },
];

/// Returns the drawing as SVG.
pub fn draw(results: &Results, caption: &str, quick: bool) -> String {
    let rows: Vec<_> = results
        .scenarios
        .iter()
        .filter(|(s, _)| s.peers.contains(&Peer::Kernel))
        .map(|(s, _)| s)
        .collect();
    let bars = |id: &str, figure: &str| -> Vec<(Spread, &str)> {
        SERIES
            .iter()
            .filter_map(|(peer, _, colour)| Some((results.ratio(id, *peer, figure)?, *colour)))
            .collect()
    };
    let height_of = |id: &str| {
        let bar_count = PANELS.iter().map(|p| bars(id, p.figure).len()).max();
        bar_count.unwrap_or(1).max(1) as f64 * BAR + BETWEEN
    };
    let height = TOP + rows.iter().map(|s| height_of(s.id)).sum::<f64>() + 60.0;
    let width = LABELS + (PANEL + GAP) * PANELS.len() as f64 + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         {STYLE}<rect width=\"100%\" height=\"100%\" class=\"page\"/>\n"
    );
    let quick = if quick { " (quick run)" } else { "" };
    text(
        &mut svg,
        16.0,
        26.0,
        "start",
        "font-size=\"17\" font-weight=\"bold\"",
        &format!("mcastor against the kernel's ip_mroute{quick}"),
    );
    let mut x = 16.0;
    for (_, name, colour) in SERIES {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"40\" width=\"12\" height=\"12\" class=\"{colour}\"/>"
        );
        text(&mut svg, x + 18.0, 51.0, "start", "", name);
        x += 40.0 + name.len() as f64 * 7.0;
    }
    text(
        &mut svg,
        x,
        51.0,
        "start",
        "",
        "| kernel = 1, – smallest to largest round, ◆ goal",
    );
    for (i, panel) in PANELS.iter().enumerate() {
        let left = LABELS + i as f64 * (PANEL + GAP);
        let all = rows.iter().flat_map(|s| bars(s.id, panel.figure));
        let goals = panel.goals.iter().map(|g| g.1);
        let largest = all.map(|b| b.0.max).chain(goals).fold(1.2, f64::max);
        let axis_end = ((largest * 1.12 * 2.0).ceil() / 2.0).min(AXIS_LIMIT);
        let scale = |v: f64| left + v.clamp(0.0, axis_end) / axis_end * PANEL;
        text(
            &mut svg,
            left,
            TOP - 12.0,
            "start",
            "font-weight=\"bold\"",
            &format!("{} ({})", panel.title, panel.better),
        );
        let bottom = height - 52.0;
        let step = 0.5;
        let mut at = 0.0;
        while at <= axis_end + 1e-9 {
            let x = scale(at);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" class=\"grid\"/>"
            );
            text(
                &mut svg,
                x,
                bottom + 16.0,
                "middle",
                "class=\"muted\"",
                &format!("{at}x"),
            );
            at += step;
        }
        let mut y = TOP + BETWEEN / 2.0;
        for scenario in &rows {
            let start = y;
            for (spread, colour) in bars(scenario.id, panel.figure) {
                let (end, middle) = (scale(spread.median), y + BAR / 2.0);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{left}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" class=\"{colour}\"/>\n\
                     <line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" class=\"mark\" stroke-width=\"1.5\"/>",
                    y + 1.0,
                    end - left,
                    BAR - 2.0,
                    scale(spread.min),
                    scale(spread.max),
                );
                text(
                    &mut svg,
                    scale(spread.max.max(spread.median)) + 5.0,
                    y + BAR - 3.5,
                    "start",
                    "font-size=\"11\"",
                    &format!("{:.2}", spread.median),
                );
                y += BAR;
            }
            if let Some((_, goal)) = panel.goals.iter().find(|g| g.0 == scenario.id) {
                let (x, middle) = (scale(*goal), start - 1.0);
                let _ = writeln!(
                    svg,
                    "<path d=\"M{x:.1} {:.1} l5 5 l-5 5 l-5 -5 z\" class=\"goal\"/>",
                    middle - 5.0
                );
            }
            y = start + height_of(scenario.id);
            if i == 0 {
                text(
                    &mut svg,
                    LABELS - 10.0,
                    (start + y - BETWEEN) / 2.0 + 4.5,
                    "end",
                    "",
                    scenario.title,
                );
            }
        }
        let one = scale(1.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{one:.1}\" y1=\"{TOP}\" x2=\"{one:.1}\" y2=\"{bottom}\" class=\"mark\" stroke-width=\"1.5\"/>"
        );
    }
    text(
        &mut svg,
        16.0,
        height - 12.0,
        "start",
        "class=\"muted\" font-size=\"11\"",
        caption,
    );
    svg + "</svg>\n"
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, style: &str, text: &str) {
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{escaped}</text>"
    );
}
