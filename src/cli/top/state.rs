//! The state of `mcastor top`: events in, what is shown out. No terminal and no clock.

use std::collections::HashMap;

use super::details;
use super::snapshot::{Rates, Reading};
use super::table::{Sorting, Table};
use super::tables::View;
use crate::api::ExplainQuery;

/// Longest filter.
const MAX_FILTER: usize = 100;

/// A key, as far as it has a meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
    BackTab,
}

/// What the program is to do for the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TopRequest {
    /// End.
    Quit,
    /// Ask the router, and pass the answer to [`TopState::explained`].
    Explain(ExplainQuery),
    /// Read the tables now.
    Refresh,
    /// Read the flows with these words from now on.
    Search(String),
}

/// What covers the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Page {
    /// The table of the current view.
    Table,
    /// A single row.
    Detail(Detail),
    /// The help.
    Help,
}

/// A single row, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detail {
    /// The key of the row.
    pub key: String,
    /// What the last snapshot says.
    pub text: String,
    /// The answer of the router to the packet of this row.
    pub explained: Option<String>,
    /// First line that is shown.
    pub scroll: usize,
    /// The packet that the router was asked about.
    packet: Option<ExplainQuery>,
}

/// How a view is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ViewState {
    sorting: Sorting,
    filter: String,
    /// The key of the selected row, and where it was last.
    selected: Option<String>,
    position: usize,
}

/// The state.
pub(super) struct TopState {
    view: View,
    page: Page,
    views: HashMap<View, ViewState>,
    /// The filter is being typed.
    is_typing: bool,
    is_paused: bool,
    snapshot: Option<Reading>,
    rates: Rates,
    /// Why there is no newer snapshot.
    error: Option<String>,
}

impl TopState {
    /// Starts without data.
    pub fn new(view: View) -> Self {
        let views = View::ALL.map(|view| {
            let state = ViewState {
                sorting: view.default_sorting(),
                filter: String::new(),
                selected: None,
                position: 0,
            };
            (view, state)
        });
        Self {
            view,
            page: Page::Table,
            views: views.into(),
            is_typing: false,
            is_paused: false,
            snapshot: None,
            rates: Rates::default(),
            error: None,
        }
    }

    // What is shown.

    /// Returns the current view.
    pub fn view(&self) -> View {
        self.view
    }

    /// Returns what covers the screen.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// Returns the last snapshot.
    pub fn snapshot(&self) -> Option<&Reading> {
        self.snapshot.as_ref()
    }

    /// Returns the rates up to the last snapshot.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Returns why there is no newer snapshot.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Returns whether snapshots are ignored.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Returns whether the filter is being typed.
    pub fn is_typing(&self) -> bool {
        self.is_typing
    }

    /// Returns the filter of the current view.
    pub fn filter(&self) -> &str {
        self.views.get(&self.view).map_or("", |state| &state.filter)
    }

    /// Returns by what the current view is sorted.
    pub fn sorting(&self) -> Sorting {
        let state = self.views.get(&self.view);
        state.map_or(self.view.default_sorting(), |state| state.sorting)
    }

    /// Returns the table of the current view, sorted and filtered.
    pub fn table(&self) -> Table {
        let none = Reading::default();
        let snapshot = self.snapshot.as_ref().unwrap_or(&none);
        let mut table = self.view.table(snapshot, &self.rates);
        // The router also finds what no cell shows, such as a prefix of addresses.
        let is_searched = self.view == View::Flows && snapshot.search == self.filter();
        if !is_searched {
            table.filter(self.filter());
        }
        table.sort(self.sorting());
        table
    }

    /// Returns the position of the selected row in `table`: by its key, or where it was.
    pub fn selected(&self, table: &Table) -> usize {
        let Some(state) = self.views.get(&self.view) else {
            return 0;
        };
        let is_selected = |key: &String| table.rows.iter().position(|row| row.key == *key);
        let found = state.selected.as_ref().and_then(is_selected);
        let last = table.rows.len().saturating_sub(1);
        found.unwrap_or(state.position.min(last))
    }

