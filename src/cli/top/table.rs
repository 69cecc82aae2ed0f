//! A table with a header that is sorted, filtered and fitted to the width of the screen.

use std::cmp::Ordering;

use crate::model::escape::{EscapeStyle, escape};

/// Space between two columns.
const GAP: usize = 2;
/// No column is made narrower than this to fit the screen.
const MIN_WIDTH: usize = 6;

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    /// The title.
    pub title: &'static str,
    /// Whether it is right-aligned.
    pub is_number: bool,
    /// Whether the largest number is first when it is sorted.
    pub is_descending: bool,
    /// Columns with a lower number are left out first on a narrow screen.
    pub importance: u8,
}

impl Column {
    /// A column of text.
    pub const fn text(title: &'static str, importance: u8) -> Self {
        Self {
            title,
            is_number: false,
            is_descending: false,
            importance,
        }
    }

    /// A column of numbers.
    pub const fn number(title: &'static str, importance: u8) -> Self {
        Self {
            title,
            is_number: true,
            is_descending: true,
            importance,
        }
    }

    /// A column of words, which are sorted by a number.
    pub const fn rank(title: &'static str, importance: u8) -> Self {
        Self {
            is_number: false,
            ..Self::number(title, importance)
        }
    }
}

/// A cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    /// What is shown, without control characters.
    pub text: String,
    /// The number by which the cell is sorted, if it is one.
    number: Option<f64>,
}

impl Cell {
    /// A cell with text, of which control characters are escaped.
    pub fn text(text: impl AsRef<str>) -> Self {
        let line = escape(text.as_ref(), EscapeStyle::Lines).replace('\n', " ");
        Self {
            text: line,
            number: None,
        }
    }

    /// A cell with a text that stands for a number.
    pub fn number(text: String, number: f64) -> Self {
        Self {
            text,
            number: Some(number),
        }
    }

    /// A cell with a count.
    pub fn count(count: u64) -> Self {
        Self::number(count.to_string(), count as f64)
    }

    /// A cell with a rate, which is unknown at first.
    pub fn rate(rate: Option<f64>) -> Self {
        match rate {
            Some(rate) => Self::number(short_number(rate), rate),
            None => Self::number("-".into(), -1.0),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self.number, other.number) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => self.text.cmp(&other.text),
        }
    }
}

/// Formats a number in at most five characters, such as `950`, `9.5k`, `12k`, `3.2M`.
pub(super) fn short_number(number: f64) -> String {
    let mut rest = number;
    for unit in ["", "k", "M", "G"] {
        let is_last = unit == "G";
        if rest < 999.5 || is_last {
            return match unit {
                "" => format!("{rest:.0}"),
                _ if rest < 9.95 => format!("{rest:.1}{unit}"),
                _ => format!("{rest:.0}{unit}"),
            };
        }
        rest /= 1000.0;
    }
    String::new()
}

/// How much a row needs attention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Attention {
    /// None.
    #[default]
    Normal,
    /// Something is not as usual.
    Warning,
    /// Packets are lost.
    Fault,
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// Identifies the row among those of other readings.
    pub key: String,
    /// The cells, one for each column.
    pub cells: Vec<Cell>,
    /// How it is coloured.
    pub attention: Attention,
}

/// A table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Table {
    /// The columns.
    pub columns: &'static [Column],
    /// The rows.
    pub rows: Vec<Row>,
    /// What to say if there are no rows.
    pub empty: &'static str,
}

/// By which column a table is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sorting {
    /// The column.
    pub column: usize,
    /// Whether the usual order is reversed.
    pub reversed: bool,
}

impl Table {
    /// Sorts the rows: numbers from the largest, text from A. Equal rows are sorted by their key.
    pub fn sort(&mut self, sorting: Sorting) {
        let column = sorting.column;
        let descending = self.columns.get(column).is_some_and(|c| c.is_descending);
        self.rows.sort_by(|a, b| {
            let order = match (a.cells.get(column), b.cells.get(column)) {
                (Some(a), Some(b)) => a.compare(b),
                _ => Ordering::Equal,
            };
            let order = match descending != sorting.reversed {
                true => order.reverse(),
                false => order,
            };
            order.then_with(|| a.key.cmp(&b.key))
        });
    }

    /// Keeps the rows that contain each word of `filter`, in any cell and in any case.
    pub fn filter(&mut self, filter: &str) {
        let filter = filter.to_lowercase();
        let words: Vec<&str> = filter.split_whitespace().collect();
        if words.is_empty() {
            return;
        }
        self.rows.retain(|row| {
            let cells: Vec<String> = row.cells.iter().map(|c| c.text.to_lowercase()).collect();
            let line = cells.join(" ");
            words.iter().all(|word| line.contains(word))
        });
    }

