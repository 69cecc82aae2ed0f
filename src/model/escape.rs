//! Escapes of characters that change how a terminal shows a text: control characters, and the
//! bidirectional controls of Unicode (UAX #9).

use std::borrow::Cow;
use std::fmt::Write as _;

/// Maximum number of characters that [`quote`] keeps.
const MAX_QUOTE_LEN: usize = 500;

/// How [`escape`] writes a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapeStyle {
    /// As in a Rust literal: `\n`, `\u{202e}`.
    Text,
    /// Like [`EscapeStyle::Text`], but newlines stay.
    Lines,
    /// As in a JSON string: `\u202e`. Newlines stay; inside strings, JSON has escaped them already.
    Json,
}

/// Returns whether a terminal does not show `c` as a character of its own.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' |
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Returns `text` with escapes in place of its control characters.
pub fn escape(text: &str, style: EscapeStyle) -> Cow<'_, str> {
    let must_escape = |c: char| is_control(c) && (style == EscapeStyle::Text || c != '\n');
    if !text.contains(must_escape) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match style {
            _ if !must_escape(c) => escaped.push(c),
            EscapeStyle::Text | EscapeStyle::Lines => escaped.extend(c.escape_default()),
            // All of them are in the basic multilingual plane. Writing to a String does not fail.
            EscapeStyle::Json => _ = write!(escaped, "\\u{:04x}", u32::from(c)),
        }
    }
    Cow::Owned(escaped)
}

/// Returns a text of another program as one line for an error message: escaped, and at most 500
/// characters of it.
pub fn quote(text: &str) -> String {
    let end = text.char_indices().nth(MAX_QUOTE_LEN).map(|(at, _)| at);
    let kept = &text[..end.unwrap_or(text.len())];
    let mut quoted = escape(kept, EscapeStyle::Text).into_owned();
    if end.is_some() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every character that must be escaped, with a letter between.
    const CONTROLS: &str = "\0a\x07b\x1bc\x7fd\u{85}e\u{9b}f\u{61c}g\u{200e}h\u{200f}i\u{202a}j\
                            \u{202b}k\u{202c}l\u{202d}m\u{202e}n\u{2066}o\u{2067}p\u{2068}q\
                            \u{2069}r\u{2028}s\u{2029}t\r";

    #[test]
    fn control_and_bidirectional_characters_are_escaped() {
        for style in [EscapeStyle::Text, EscapeStyle::Lines, EscapeStyle::Json] {
            let escaped = escape(CONTROLS, style);
            assert!(escaped.is_ascii() && !escaped.contains(char::is_control));
            let letters: String = escaped
                .split('\\')
                .filter_map(|e| e.chars().last())
                .collect();
            assert!(letters.starts_with("abcdefghijklmnopqrst"), "{escaped}");
        }
        assert_eq!(
            escape("a\u{202e}b\tc", EscapeStyle::Text),
            "a\\u{202e}b\\tc"
        );
        assert_eq!(escape("a\u{202e}b", EscapeStyle::Json), "a\\u202eb");
    }

    #[test]
    fn newline_stays_in_lines_and_json() {
        assert_eq!(escape("a\nb", EscapeStyle::Text), "a\\nb");
        assert_eq!(escape("a\nb", EscapeStyle::Lines), "a\nb");
        assert_eq!(escape("a\nb", EscapeStyle::Json), "a\nb");
    }

    #[test]
    fn other_text_is_unchanged() {
        for text in ["", "eth0: 10.0.0.1", "Grüße, 東京, مرحبا, \u{1f600}"] {
            assert!(matches!(escape(text, EscapeStyle::Text), Cow::Borrowed(t) if t == text));
        }
    }

    /// A JSON value keeps its meaning.
    #[test]
    fn escaped_json_parses_to_the_same_value() {
        let json = serde_json::to_string_pretty(&[CONTROLS, "\n"]).unwrap();
        let escaped = escape(&json, EscapeStyle::Json);
        assert!(escaped.is_ascii());
        let parsed: Vec<String> = serde_json::from_str(&escaped).unwrap();
        assert_eq!(parsed, [CONTROLS, "\n"]);
    }

    #[test]
    fn quote_is_limited() {
        assert_eq!(quote("a\nb"), "a\\nb");
        let long = "ä".repeat(MAX_QUOTE_LEN);
        assert_eq!(quote(&long), long);
        assert_eq!(quote(&format!("{long}b")), format!("{long}…"));
    }
}