    // Events.

    /// Takes a new reading over, or the reason why there is none.
    pub fn read(&mut self, reading: Result<Reading, String>) {
        if self.is_paused {
            return;
        }
        match reading {
            Ok(snapshot) => {
                if let Some(before) = &self.snapshot {
                    self.rates = Rates::between(before, &snapshot);
                }
                self.snapshot = Some(snapshot);
                self.error = None;
                self.refresh_detail();
            }
            Err(error) => self.error = Some(error),
        }
    }

    /// Takes the answer to [`TopRequest::Explain`] over.
    pub fn explained(&mut self, query: &ExplainQuery, answer: String) {
        if let Page::Detail(detail) = &mut self.page
            && detail.packet.as_ref() == Some(query)
        {
            detail.explained = Some(answer);
        }
    }

    /// Handles a key. `page_len` is the number of rows or lines on the screen.
    pub fn key(&mut self, key: Key, page_len: usize) -> Option<TopRequest> {
        if self.is_typing {
            return self.type_filter(key);
        }
        if key == Key::Char('q') {
            return Some(TopRequest::Quit);
        }
        match &self.page {
            Page::Help => {
                self.page = Page::Table;
                None
            }
            Page::Detail(_) => self.key_on_detail(key, page_len),
            Page::Table => self.key_on_table(key, page_len),
        }
    }

    fn key_on_detail(&mut self, key: Key, page_len: usize) -> Option<TopRequest> {
        let Page::Detail(detail) = &mut self.page else {
            return None;
        };
        let lines = detail.lines().len();
        let last = lines.saturating_sub(page_len);
        let page = page_len.max(1);
        detail.scroll = match key {
            Key::Up | Key::Char('k') => detail.scroll.saturating_sub(1),
            Key::Down | Key::Char('j') => detail.scroll + 1,
            Key::PageUp => detail.scroll.saturating_sub(page),
            Key::PageDown | Key::Char(' ') => detail.scroll + page,
            Key::Home | Key::Char('g') => 0,
            Key::End | Key::Char('G') => last,
            Key::Char('?') => {
                self.page = Page::Help;
                return None;
            }
            Key::Char('p') => {
                self.is_paused = !self.is_paused;
                return None;
            }
            Key::Char('r') => return detail.packet.clone().map(TopRequest::Explain),
            Key::Escape | Key::Backspace | Key::Left | Key::Enter | Key::Char('h') => {
                self.page = Page::Table;
                return None;
            }
            _ => return None,
        }
        .min(last);
        None
    }

    fn key_on_table(&mut self, key: Key, page_len: usize) -> Option<TopRequest> {
        let page = page_len.max(1) as isize;
        match key {
            Key::Char('?') => self.page = Page::Help,
            Key::Char(digit @ '1'..='5') => {
                let position = digit as usize - '1' as usize;
                self.view = View::ALL.get(position).copied().unwrap_or(self.view);
            }
            Key::Tab | Key::Right | Key::Char('l') => self.turn(1),
            Key::BackTab | Key::Left | Key::Char('h') => self.turn(View::ALL.len() - 1),
            Key::Up | Key::Char('k') => self.select(-1),
            Key::Down | Key::Char('j') => self.select(1),
            Key::PageUp => self.select(-page),
            Key::PageDown => self.select(page),
            Key::Home | Key::Char('g') => self.select(isize::MIN),
            Key::End | Key::Char('G') => self.select(isize::MAX),
            Key::Char('s' | '>') => self.sort_by_next(1),
            Key::Char('<') => self.sort_by_next(self.table().columns.len().saturating_sub(1)),
            Key::Char('S' | 'r') => self.change(|state| {
                state.sorting.reversed = !state.sorting.reversed;
            }),
            Key::Char('/') => self.is_typing = true,
            Key::Escape => return self.change_filter(String::clear),
            Key::Char('p' | ' ') => {
                self.is_paused = !self.is_paused;
                if !self.is_paused {
                    return Some(TopRequest::Refresh);
                }
            }
            Key::Enter => return self.open_detail(),
            Key::Char(_) | Key::Backspace => {}
        }
        None
    }

