//! Draws the state of `mcastor top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::snapshot::{MAX_FLOWS, Reading};
use super::state::{Detail, Page, TopState};
use super::table::{Attention, short_number};
use super::tables::View;

/// Lines above and below the rows: title, views, header, and the last line.
const FRAME_LINES: u16 = 4;

/// The help.
pub(super) const HELP: &str = "\
1 to 5          Interfaces, Flows, Drops, Joins, Streams
Tab, left, right, h, l
                the next view, or the one before
up, down, k, j  select a row
PgUp, PgDn      a page up or down
g, Home, G, End the first row, the last row
Enter           open the row: a flow with its explanation, a stream with
                its health; Escape goes back
s, >, <         sort by the next column, or by the one before
r, S            reverse the order
/               show only rows with these words; Escape shows all
p, space        pause, and go on
r               in an open flow or drop: ask the router again
?               this help
q, Ctrl-C       quit

Rates are those since the last reading. MINUTE, LOST and HERE count packets
of the last minute: lost before this router, and lost here.";

/// Returns how many rows or lines of a page fit a screen of this height.
pub(super) fn page_len(height: u16) -> usize {
    height.saturating_sub(FRAME_LINES).max(1).into()
}

/// The styles of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Palette {
    /// Whether colours are used. Without them, text is only bold or reversed.
    pub has_colours: bool,
}

impl Palette {
    fn style(self, attention: Attention) -> Style {
        match (attention, self.has_colours) {
            (Attention::Normal, _) => Style::new(),
            (Attention::Warning, true) => Style::new().fg(Color::Yellow),
            (Attention::Fault, true) => Style::new().fg(Color::Red),
            (Attention::Warning | Attention::Fault, false) => {
                Style::new().add_modifier(Modifier::BOLD)
            }
        }
    }

    fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

/// Draws a screen.
pub(super) fn draw(frame: &mut Frame<'_>, state: &TopState, palette: Palette) {
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ];
    let [title, views, body, last] = Layout::vertical(rows).areas(frame.area());
    draw_line(frame, title, title_line(state, palette));
    draw_line(frame, views, views_line(state, palette));
    match state.page() {
        Page::Table => draw_table(frame, body, state, palette),
        Page::Detail(detail) => draw_detail(frame, body, detail, palette),
        Page::Help => draw_text(frame, body, "Keys", HELP, palette),
    }
    draw_line(frame, last, last_line(state, palette));
}

fn draw_line(frame: &mut Frame<'_>, area: Rect, line: Line<'_>) {
    frame.render_widget(Paragraph::new(line), area);
}

/// Returns the line with the sums.
fn title_line(state: &TopState, palette: Palette) -> Line<'static> {
    let mut spans = vec![Span::styled("mcastor top", palette.bold())];
    if state.snapshot().is_none() {
        spans.push(Span::raw("  waiting for the router"));
    } else {
        let sum = |field: fn(&super::snapshot::InterfaceRates) -> f64| {
            short_number(state.rates().interfaces.values().map(field).sum())
        };
        spans.push(Span::raw(format!(
            "  {} packets/s in, {} out, {} dropped",
            sum(|rate| rate.received),
            sum(|rate| rate.sent),
            sum(|rate| rate.dropped)
        )));
    }
    if state.is_paused() {
        spans.push(Span::styled("  paused", palette.style(Attention::Warning)));
    }
    Line::from(spans)
}

