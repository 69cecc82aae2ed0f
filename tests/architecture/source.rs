//! Reads Rust source files far enough to know which module refers to which.
//!
//! This is not a compiler: it reads tokens, module-level items, `use` declarations and paths.
//! A method call on a value creates no reference, because it names no module.

use std::fs;
use std::path::{Path, PathBuf};

/// One file below `src`, without its comments, literals and test code.
pub struct SourceFile {
    /// Relative to `src`.
    pub path: PathBuf,
    /// The lines without comments, literals and items under `#[cfg(test)]`. Line numbers are kept.
    pub code: Vec<String>,
    /// The lines as they are in the file.
    pub raw: Vec<String>,
    /// The declarations and references of the file.
    pub items: Items,
}

impl SourceFile {
    /// Parses `text`. `path` is relative to `src`.
    pub fn new(path: &Path, text: &str) -> Self {
        let bare = blank_test_items(&blank_comments_and_literals(text));
        let mut items = Items::default();
        Parser::new(&bare, module_path(path), &mut items).run();
        Self {
            path: path.into(),
            code: bare.lines().map(str::to_string).collect(),
            raw: text.lines().map(str::to_string).collect(),
            items,
        }
    }

    /// The path with `/`, for example `table/fib.rs`.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The module at the top of the crate that holds this file, for example `table`.
    pub fn top_module(&self) -> String {
        let first = self.path.iter().next().unwrap();
        first.to_str().unwrap().trim_end_matches(".rs").to_string()
    }

    /// A position for messages. `line` counts from 0.
    pub fn at(&self, line: usize) -> String {
        format!("src/{}:{}", self.path.display(), line + 1)
    }

    /// Line numbers from 0, and code.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.iter().map(String::as_str).enumerate()
    }
}

/// A path of names from the root of the crate.
pub type ModulePath = Vec<String>;

/// Declarations and references of one file. Each has the module it is written in, because a file
/// may hold inline modules.
#[derive(Default)]
pub struct Items {
    /// Modules in the file: its own and the inline ones.
    pub modules: Vec<ModulePath>,
    /// Modules declared by `mod name;`, which have their own files.
    pub declared: Vec<ModulePath>,
    /// Module-level items.
    pub definitions: Vec<Definition>,
    /// Names bound by `use`.
    pub imports: Vec<Import>,
    /// Paths and single names outside of `use`.
    pub paths: Vec<Reference>,
    /// Types with an inherent `impl` block.
    pub inherent_impls: Vec<Reference>,
}

/// A module-level item.
pub struct Definition {
    pub module: ModulePath,
    pub name: String,
    pub line: usize,
    pub is_public: bool,
    /// A struct, enum, union, trait or type alias.
    pub is_type: bool,
}

/// One name bound by a `use` declaration.
pub struct Import {
    pub module: ModulePath,
    /// The name in this module; `*` for a glob.
    pub name: String,
    /// The path as written, without the `*` of a glob.
    pub target: Vec<String>,
    pub line: usize,
    /// Whether it is a re-export.
    pub is_public: bool,
}

/// A path as written in a module.
pub struct Reference {
    pub module: ModulePath,
    pub segments: Vec<String>,
    pub line: usize,
}

/// Reads all files below `root/src` that are part of the program. Files that only
/// `#[cfg(test)]` declares are left out.
pub fn read_crate(root: &Path) -> Vec<SourceFile> {
    let src = root.join("src");
    let mut paths = Vec::new();
    collect_files(&src, &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        SourceFile::new(path.strip_prefix(&src).unwrap(), &text)
    };
    without_test_files(paths.iter().map(read).collect())
}

fn collect_files(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_files(&path, paths);
        } else if path.extension().is_some_and(|e| e == "rs") {
            paths.push(path);
        }
    }
}

/// Keeps the files that `mod` declarations reach from the root of the library or the program.
pub fn without_test_files(mut files: Vec<SourceFile>) -> Vec<SourceFile> {
    loop {
        let declared: Vec<ModulePath> = files
            .iter()
            .flat_map(|f| f.items.declared.iter().cloned())
            .collect();
        let before = files.len();
        files.retain(|f| {
            let path = module_path(&f.path);
            path.is_empty() || path == ["main"] || declared.contains(&path)
        });
        if files.len() == before {
            return files;
        }
    }
}