    fn type_filter(&mut self, key: Key) -> Option<TopRequest> {
        match key {
            Key::Enter => {
                self.is_typing = false;
                None
            }
            Key::Escape => {
                self.is_typing = false;
                self.change_filter(String::clear)
            }
            Key::Backspace => self.change_filter(|filter| {
                filter.pop();
            }),
            Key::Char(letter) => self.change_filter(|filter| {
                if filter.len() < MAX_FILTER {
                    filter.push(letter);
                }
            }),
            _ => None,
        }
    }

    /// Changes the filter of the current view. The router searches the flows: there may be more of
    /// them than are read.
    fn change_filter(&mut self, change: impl FnOnce(&mut String)) -> Option<TopRequest> {
        let before = self.filter().to_owned();
        self.change(|state| change(&mut state.filter));
        let is_search = self.view == View::Flows && self.filter() != before;
        is_search.then(|| TopRequest::Search(self.filter().into()))
    }

    fn change(&mut self, change: impl FnOnce(&mut ViewState)) {
        if let Some(state) = self.views.get_mut(&self.view) {
            change(state);
        }
    }

    /// Shows the view that is `steps` further.
    fn turn(&mut self, steps: usize) {
        let position = View::ALL.iter().position(|view| *view == self.view);
        let next = (position.unwrap_or(0) + steps) % View::ALL.len();
        self.view = View::ALL.get(next).copied().unwrap_or(self.view);
    }

    /// Moves the selection.
    fn select(&mut self, steps: isize) {
        let table = self.table();
        let last = table.rows.len().saturating_sub(1);
        let position = self.selected(&table).saturating_add_signed(steps).min(last);
        let key = table.rows.get(position).map(|row| row.key.clone());
        self.change(|state| {
            state.selected = key;
            state.position = position;
        });
    }

    fn sort_by_next(&mut self, steps: usize) {
        let columns = self.table().columns.len().max(1);
        self.change(|state| {
            state.sorting = Sorting {
                column: (state.sorting.column + steps) % columns,
                reversed: false,
            };
        });
    }

    /// Opens the selected row.
    fn open_detail(&mut self) -> Option<TopRequest> {
        let table = self.table();
        let row = table.rows.get(self.selected(&table))?;
        let snapshot = self.snapshot.as_ref()?;
        let packet = details::packet(self.view, snapshot, &row.key);
        self.page = Page::Detail(Detail {
            text: details::text(self.view, snapshot, &row.key).unwrap_or_default(),
            key: row.key.clone(),
            explained: None,
            scroll: 0,
            packet: packet.clone(),
        });
        packet.map(TopRequest::Explain)
    }

    /// Renews the text of an open row. A row that is not there any more keeps its text.
    fn refresh_detail(&mut self) {
        if let (Page::Detail(detail), Some(snapshot)) = (&mut self.page, &self.snapshot)
            && let Some(text) = details::text(self.view, snapshot, &detail.key)
        {
            detail.text = text;
        }
    }
}

