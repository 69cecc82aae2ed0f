//! The declaration of a settings key, and the macro that declares tables of keys.
//!
//! `raw.rs` declares every key once. The raw structs, their documentation, the hints for unknown
//! keys, the ranges and defaults of the checks, the table in `docs/settings.md`,
//! `conf/mcastor.toml` and the JSON schema are all derived from that declaration.

use std::time::Duration;

/// The TOML type of the value of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum KeyType {
    String,
    Boolean,
    Integer,
    /// A list of strings.
    Strings,
    /// A list of strings, or one of them.
    StringOrStrings,
    /// One of a few words, or a boolean.
    WordOrBoolean,
    /// One of a few words, or an inline table.
    WordOrTable(&'static TableDeclaration),
    /// `[name]`, or an inline table inside another table.
    Table(&'static TableDeclaration),
    /// `[[name]]`, an array of tables.
    Tables(&'static TableDeclaration),
}

impl KeyType {
    /// Returns the keys of the table that this type contains; none for plain values.
    pub fn keys(&self) -> &'static [KeyDeclaration] {
        match self {
            Self::Table(table) | Self::Tables(table) | Self::WordOrTable(table) => table.keys,
            _ => &[],
        }
    }
}

/// A table of the settings.
#[derive(Debug)]
pub(super) struct TableDeclaration {
    /// The purpose of the table, in lines; each starts with a space.
    pub text: &'static str,
    pub keys: &'static [KeyDeclaration],
}

/// The value of a key that is neither in the file nor in the environment.
#[derive(Debug, Clone, Copy)]
pub(super) enum DefaultValue {
    /// None: the table is refused without the key.
    Required,
    String(&'static str),
    Integer(i64),
    Boolean(bool),
    /// Derived from something else, which this Markdown text names.
    Described(&'static str),
}

/// A key of the settings: its name, type, default, range and meaning.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyDeclaration {
    pub name: &'static str,
    /// The table that contains this table; empty for a key and for a table at the top level.
    pub parent: &'static str,
    pub key_type: KeyType,
    /// The meaning of the key, in lines; each starts with a space. Empty for a table, which has a
    /// text of its own.
    pub text: &'static str,
    pub default: DefaultValue,
    /// The only strings that the key, or each entry of its list, may have; empty for any.
    pub words: &'static [&'static str],
    /// The lowest and the highest integer.
    pub integers: Option<(i64, i64)>,
    /// The unit of the integers, in plural; may be empty.
    pub unit: &'static str,
    /// The shortest and the longest duration, where the string is a duration.
    pub durations: Option<(Duration, Duration)>,
    /// The lowest and the highest number of entries of a list.
    pub entries: Option<(usize, usize)>,
    /// A regular expression for the JSON schema, which the string matches; empty for any.
    pub pattern: &'static str,
    /// The range as Markdown, where the fields above do not say all of it.
    range: &'static str,
    /// A good value in TOML; empty where the default is one.
    example: &'static str,
}

/// Starts a declaration without restrictions. Its default is the absence of the key.
pub(super) const fn declare(
    name: &'static str,
    key_type: KeyType,
    text: &'static str,
) -> KeyDeclaration {
    KeyDeclaration {
        name,
        parent: "",
        key_type,
        text,
        default: DefaultValue::Described("none"),
        words: &[],
        integers: None,
        unit: "",
        durations: None,
        entries: None,
        pattern: "",
        range: "",
        example: "",
    }
}

impl KeyDeclaration {
    pub const fn required(mut self) -> Self {
        self.default = DefaultValue::Required;
        self
    }

    /// Places a table inside another one.
    pub const fn inside(mut self, parent: &'static str) -> Self {
        self.parent = parent;
        self
    }

    pub const fn default_string(mut self, value: &'static str) -> Self {
        self.default = DefaultValue::String(value);
        self
    }

    pub const fn default_integer(mut self, value: i64) -> Self {
        self.default = DefaultValue::Integer(value);
        self
    }

    pub const fn default_boolean(mut self, value: bool) -> Self {
        self.default = DefaultValue::Boolean(value);
        self
    }

    /// Describes the default of an absent key in Markdown.
    pub const fn default_described(mut self, text: &'static str) -> Self {
        self.default = DefaultValue::Described(text);
        self
    }

    pub const fn words(mut self, words: &'static [&'static str]) -> Self {
        self.words = words;
        self
    }

    pub const fn integers(mut self, lowest: i64, highest: i64) -> Self {
        self.integers = Some((lowest, highest));
        self
    }

    pub const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    /// Limits a duration, in milliseconds.
    pub const fn durations_ms(mut self, shortest: u64, longest: u64) -> Self {
        self.durations = Some((
            Duration::from_millis(shortest),
            Duration::from_millis(longest),
        ));
        self
    }

    pub const fn entries(mut self, lowest: usize, highest: usize) -> Self {
        self.entries = Some((lowest, highest));
        self
    }

    /// Limits a string to the absolute path of a file.
    pub const fn absolute_path(mut self) -> Self {
        self.pattern = "^/";
        self.range = "absolute path";
        self
    }

    pub const fn pattern(mut self, regex: &'static str) -> Self {
        self.pattern = regex;
        self
    }

    pub const fn range(mut self, text: &'static str) -> Self {
        self.range = text;
        self
    }

    pub const fn example(mut self, toml: &'static str) -> Self {
        self.example = toml;
        self
    }

    /// The lines of [`KeyDeclaration::text`], of the table's text for a table.
    pub fn text_lines(&self) -> impl Iterator<Item = &'static str> {
        let text = match (&self.key_type, self.text) {
            (KeyType::Table(table) | KeyType::Tables(table), "") => table.text,
            (_, text) => text,
        };
        text.lines().map(str::trim)
    }

    /// Returns the default in TOML, where the declaration says it.
    pub fn default_toml(&self) -> Option<String> {
        match self.default {
            DefaultValue::String(text) => Some(format!("{text:?}")),
            DefaultValue::Integer(number) => Some(number.to_string()),
            DefaultValue::Boolean(value) => Some(value.to_string()),
            DefaultValue::Required | DefaultValue::Described(_) => None,
        }
    }

    /// Returns a good value in TOML, for error messages and the example file.
    pub fn example_toml(&self) -> String {
        match self.example {
            "" => self.default_toml().unwrap_or_default(),
            example => example.into(),
        }
    }

    /// Returns the range in Markdown.
    pub fn range_markdown(&self) -> String {
        if !self.range.is_empty() {
            return self.range.into();
        }
        if let Some((lowest, highest)) = self.integers {
            let unit = match self.unit {
                "" => String::new(),
                unit => format!(" {unit}"),
            };
            return format!("{lowest} to {highest}{unit}");
        }
        if let Some((shortest, longest)) = self.durations {
            return format!(
                "{} to {}",
                short_duration(shortest),
                short_duration(longest)
            );
        }
        if let KeyType::Boolean = self.key_type {
            return "`true`, `false`".into();
        }
        let words = self.words.iter().map(|word| format!("`{word:?}`"));
        words.collect::<Vec<_>>().join(", ")
    }

    /// Returns the header of this table: `[http]`, `[[route]]` or `[[amt.gateway]]`.
    pub fn header(&self) -> String {
        let name = match self.parent {
            "" => self.name.into(),
            parent => format!("{parent}.{}", self.name),
        };
        match self.key_type {
            KeyType::Tables(_) => format!("[[{name}]]"),
            _ => format!("[{name}]"),
        }
    }

    /// Returns the header of a table inside this one: `[route.rewrite]`.
    pub fn header_of_inner(&self, inner: &Self) -> String {
        let outer = self.header();
        format!("[{}.{}]", outer.trim_matches(['[', ']']), inner.name)
    }

    /// Returns whether this is a table, or an array of tables.
    pub fn is_table(&self) -> bool {
        matches!(self.key_type, KeyType::Table(_) | KeyType::Tables(_))
    }
}