/// Returns the line with the names of the views.
fn views_line(state: &TopState, palette: Palette) -> Line<'static> {
    let mut spans = Vec::new();
    for (number, view) in (1..).zip(View::ALL) {
        let rows = state.snapshot().map(|snapshot| match view {
            View::Interfaces => snapshot.interfaces.len(),
            View::Flows => snapshot.flows.len(),
            View::Drops => snapshot.drops.len(),
            View::Joins => snapshot.groups.len(),
            View::Streams => snapshot.streams.len(),
        });
        let rows = rows.map_or_else(String::new, |rows| format!(" {rows}"));
        let text = format!(" {number} {}{rows} ", view.title());
        let style = match view == state.view() {
            true => palette.chosen(),
            false => Style::new(),
        };
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &TopState, palette: Palette) {
    let table = state.table();
    let layout = table.layout(area.width.into());
    let header = table.header(&layout, state.sorting());
    let mut lines = vec![Line::styled(header, palette.bold())];
    let height = usize::from(area.height).saturating_sub(1).max(1);
    let selected = state.selected(&table);
    // The selected row is in the middle, except near the ends.
    let first = selected
        .saturating_sub(height / 2)
        .min(table.rows.len().saturating_sub(height));
    for (position, row) in table.rows.iter().enumerate().skip(first).take(height) {
        let line = table.line(&layout, row);
        let style = palette.style(row.attention);
        lines.push(match position == selected {
            // The whole line, so that it can be seen.
            true => Line::styled(
                format!("{line:<width$}", width = usize::from(area.width)),
                style.patch(palette.chosen()),
            ),
            false => Line::styled(line, style),
        });
    }
    if table.rows.is_empty() && state.snapshot().is_some() {
        lines.push(Line::raw(match state.filter() {
            "" => table.empty,
            _ => "No row has these words.",
        }));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_detail(frame: &mut Frame<'_>, area: Rect, detail: &Detail, palette: Palette) {
    let shown = detail.lines();
    let shown: Vec<&str> = shown.into_iter().skip(detail.scroll).collect();
    draw_text(frame, area, &detail.key, &shown.join("\n"), palette);
}

/// Draws a title and a text below it.
fn draw_text(frame: &mut Frame<'_>, area: Rect, title: &str, text: &str, palette: Palette) {
    let mut lines = vec![Line::styled(title.to_owned(), palette.bold())];
    lines.extend(text.lines().map(Line::raw));
    frame.render_widget(Paragraph::new(lines), area);
}

/// Returns the last line: the filter, an error, or the keys.
fn last_line(state: &TopState, palette: Palette) -> Line<'static> {
    if state.is_typing() {
        return Line::styled(format!("/{}_", state.filter()), palette.bold());
    }
    if let Some(error) = state.error() {
        return Line::styled(error.to_owned(), palette.style(Attention::Fault));
    }
    let keys = match state.page() {
        Page::Table if !state.filter().is_empty() => {
            return Line::raw(format!("/{}   Escape: all rows", state.filter()));
        }
        Page::Table if state.view() == View::Flows && is_cut(state.snapshot()) => {
            return Line::raw(format!(
                "the {MAX_FLOWS} flows with the most packets; ?: help  q: quit"
            ));
        }
        Page::Table => "Enter: open  s: sort  r: reverse  /: filter  p: pause  ?: help  q: quit",
        Page::Detail(_) => "up, down: scroll  Escape: back  ?: help  q: quit",
        Page::Help => "any key: back  q: quit",
    };
    Line::raw(keys)
}

fn is_cut(snapshot: Option<&Reading>) -> bool {
    snapshot.is_some_and(|snapshot| snapshot.flows.len() >= MAX_FLOWS)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::state::Key;
    use super::super::tests::snapshot;
    use super::*;

    /// Returns the lines of the screen, and whether any cell has a colour.
    fn screen(state: &TopState, (width, height): (u16, u16), has_colours: bool) -> (String, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        let palette = Palette { has_colours };
        terminal
            .draw(|frame| draw(frame, state, palette))
            .expect("a screen");
        let buffer = terminal.backend().buffer();
        let cells: Vec<_> = buffer.content().iter().collect();
        let lines: Vec<String> = cells
            .chunks(width.into())
            .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect();
        let is_coloured = cells.iter().any(|cell| cell.fg != Color::Reset);
        (lines.join("\n").trim_end().to_owned(), is_coloured)
    }

    fn state(view: View) -> TopState {
        let mut state = TopState::new(view);
        state.read(Ok(snapshot(0, [100, 100, 100])));
        state.read(Ok(snapshot(2, [120, 300, 104])));
        state
    }

    #[test]
    fn flows_fit_eighty_columns() {
        let (text, _) = screen(&state(View::Flows), (80, 24), true);
        let expected = "\
mcastor top  112 packets/s in, 224 out, 2 dropped
 1 Interfaces 2   2 Flows 3   3 Drops 1   4 Joins 1   5 Streams 0
IIF   SOURCE    GROUP      PKT/Sv   BIT/S   PACKETS   IDLE  OIFS       ROUTE
eth0  10.0.0.1  225.1.2.2     100     80k       300   0.0s  eth1 eth2  cams
eth0  10.0.0.1  225.1.2.1      10    8.0k       120   0.0s  eth1 eth2  cams
eth0  10.0.0.1  225.1.2.3       2    1.6k       104   0.0s  eth1 eth2  cams";
        let body = text.lines().take(6).collect::<Vec<_>>().join("\n");
        assert_eq!(body, expected, "{text}");
        let last = text.lines().last().expect("a line");
        assert!(
            last.starts_with("Enter: open") && last.len() <= 80,
            "{last}"
        );
        assert_eq!(text.lines().count(), 24);
    }

    #[test]
    fn each_view_fits_small_screens() {
        for view in View::ALL {
            for size in [(80, 24), (40, 6), (10, 3), (1, 1)] {
                screen(&state(view), size, true);
            }
            let (text, _) = screen(&state(view), (80, 24), true);
            assert!(text.contains(view.title()), "{text}");
        }
        let (text, _) = screen(&state(View::Interfaces), (80, 24), true);
        let row = "eth0   up      in       112       0        2       1524      0         9";
        assert!(text.contains(row), "{text}");
        let (text, _) = screen(&state(View::Drops), (80, 24), true);
        assert!(text.contains("no_route  10.0.0.9  225.9.9.9"), "{text}");
        let (text, _) = screen(&state(View::Streams), (80, 24), true);
        assert!(text.contains("No stream is monitored."), "{text}");
    }

    #[test]
    fn without_colours_faults_are_bold() {
        let state = state(View::Drops);
        assert!(screen(&state, (80, 24), true).1);
        assert!(!screen(&state, (80, 24), false).1);
    }

    #[test]
    fn selected_row_is_always_visible() {
        let mut state = state(View::Flows);
        for key in [Key::Down, Key::Down, Key::Up, Key::Up] {
            state.key(key, 1);
            let table = state.table();
            let group = &table.rows[state.selected(&table)].cells[2].text;
            let (text, _) = screen(&state, (80, 5), true);
            assert!(text.contains(group), "{text}");
        }
    }

    #[test]
    fn help_names_each_key_and_fits_the_screen() {
        let mut state = state(View::Flows);
        state.key(Key::Char('?'), 20);
        let (text, _) = screen(&state, (80, 24), true);
        assert!(text.contains("Rates are those since") && text.contains("any key: back"));
        assert!(HELP.lines().all(|line| line.len() <= 80));
        assert!(HELP.lines().count() < page_len(24) + 1);
    }

    #[test]
    fn filter_error_and_pause_are_shown() {
        let mut state = state(View::Flows);
        state.key(Key::Char('/'), 20);
        state.key(Key::Char('x'), 20);
        let (text, _) = screen(&state, (80, 24), true);
        assert!(
            text.contains("No row has these words.") && text.ends_with("/x_"),
            "{text}"
        );
        state.key(Key::Escape, 20);
        state.read(Err("no mcastor answers".into()));
        state.key(Key::Char('p'), 20);
        let (text, _) = screen(&state, (80, 24), true);
        assert!(text.ends_with("no mcastor answers"), "{text}");
        assert!(
            text.lines()
                .next()
                .is_some_and(|line| line.ends_with("paused")),
            "{text}"
        );
    }
}