impl Detail {
    /// Returns the lines that are shown.
    pub fn lines(&self) -> Vec<&str> {
        let explained = self.explained.as_deref();
        let waits = self.packet.is_some() && explained.is_none();
        let explained = match waits {
            true => Some("Waiting for the answer of the router."),
            false => explained,
        };
        let mut lines: Vec<&str> = self.text.lines().collect();
        if let Some(text) = explained {
            lines.push("");
            lines.extend(text.lines());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::snapshot;
    use super::*;

    fn groups(state: &TopState) -> Vec<String> {
        let table = state.table();
        let cells = table.rows.iter().map(|row| row.cells[2].text.clone());
        cells.collect()
    }

    fn selected_key(state: &TopState) -> String {
        let table = state.table();
        table.rows[state.selected(&table)].key.clone()
    }

    fn flows() -> TopState {
        let mut state = TopState::new(View::Flows);
        state.read(Ok(snapshot(0, [100, 100, 100])));
        state.read(Ok(snapshot(2, [120, 300, 104])));
        state
    }

    #[test]
    fn flows_are_sorted_by_rate_and_by_any_column() {
        let mut state = flows();
        assert_eq!(groups(&state), ["225.1.2.2", "225.1.2.1", "225.1.2.3"]);
        assert_eq!(state.table().rows[0].cells[3].text, "100");
        state.key(Key::Char('r'), 10);
        assert_eq!(groups(&state), ["225.1.2.3", "225.1.2.1", "225.1.2.2"]);
        // Back to the group.
        state.key(Key::Char('<'), 10);
        assert_eq!(groups(&state), ["225.1.2.1", "225.1.2.2", "225.1.2.3"]);
        for _ in 0..state.table().columns.len() {
            state.key(Key::Char('s'), 10);
        }
        assert_eq!(groups(&state), ["225.1.2.1", "225.1.2.2", "225.1.2.3"]);
    }

    #[test]
    fn filter_is_typed_kept_and_cleared() {
        let mut state = flows();
        state.key(Key::Char('/'), 10);
        for letter in "2.2q".chars() {
            let request = state.key(Key::Char(letter), 10);
            assert!(
                matches!(request, Some(TopRequest::Search(_))),
                "{request:?}"
            );
        }
        assert_eq!(groups(&state).len(), 0);
        state.key(Key::Backspace, 10);
        state.key(Key::Enter, 10);
        assert!(!state.is_typing());
        assert_eq!(
            (state.filter(), groups(&state)),
            ("2.2", vec!["225.1.2.2".to_owned()])
        );
        // Each view has its own.
        state.key(Key::Char('1'), 10);
        assert_eq!((state.view(), state.filter()), (View::Interfaces, ""));
        state.key(Key::Char('2'), 10);
        state.key(Key::Escape, 10);
        assert_eq!(groups(&state).len(), 3);
        assert_eq!(state.key(Key::Char('q'), 10), Some(TopRequest::Quit));
    }

    #[test]
    fn selection_follows_the_row_when_the_order_changes() {
        let mut state = flows();
        state.key(Key::Down, 10);
        assert_eq!(selected_key(&state), "eth0 10.0.0.1 225.1.2.1");
        state.read(Ok(snapshot(3, [9000, 300, 104])));
        assert_eq!(selected_key(&state), "eth0 10.0.0.1 225.1.2.1");
        for (key, group) in [
            (Key::Char('G'), "3"),
            (Key::Char('k'), "2"),
            (Key::Home, "1"),
            (Key::PageDown, "3"),
            (Key::Char('g'), "1"),
            (Key::Up, "1"),
        ] {
            state.key(key, 2);
            assert!(selected_key(&state).ends_with(group), "{key:?}");
        }
    }

    #[test]
    fn views_are_turned_with_arrows_tab_and_vi_keys() {
        let mut state = TopState::new(View::Interfaces);
        for (key, view) in [
            (Key::Left, View::Streams),
            (Key::Right, View::Interfaces),
            (Key::Tab, View::Flows),
            (Key::Char('l'), View::Drops),
            (Key::Char('h'), View::Flows),
            (Key::BackTab, View::Interfaces),
            (Key::Char('4'), View::Joins),
        ] {
            state.key(key, 10);
            assert_eq!(state.view(), view, "{key:?}");
        }
    }

    #[test]
    fn pause_keeps_what_is_shown() {
        let mut state = flows();
        state.key(Key::Char('p'), 10);
        let before = state.table();
        state.read(Ok(snapshot(3, [9000, 300, 104])));
        state.read(Err("gone".into()));
        assert_eq!((state.table(), state.error()), (before, None));
        assert_eq!(state.key(Key::Char(' '), 10), Some(TopRequest::Refresh));
        state.read(Err("gone".into()));
        assert_eq!(state.error(), Some("gone"));
        state.read(Ok(snapshot(4, [9000, 300, 104])));
        assert_eq!(state.error(), None);
    }

    #[test]
    fn flow_is_opened_with_its_explanation() {
        let mut state = flows();
        let Some(TopRequest::Explain(query)) = state.key(Key::Enter, 10) else {
            panic!("a request");
        };
        assert_eq!(query.group, std::net::IpAddr::from([225, 1, 2, 2]));
        assert_eq!(query.iif.as_deref(), Some("eth0"));
        let lines = |state: &TopState| match state.page() {
            Page::Detail(detail) => detail.lines().join("\n"),
            _ => String::new(),
        };
        assert!(lines(&state).contains("packets            300"));
        assert!(lines(&state).contains("Waiting for the answer"));
        let other = ExplainQuery {
            port: 1,
            ..query.clone()
        };
        state.explained(&other, "of another packet".into());
        state.explained(&query, "one\ntwo".into());
        assert!(lines(&state).ends_with("\n\none\ntwo"), "{}", lines(&state));
        // The numbers go on.
        state.read(Ok(snapshot(3, [9000, 301, 104])));
        assert!(lines(&state).contains("packets            301"));
        state.key(Key::Down, 2);
        let Page::Detail(detail) = state.page() else {
            panic!("a detail");
        };
        assert_eq!(detail.scroll, 1);
        state.key(Key::Escape, 10);
        assert_eq!(*state.page(), Page::Table);
    }

    #[test]
    fn rates_need_two_readings_and_growing_counters() {
        let mut state = TopState::new(View::Flows);
        state.read(Ok(snapshot(0, [100, 100, 100])));
        assert!(
            state
                .table()
                .rows
                .iter()
                .all(|row| row.cells[3].text == "-")
        );
        // The counter of the first flow started again.
        state.read(Ok(snapshot(1, [5, 101, 100])));
        let rates: Vec<String> = state
            .table()
            .rows
            .iter()
            .map(|r| r.cells[3].text.clone())
            .collect();
        assert_eq!(rates, ["1", "0", "-"]);
        assert_eq!(state.snapshot().map(|s| s.at), Some(Duration::from_secs(1)));
    }

    #[test]
    fn router_searches_the_flows_for_the_filter() {
        let mut state = flows();
        assert_eq!(state.key(Key::Char('/'), 10), None);
        let search = |words: &str| Some(TopRequest::Search(words.into()));
        assert_eq!(state.key(Key::Char('e'), 10), search("e"));
        assert_eq!(state.key(Key::Char('x'), 10), search("ex"));
        // Until the router has answered, the rows that are known are filtered.
        assert_eq!(state.table().rows.len(), 0);
        let found = Reading {
            search: "ex".into(),
            ..snapshot(3, [900, 301, 104])
        };
        state.read(Ok(found));
        assert_eq!(state.table().rows.len(), 3);
        assert_eq!(state.key(Key::Backspace, 10), search("e"));
        assert_eq!(state.key(Key::Enter, 10), None);
        assert_eq!(state.key(Key::Escape, 10), search(""));
        assert_eq!(state.key(Key::Escape, 10), None);
        // The other tables are read as a whole.
        state.key(Key::Char('1'), 10);
        state.key(Key::Char('/'), 10);
        assert_eq!(state.key(Key::Char('e'), 10), None);
    }

    #[test]
    fn any_key_leaves_the_help() {
        let mut state = flows();
        state.key(Key::Char('?'), 10);
        assert_eq!(*state.page(), Page::Help);
        assert_eq!(state.key(Key::Char('x'), 10), None);
        assert_eq!(*state.page(), Page::Table);
    }
}