/// The module that a file holds: `a/b.rs` and `a/b/mod.rs` hold `a::b`.
pub fn module_path(path: &Path) -> ModulePath {
    let text = path.with_extension("").display().to_string();
    let mut names: ModulePath = text.split('/').map(str::to_string).collect();
    if names.last().is_some_and(|n| n == "mod" || n == "lib") {
        names.pop();
    }
    names
}

/// Replaces comments and literals by spaces.
pub fn blank_comments_and_literals(text: &str) -> String {
    let b: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    while i < b.len() {
        let rest = &b[i..];
        let starts = |s: &str| s.chars().zip(rest).filter(|(x, y)| x == *y).count() == s.len();
        let word_before = i > 0 && (b[i - 1].is_alphanumeric() || b[i - 1] == '_');
        let raw_hashes = rest.iter().skip(1).take_while(|c| **c == '#').count();
        let len = if starts("//") {
            rest.iter().take_while(|c| **c != '\n').count()
        } else if starts("/*") {
            let mut n = 2;
            while n < rest.len() && !(rest[n - 1] == '*' && rest[n] == '/' && n > 2) {
                n += 1;
            }
            n + 1
        } else if rest[0] == 'r' && !word_before && rest.get(1 + raw_hashes) == Some(&'"') {
            let mut n = 2 + raw_hashes;
            let closes = |n: usize| {
                rest[n] == '"' && rest[n + 1..].iter().take(raw_hashes).all(|c| *c == '#')
            };
            while n < rest.len() && !closes(n) {
                n += 1;
            }
            n + 1 + raw_hashes
        } else if rest[0] == '"' {
            let mut n = 1;
            while n < rest.len() && rest[n] != '"' {
                n += if rest[n] == '\\' { 2 } else { 1 };
            }
            n + 1
        } else if rest[0] == '\'' && rest.get(1) == Some(&'\\') {
            let end = rest.iter().skip(3).position(|c| *c == '\'');
            end.map_or(1, |e| e + 4)
        } else if rest[0] == '\'' && rest.get(2) == Some(&'\'') {
            3
        } else {
            out.push(rest[0]);
            i += 1;
            continue;
        };
        let len = len.min(rest.len());
        out.extend(rest[..len].iter().map(|c| keep_line_end(*c)));
        i += len;
    }
    out
}

fn keep_line_end(c: char) -> char {
    if c == '\n' { '\n' } else { ' ' }
}

/// Replaces every item under `#[cfg(test)]` by spaces. Expects text without comments and literals.
fn blank_test_items(text: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(MARK) {
        out += &rest[..start];
        let len = MARK.len() + item_len(&rest[start + MARK.len()..]);
        out.extend(rest[start..start + len].chars().map(keep_line_end));
        rest = &rest[start + len..];
    }
    out + rest
}

/// The length of the item, field or statement at the start of `text`, attributes included.
fn item_len(text: &str) -> usize {
    let is_use = text
        .trim_start()
        .trim_start_matches("pub ")
        .starts_with("use ");
    let mut depth = 0i32;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' => depth -= 1,
            // The end of the surrounding block.
            '}' if depth == 0 => return at,
            '}' => {
                depth -= 1;
                if depth == 0 && !is_use {
                    return at + 1;
                }
            }
            ';' | ',' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Separator,
    Mark(char),
}

/// Names, `::` and other characters, each with its line. Lifetimes are left out.
fn tokens(text: &str) -> Vec<(Token, usize)> {
    let mut found = Vec::new();
    let mut line = 0;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let len = if is_name(c) {
            let len = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            found.push((Token::Name(rest[..len].into()), line));
            len
        } else if rest.starts_with("::") {
            found.push((Token::Separator, line));
            2
        } else if c == '\'' {
            1 + rest[1..].find(|c| !is_name(c)).unwrap_or(0)
        } else if rest.starts_with("->") || rest.starts_with("=>") {
            2
        } else {
            if c == '\n' {
                line += 1;
            } else if !c.is_whitespace() {
                found.push((Token::Mark(c), line));
            }
            c.len_utf8()
        };
        rest = &rest[len..];
    }
    found
}

