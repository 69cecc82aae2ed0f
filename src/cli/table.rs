//! Tables that fit the terminal.

use std::io;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use terminal_size::terminal_size_of;

/// A space at which no cell is wrapped, as in `0.5 s`. It is printed as a space.
pub const NO_BREAK: &str = "\u{a0}";

/// Columns that are left out first on a terminal that is too narrow.
const DISPENSABLE: [&str; 4] = ["BYTES", "AGE", "ORIGIN", "IDLE"];

/// Returns a duration such as `2.1 s`.
pub fn seconds(ms: u64) -> String {
    format!("{:.1}{NO_BREAK}s", ms as f64 / 1000.0)
}

/// Creates a table. The columns with an index in `numbers` are right-aligned.
pub fn new_table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Formats a table. On a terminal that is too narrow, columns without content are left out, and long
/// cells are wrapped between words. If that does not suffice, dispensable columns are left out too. In
/// a file or a pipe, each row is one line.
pub fn table_text(table: Table) -> String {
    let terminal = terminal_size_of(io::stdout());
    formatted(table, terminal.map(|(columns, _)| columns.0))
}

fn formatted(table: Table, columns: Option<u16>) -> String {
    fitted(table, columns).replace(NO_BREAK, " ")
}

fn fitted(mut table: Table, columns: Option<u16>) -> String {
    let text = table.to_string();
    let Some(columns) = columns else {
        return text;
    };
    let is_too_wide = |line: &str| line.chars().count() > usize::from(columns);
    if !text.lines().any(is_too_wide) {
        return text;
    }
    let mut widths: Vec<Option<u16>> = (0..table.column_count())
        .map(|index| smallest_width(&table, index))
        .collect();
    for title in DISPENSABLE {
        let total: u32 = widths.iter().flatten().copied().map(u32::from).sum();
        if total <= u32::from(columns) {
            break;
        }
        let column = (0..widths.len()).find(|index| title_of(&table, *index) == title);
        if let Some(column) = column {
            widths[column] = None;
        }
    }
    let constraints: Vec<_> = (widths.into_iter())
        .map(|width| match width {
            Some(width) => ColumnConstraint::LowerBoundary(Width::Fixed(width)),
            None => ColumnConstraint::Hidden,
        })
        .collect();
    table.set_constraints(constraints);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(columns);
    table.to_string()
}

fn title_of(table: &Table, index: usize) -> String {
    let mut cells = table.column_cells_with_header_iter(index).flatten();
    let title = cells.next().map(comfy_table::Cell::content);
    title.unwrap_or_default()
}

/// Returns the width of the longest word of a column, with a space on each side, or `None` for a
/// column without content.
fn smallest_width(table: &Table, index: usize) -> Option<u16> {
    let cells = table.column_cells_with_header_iter(index).flatten();
    let all: Vec<String> = cells.map(comfy_table::Cell::content).collect();
    let is_empty = |text: &String| matches!(text.as_str(), "" | "-");
    if all.len() > 1 && all[1..].iter().all(is_empty) {
        return None;
    }
    let words = all.iter().flat_map(|text| text.split([' ', '\n']));
    let longest = words.map(|word| word.chars().count()).max().unwrap_or(0);
    Some(u16::try_from(longest + 2).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = new_table(&["NAME", "HINT", "DROPPED", "SENT"], &[3]);
        table.add_row(["eth0", "-", "no_route 31, ttl_expired 20", "7"]);
        table.add_row(["eth1", "-", "-", "1234"]);
        table
    }

    #[test]
    fn wide_terminals_and_pipes_get_one_line_for_each_row() {
        for columns in [None, Some(60)] {
            let text = formatted(table(), columns);
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(
                text.contains(" eth0  -     no_route 31, ttl_expired 20     7"),
                "{text}"
            );
        }
    }

    #[test]
    fn narrow_terminals_get_wrapped_cells_without_empty_columns() {
        let text = formatted(table(), Some(36));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= 36), "{text}");
        assert!(
            !text.contains("HINT") && text.contains("no_route 31,"),
            "{text}"
        );
        assert_eq!(lines.len(), 4, "{text}");
    }

    #[test]
    fn words_are_never_broken() {
        let text = formatted(table(), Some(10));
        for word in ["ttl_expired", "DROPPED", "1234"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn narrow_terminals_hide_dispensable_columns_and_keep_units() {
        let mut table = new_table(&["ROUTE", "BYTES", "AGE", "IDLE"], &[1, 2, 3]);
        let age = format!("316{NO_BREAK}s");
        let idle = format!("0.1{NO_BREAK}s");
        table.add_row(["cameras", "7551132", &age, &idle]);
        let full = formatted(table.clone(), Some(80));
        assert!(full.contains(" cameras  7551132  316 s  0.1 s"), "{full}");
        let narrow = formatted(table.clone(), Some(25));
        assert!(narrow.contains(" cameras  316 s  0.1 s"), "{narrow}");
        let narrower = formatted(table.clone(), Some(16));
        assert!(narrower.contains(" cameras  0.1 s"), "{narrower}");
        assert!(!formatted(table, Some(12)).contains("IDLE"));
    }
}