/// Formats a duration in its largest unit that needs no second one: `31744s`, `100ms`, `1h`.
fn short_duration(duration: Duration) -> String {
    const HOUR_MS: u128 = 3_600_000;
    match duration.as_millis() {
        0 => "0s".into(),
        ms if ms == 24 * HOUR_MS => "1 day".into(),
        ms if ms % (24 * HOUR_MS) == 0 => format!("{} days", ms / (24 * HOUR_MS)),
        ms if ms % HOUR_MS == 0 => format!("{}h", ms / HOUR_MS),
        ms if ms >= 1000 => format!("{}s", duration.as_secs_f64()),
        ms => format!("{ms}ms"),
    }
}

/// Declares tables of the settings. For each table this generates a struct that serde reads, and
/// its [`TableDeclaration`].
///
/// ```text
/// /// What the table configures.
/// RawTable {
///     /// What the key means.
///     key_name: Integer, integers(1, 9), default_integer(3);
/// }
/// ```
///
/// After the type come calls of the methods of [`KeyDeclaration`]. Every field is optional, and so
/// is every entry of a list: a refused value is removed, and the rest of the settings is checked
/// without it. Missing keys are reported later.
macro_rules! raw_tables {
    ($(
        $(#[doc = $table_text:literal])+
        struct $table:ident {
            $(
                $(#[doc = $text:literal])*
                $name:ident: $key_type:ident $(($inner:ident))? $(, $method:ident($($argument:expr),*))*;
            )+
        }
    )+) => { $(
        $(#[doc = $table_text])+
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $table {
            $(
                $(#[doc = $text])*
                pub $name: Option<raw_tables!(@field $key_type $(($inner))?)>,
            )+
        }

        impl $table {
            pub const DECLARATION: TableDeclaration = TableDeclaration {
                text: concat!($($table_text, "\n"),+),
                keys: &[$(
                    declare(
                        stringify!($name),
                        raw_tables!(@key_type $key_type $(($inner))?),
                        concat!($($text, "\n"),*),
                    )
                    $(.$method($($argument),*))*,
                )+],
            };
        }
    )+ };
    (@field String) => { String };
    (@field Boolean) => { bool };
    (@field Integer) => { i64 };
    (@field Strings) => { Vec<Option<String>> };
    (@field StringOrStrings) => { RawStrings };
    (@field JoinPolicy) => { RawJoinPolicy };
    (@field TtlPolicy) => { RawTtlPolicy };
    (@field MergeBy) => { RawMergeBy };
    (@field Table($inner:ident)) => { RawTable<$inner> };
    (@field Tables($inner:ident)) => { Vec<Option<RawTable<$inner>>> };
    (@key_type JoinPolicy) => { KeyType::WordOrBoolean };
    (@key_type TtlPolicy) => { KeyType::WordOrTable(&RawTtlSet::DECLARATION) };
    (@key_type MergeBy) => { KeyType::WordOrTable(&RawMergeField::DECLARATION) };
    (@key_type Table($inner:ident)) => { KeyType::Table(&$inner::DECLARATION) };
    (@key_type Tables($inner:ident)) => { KeyType::Tables(&$inner::DECLARATION) };
    (@key_type $plain:ident) => { KeyType::$plain };
}
pub(super) use raw_tables;