/// Braces whose contents are items of a module: an inline module, or a macro call that makes items.
struct Scope {
    module: ModulePath,
    /// The depth of braces inside.
    depth: usize,
    is_macro_call: bool,
}

struct Parser<'a> {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// The scopes around the current token, that of the file first.
    scopes: Vec<Scope>,
    items: &'a mut Items,
}

impl<'a> Parser<'a> {
    fn new(text: &str, module: ModulePath, items: &'a mut Items) -> Self {
        items.modules.push(module.clone());
        Self {
            tokens: tokens(text),
            at: 0,
            depth: 0,
            scopes: vec![Scope {
                module,
                depth: 0,
                is_macro_call: false,
            }],
            items,
        }
    }

    fn token(&self, at: usize) -> Option<&Token> {
        self.tokens.get(at).map(|(t, _)| t)
    }

    fn name(&self, at: usize) -> Option<&str> {
        match self.token(at) {
            Some(Token::Name(name)) => Some(name),
            _ => None,
        }
    }

    fn is_mark(&self, at: usize, mark: char) -> bool {
        self.token(at) == Some(&Token::Mark(mark))
    }

    fn is_separator(&self, at: usize) -> bool {
        self.token(at) == Some(&Token::Separator)
    }

    fn line(&self) -> usize {
        self.tokens[self.at].1
    }

    fn scope(&self) -> &Scope {
        &self.scopes[self.scopes.len() - 1]
    }

    fn module(&self) -> ModulePath {
        self.scope().module.clone()
    }

    fn at_module_level(&self) -> bool {
        self.scope().depth == self.depth
    }

