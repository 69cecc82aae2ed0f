//! Suggestions for misspelt words, and lists of words for messages.

/// Returns the known word that is most similar to `word`, if one is similar enough.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let (distance, best) = known
        .into_iter()
        .map(|candidate| {
            let is_prefix = word.len() >= 3 && candidate.starts_with(&word);
            let distance = if is_prefix {
                0
            } else {
                strsim::damerau_levenshtein(&word, candidate)
            };
            (distance, candidate)
        })
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= (best.len() / 3).max(1)).then_some(best)
}

/// Returns "Did you mean …?" where a known word is similar to `word`.
pub(super) fn did_you_mean<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(word, known).map(|near| format!("Did you mean {near:?}?"))
}

/// Formats words as `` `a`, `b`, `c` ``.
pub(super) fn quoted_list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

/// Formats words as `` `a`, `b` or `c` ``.
pub(super) fn quoted_choice<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let list = quoted_list(words);
    match list.rsplit_once(", ") {
        Some((first, last)) => format!("{first} or {last}"),
        None => list,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_only_similar_words() {
        let known = ["from", "except_sources", "group", "to", "ttl"];
        assert_eq!(nearest("form", known), Some("from"));
        assert_eq!(nearest("except", known), Some("except_sources"));
        assert_eq!(nearest("Except-Source", known), Some("except_sources"));
        assert_eq!(nearest("grp", known), None);
        assert_eq!(nearest("rewrite", known), None);
    }
}
