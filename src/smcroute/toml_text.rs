//! Parts of TOML text, for the converters of configuration files.

/// Writes a comment. Replaces characters that TOML does not allow in comments.
pub fn comment(out: &mut String, text: &str) {
    let allowed = |c: char| {
        if c.is_control() && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    out.push('#');
    out.extend(text.chars().map(allowed));
    out.push('\n');
}

/// Returns a TOML string.
pub fn quoted(text: &dyn ToString) -> String {
    toml_edit::Value::from(text.to_string()).to_string()
}

/// Returns a TOML array of strings.
pub fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|i| quoted(i)).collect();
    format!("[{}]", items.join(", "))
}