    /// Returns the columns that fit `width` characters, and their widths.
    pub fn layout(&self, width: usize) -> Vec<(usize, usize)> {
        let needed = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(column));
            let longest = cells.map(|cell| cell.text.chars().count()).max();
            let title = self.columns.get(column).map_or(0, |c| c.title.len());
            // One more for the mark of the sorted column.
            longest.unwrap_or(0).max(title + 1)
        };
        let mut columns: Vec<(usize, usize)> = (0..self.columns.len())
            .map(|column| (column, needed(column)))
            .collect();
        let total = |columns: &[(usize, usize)]| -> usize {
            let widths: usize = columns.iter().map(|(_, width)| width).sum();
            widths + GAP * columns.len().saturating_sub(1)
        };
        while total(&columns) > width && columns.len() > 1 {
            // The important columns are cut, not left out.
            let least = (columns.iter().enumerate())
                .filter(|(_, (column, _))| self.columns[*column].importance < u8::MAX)
                .min_by_key(|(_, (column, _))| self.columns[*column].importance);
            match least.map(|(position, _)| position) {
                Some(position) => drop(columns.remove(position)),
                None => break,
            }
        }
        while total(&columns) > width {
            let widest = columns.iter_mut().max_by_key(|(_, width)| *width);
            match widest {
                Some((_, width)) if *width > MIN_WIDTH => *width -= 1,
                _ => break,
            }
        }
        columns
    }

    /// Returns the header as a line; an arrow marks the column of `sorting`.
    pub fn header(&self, layout: &[(usize, usize)], sorting: Sorting) -> String {
        let cells = layout.iter().map(|(column, width)| {
            let Some(found) = self.columns.get(*column) else {
                return String::new();
            };
            let mark = match (*column == sorting.column, sorting.reversed) {
                (true, false) => "v",
                (true, true) => "^",
                (false, _) => "",
            };
            aligned(&format!("{}{mark}", found.title), *width, found.is_number)
        });
        joined(cells)
    }

    /// Returns a row as a line.
    pub fn line(&self, layout: &[(usize, usize)], row: &Row) -> String {
        let cells = layout.iter().map(|(column, width)| {
            let is_number = self.columns.get(*column).is_some_and(|c| c.is_number);
            let text = row.cells.get(*column).map_or("", |cell| cell.text.as_str());
            aligned(text, *width, is_number)
        });
        joined(cells)
    }
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.collect();
    cells.join(&" ".repeat(GAP))
}

/// Returns `text` in exactly `width` characters.
fn aligned(text: &str, width: usize, right: bool) -> String {
    let text = match text.chars().count() > width {
        true => text
            .chars()
            .take(width.saturating_sub(1))
            .chain(['~'])
            .collect(),
        false => text.to_owned(),
    };
    match right {
        true => format!("{text:>width$}"),
        false => format!("{text:<width$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::text("GROUP", u8::MAX),
        Column::number("PKT/S", u8::MAX),
        Column::text("ROUTE", 1),
        Column::text("OIFS", 2),
    ];

    fn table() -> Table {
        let row = |group: &str, rate: Option<f64>, route: &str, oifs: &str| Row {
            key: group.into(),
            cells: vec![
                Cell::text(group),
                Cell::rate(rate),
                Cell::text(route),
                Cell::text(oifs),
            ],
            attention: Attention::Normal,
        };
        Table {
            columns: COLUMNS,
            rows: vec![
                row("225.1.2.3", Some(9.0), "cameras", "eth1"),
                row("225.1.2.10", Some(12_345.0), "cameras", "eth1 eth2"),
                row("225.1.2.4", None, "alarms", "eth1"),
            ],
            empty: "",
        }
    }

    fn keys(table: &Table) -> Vec<&str> {
        table.rows.iter().map(|row| row.key.as_str()).collect()
    }

    #[test]
    fn numbers_are_sorted_from_the_largest_and_text_from_a() {
        let mut table = table();
        let sort = |table: &mut Table, column, reversed| {
            table.sort(Sorting { column, reversed });
            keys(table).join(" ")
        };
        let by_rate = "225.1.2.10 225.1.2.3 225.1.2.4";
        assert_eq!(sort(&mut table, 1, false), by_rate);
        assert_eq!(sort(&mut table, 1, true), "225.1.2.4 225.1.2.3 225.1.2.10");
        assert_eq!(sort(&mut table, 2, false), "225.1.2.4 225.1.2.10 225.1.2.3");
        // A column that does not exist: by key.
        assert_eq!(sort(&mut table, 9, false), "225.1.2.10 225.1.2.3 225.1.2.4");
    }

    #[test]
    fn filter_needs_each_word_in_any_case() {
        let filtered = |filter: &str| {
            let mut table = table();
            table.filter(filter);
            table.rows.len()
        };
        assert_eq!(
            (filtered(""), filtered("CAMERAS"), filtered("eth2 cam")),
            (3, 2, 1)
        );
        assert_eq!(filtered("eth2 alarms"), 0);
    }

    #[test]
    fn narrow_screen_leaves_out_unimportant_columns_and_cuts_the_others() {
        let table = table();
        let columns = |width| {
            let layout = table.layout(width);
            layout.iter().map(|(column, _)| *column).collect::<Vec<_>>()
        };
        assert_eq!(columns(80), [0, 1, 2, 3]);
        assert_eq!(columns(32), [0, 1, 3]);
        assert_eq!(columns(20), [0, 1]);
        for width in [80, 32, 20, 15] {
            let layout = table.layout(width);
            let line = table.line(&layout, &table.rows[1]);
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
        let layout = table.layout(15);
        assert_eq!(table.line(&layout, &table.rows[1]), "225.1.~     12k");
        let sorting = Sorting {
            column: 1,
            reversed: false,
        };
        let layout = table.layout(20);
        assert_eq!(table.header(&layout, sorting), "GROUP       PKT/Sv");
        assert_eq!(table.line(&layout, &table.rows[0]), "225.1.2.3        9");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (9_949.0, "9.9k"),
            (12_345.0, "12k"),
            (999_600.0, "1.0M"),
            (2.5e9, "2.5G"),
            (1.2e13, "12000G"),
        ];
        for (number, text) in cases {
            assert_eq!(short_number(number), text);
        }
    }

    #[test]
    fn control_characters_of_cells_are_escaped() {
        assert_eq!(Cell::text("a\u{1b}[2Jb\nc").text, "a\\u{1b}[2Jb c");
    }
}
