//! The search in tables of the API: words that rows must contain.

use std::net::IpAddr;

use ipnet::IpNet;

/// Most words of a search. Further ones are ignored.
const MAX_WORDS: usize = 8;

/// Words that a row must contain. A word is a part of a text, in any case, or a prefix of addresses
/// such as `232.0.0.0/8`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    words: Vec<Word>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// In lower case.
    Text(String),
    Prefix(IpNet),
}

impl Search {
    /// Returns the search for the words of `text`.
    pub fn new(text: &str) -> Self {
        let word = |word: &str| match word.parse() {
            Ok(prefix) => Word::Prefix(prefix),
            Err(_) => Word::Text(word.to_lowercase()),
        };
        let words = text.split_whitespace().take(MAX_WORDS).map(word);
        Self {
            words: words.collect(),
        }
    }

    /// Returns whether every row matches.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Returns whether each word matches one of the texts of a row.
    pub fn matches<T: AsRef<str>>(&self, texts: &[T]) -> bool {
        let mut words = self.words.iter();
        words.all(|word| texts.iter().any(|text| word.matches(text.as_ref())))
    }
}

impl Word {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Text(word) => text.contains(word.as_str()) || contains_in_any_case(text, word),
            Self::Prefix(prefix) => {
                let address = text.parse::<IpAddr>();
                address.is_ok_and(|address| prefix.contains(&address))
            }
        }
    }
}

/// Returns whether `text` contains `word`, which is in lower case. Allocates only for texts that
/// are not in lower case.
fn contains_in_any_case(text: &str, word: &str) -> bool {
    text.chars().any(char::is_uppercase) && text.to_lowercase().contains(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [&str; 4] = ["eth0", "10.0.0.7", "232.1.2.3", "Cameras"];

    #[test]
    fn each_word_must_match() {
        for (text, expected) in [
            ("", true),
            ("  ", true),
            ("232.1", true),
            ("eth0 232.1", true),
            ("eth1 232.1", false),
            ("cameras", true),
            ("CAMERAS ETH", true),
            ("camera2", false),
        ] {
            assert_eq!(Search::new(text).matches(&ROW), expected, "{text:?}");
        }
    }

    #[test]
    fn prefix_matches_addresses() {
        for (text, expected) in [
            ("232.0.0.0/8", true),
            ("233.0.0.0/8", false),
            ("10.0.0.0/24 232.1.2.3/32", true),
            ("ff00::/8", false),
        ] {
            assert_eq!(Search::new(text).matches(&ROW), expected, "{text:?}");
        }
    }

    #[test]
    fn words_beyond_the_limit_are_ignored() {
        let text = "eth ".repeat(MAX_WORDS) + "absent";
        assert!(Search::new(&text).matches(&ROW));
    }
}
