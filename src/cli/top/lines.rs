//! The output of `mcastor top` as plain lines.

use super::snapshot::{Rates, Reading};
use super::table::Table;
use super::tables::View;

/// Returns the tables of a snapshot: for each view a title, a header, and a line for each row.
pub(super) fn text(views: &[View], snapshot: &Reading, rates: &Rates) -> String {
    let tables = views.iter().map(|view| {
        let mut table = view.table(snapshot, rates);
        table.sort(view.default_sorting());
        let rows = table.rows.len();
        format!("{} ({rows})\n{}", view.title(), table_text(&table, *view))
    });
    tables.collect::<Vec<_>>().join("\n")
}

fn table_text(table: &Table, view: View) -> String {
    if table.rows.is_empty() {
        return format!("{}\n", table.empty);
    }
    // No screen limits the width.
    let layout = table.layout(usize::MAX);
    let mut text = format!(
        "{}\n",
        table.header(&layout, view.default_sorting()).trim_end()
    );
    for row in &table.rows {
        text += table.line(&layout, row).trim_end();
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::snapshot;
    use super::*;

    #[test]
    fn each_row_is_one_line_with_all_columns() {
        let (before, now) = (snapshot(0, [100; 3]), snapshot(2, [120, 300, 104]));
        let rates = Rates::between(&before, &now);
        let lines = text(&[View::Flows, View::Streams], &now, &rates);
        let expected = "\
Flows (3)
IIF   SOURCE    GROUP      PKT/Sv  BIT/S   PACKETS  IDLE   OIFS       ROUTE   PLANE
eth0  10.0.0.1  225.1.2.2     100     80k       300   0.0s  eth1 eth2  cams    packet
eth0  10.0.0.1  225.1.2.1      10    8.0k       120   0.0s  eth1 eth2  cams    packet
eth0  10.0.0.1  225.1.2.3       2    1.6k       104   0.0s  eth1 eth2  cams    packet

Streams (0)
No stream is monitored. Set `monitor` in a route or proxy.
";
        let words = |text: &str| {
            let lines = text.lines();
            let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(words(&lines), words(expected), "{lines}");
    }
}