    fn run(&mut self) {
        while self.at < self.tokens.len() {
            match &self.tokens[self.at].0 {
                Token::Mark('{') => self.depth += 1,
                Token::Mark('}') => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.scopes.len() > 1 && self.depth < self.scope().depth {
                        self.scopes.pop();
                    }
                }
                Token::Name(name) => {
                    let name = name.clone();
                    self.read_name(&name);
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    fn read_name(&mut self, name: &str) {
        let next = self.name(self.at + 1).map(str::to_string);
        match (name, next) {
            ("mod", Some(child)) if self.at_module_level() => self.read_module(child),
            ("use", _) if !self.is_mark(self.at + 1, '<') => self.read_use(),
            ("impl", _) if self.at_module_level() => self.read_impl(),
            ("macro_rules", None) if self.is_mark(self.at + 1, '!') => {
                if let Some(name) = self.name(self.at + 2).map(str::to_string) {
                    self.define(name, false);
                }
                self.at += 3;
            }
            ("struct" | "enum" | "union" | "trait" | "type", Some(name))
                if self.at_module_level() =>
            {
                self.define(name, true);
                self.at += 2;
            }
            ("fn" | "const" | "static", Some(name)) if self.at_module_level() => {
                if name == "fn" || name == "unsafe" || name == "mut" {
                    self.at += 1;
                } else {
                    self.define(name, false);
                    self.at += 2;
                }
            }
            (_, None)
                if self.at_module_level()
                    && self.is_mark(self.at + 1, '!')
                    && self.is_mark(self.at + 2, '{') =>
            {
                self.read_path();
                let module = self.module();
                self.enter_scope(module, true);
                self.at += 2;
            }
            _ => self.read_path(),
        }
    }

    fn define(&mut self, name: String, is_type: bool) {
        self.items.definitions.push(Definition {
            module: self.module(),
            name,
            line: self.line(),
            // The macro may add `pub`.
            is_public: self.is_public() || self.scope().is_macro_call,
            is_type,
        });
    }

    /// Whether `pub` or `pub(...)` is in front of the current keyword.
    fn is_public(&self) -> bool {
        let mut at = self.at;
        while at > 0 {
            at -= 1;
            match self.token(at) {
                Some(Token::Name(n)) if n == "unsafe" || n == "const" || n == "async" => {}
                Some(Token::Name(n)) => return n == "pub",
                Some(Token::Mark(')')) => {
                    // Back to the `(` of `pub(crate)`.
                    while at > 0 && !self.is_mark(at, '(') {
                        at -= 1;
                    }
                }
                _ => return false,
            }
        }
        false
    }

    fn read_module(&mut self, child: String) {
        let mut path = self.module();
        path.push(child);
        if self.is_mark(self.at + 2, ';') {
            self.items.declared.push(path);
        } else if self.is_mark(self.at + 2, '{') {
            self.items.modules.push(path.clone());
            self.enter_scope(path, false);
        }
        self.at += 3;
    }

    /// Enters the braces at the current token.
    fn enter_scope(&mut self, module: ModulePath, is_macro_call: bool) {
        self.depth += 1;
        self.scopes.push(Scope {
            module,
            depth: self.depth,
            is_macro_call,
        });
    }

    fn read_use(&mut self) {
        let (line, is_public) = (self.line(), self.is_public());
        self.at += 1;
        let mut leaves = Vec::new();
        self.read_use_tree(&[], &mut leaves);
        for (name, target) in leaves {
            self.items.imports.push(Import {
                module: self.module(),
                name,
                target,
                line,
                is_public,
            });
        }
    }

    /// Reads `a::{b, c::d as e, f::*}` into names and targets.
    fn read_use_tree(&mut self, prefix: &[String], leaves: &mut Vec<(String, Vec<String>)>) {
        let mut path = prefix.to_vec();
        if self.is_separator(self.at) {
            self.at += 1;
        }
        loop {
            if let Some(name) = self.name(self.at).map(str::to_string) {
                path.push(name);
                self.at += 1;
                if self.is_separator(self.at) {
                    self.at += 1;
                    continue;
                }
                // `a::{self}` binds `a`.
                if path.len() > 1 && path.last().is_some_and(|n| n == "self") {
                    path.pop();
                }
                let mut bound = path[path.len() - 1].clone();
                if self.name(self.at) == Some("as") {
                    bound = self.name(self.at + 1).unwrap_or("_").to_string();
                    self.at += 2;
                }
                leaves.push((bound, path));
            } else if self.is_mark(self.at, '*') {
                leaves.push(("*".into(), path));
                self.at += 1;
            } else if self.is_mark(self.at, '{') {
                self.at += 1;
                while self.at < self.tokens.len() && !self.is_mark(self.at, '}') {
                    self.read_use_tree(&path, leaves);
                    if self.is_mark(self.at, ',') {
                        self.at += 1;
                    }
                }
                self.at += 1;
            } else {
                // Not a `use` tree; the next token is read as usual.
                self.at += 1;
            }
            return;
        }
    }

    /// Notes the type of an inherent `impl`. The block itself is read as usual.
    fn read_impl(&mut self) {
        let line = self.line();
        self.at += 1;
        let mut at = self.skip_generics(self.at);
        let mut segments = Vec::new();
        while let Some(name) = self.name(at) {
            segments.push(name.to_string());
            at += 1;
            if !self.is_separator(at) {
                break;
            }
            at += 1;
        }
        at = self.skip_generics(at);
        if self.name(at) != Some("for") && !segments.is_empty() && segments[0] != "dyn" {
            self.items.inherent_impls.push(Reference {
                module: self.module(),
                segments,
                line,
            });
        }
    }

    fn skip_generics(&self, start: usize) -> usize {
        let (mut at, mut depth) = (start, 0);
        loop {
            match self.token(at) {
                Some(Token::Mark('<')) => depth += 1,
                Some(Token::Mark('>')) => depth -= 1,
                None => return at,
                _ => {}
            }
            if depth == 0 {
                return if at == start { at } else { at + 1 };
            }
            at += 1;
        }
    }

    fn read_path(&mut self) {
        let line = self.line();
        let after_dot = self.at > 0 && self.is_mark(self.at - 1, '.');
        let after_separator = self.at > 0 && self.is_separator(self.at - 1);
        let mut segments = Vec::new();
        while let Some(name) = self.name(self.at) {
            segments.push(name.to_string());
            self.at += 1;
            if !self.is_separator(self.at) || self.name(self.at + 1).is_none() {
                break;
            }
            self.at += 1;
        }
        if !after_dot && !after_separator {
            self.items.paths.push(Reference {
                module: self.module(),
                segments,
                line,
            });
        }
    }
}
