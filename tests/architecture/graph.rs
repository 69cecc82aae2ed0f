//! Resolves paths to the files that define their items, and finds cycles between files and between
//! folders.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::source::{ModulePath, SourceFile, module_path};

/// A reference from one file to an item of another.
pub struct Dependency {
    /// Index of the file that refers.
    pub from: usize,
    /// Index of the file that defines the item.
    pub to: usize,
    /// The line in `from`, from 0.
    pub line: usize,
    /// The full path of the item, through no re-export.
    pub item: String,
}

/// All references between files.
pub struct Graph {
    pub dependencies: Vec<Dependency>,
    /// Paths from `crate`, `super` or `self` that could not be followed.
    pub unresolved: Vec<String>,
    /// The type's full path and the index of the file of each inherent `impl`.
    pub inherent_impls: Vec<(String, usize)>,
}

#[derive(Clone)]
enum Target {
    Module(ModulePath),
    Item { file: usize, path: String },
}

#[derive(Default)]
struct Module {
    file: usize,
    children: BTreeSet<String>,
    definitions: BTreeSet<String>,
    imports: HashMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
}

struct Resolver {
    modules: HashMap<ModulePath, Module>,
}

/// Re-exports of re-exports: far more than any item passes through.
const MAX_STEPS: usize = 32;

impl Resolver {
    fn new(files: &[SourceFile]) -> Self {
        let mut modules: HashMap<ModulePath, Module> = HashMap::new();
        for (file, source) in files.iter().enumerate() {
            let items = &source.items;
            for path in &items.modules {
                modules.entry(path.clone()).or_default().file = file;
            }
            for path in items.declared.iter().chain(&items.modules) {
                if let Some((name, parent)) = path.split_last() {
                    let parent = modules.entry(parent.to_vec()).or_default();
                    parent.children.insert(name.clone());
                }
            }
            for d in &items.definitions {
                let module = modules.entry(d.module.clone()).or_default();
                module.definitions.insert(d.name.clone());
            }
            for import in &items.imports {
                let module = modules.entry(import.module.clone()).or_default();
                if import.name == "*" {
                    module.globs.push(import.target.clone());
                } else {
                    let name = import.name.clone();
                    module.imports.insert(name, import.target.clone());
                }
            }
        }
        Self { modules }
    }

    /// Follows `segments` as written in `module`. Returns `None` for a path of another crate, or if
    /// the path is not found.
    fn resolve(&self, module: &ModulePath, segments: &[String], steps: usize) -> Option<Target> {
        if steps == 0 {
            return None;
        }
        let (first, mut rest) = segments.split_first()?;
        let mut target = match first.as_str() {
            "crate" | "mcastor" => Target::Module(Vec::new()),
            "self" => Target::Module(module.clone()),
            "super" => {
                let mut parent = module.clone();
                parent.pop();
                while rest.first().is_some_and(|s| s == "super") {
                    parent.pop();
                    rest = &rest[1..];
                }
                Target::Module(parent)
            }
            name => self.lookup(module, name, steps)?,
        };
        for name in rest {
            match target {
                Target::Module(ref path) => target = self.lookup(path, name, steps)?,
                // A variant or an associated item.
                Target::Item { .. } => break,
            }
        }
        Some(target)
    }

    /// Resolves `name` inside `path`.
    fn lookup(&self, path: &ModulePath, name: &str, steps: usize) -> Option<Target> {
        let module = self.modules.get(path)?;
        if module.children.contains(name) {
            let mut child = path.clone();
            child.push(name.into());
            // A type may have the name of a module in another letter case only, so this is safe.
            return Some(Target::Module(child));
        }
        if module.definitions.contains(name) {
            let mut full = path.clone();
            full.push(name.into());
            return Some(Target::Item {
                file: module.file,
                path: full.join("::"),
            });
        }
        if let Some(target) = module.imports.get(name) {
            // `use name;` or `use name::x as name;` of another crate would come back here.
            if target.first().is_some_and(|first| first == name) && target.len() == 1 {
                return None;
            }
            return self.resolve(path, target, steps - 1);
        }
        module
            .globs
            .iter()
            .find_map(|glob| match self.resolve(path, glob, steps - 1)? {
                Target::Module(from) if from != *path => self.lookup(&from, name, steps - 1),
                _ => None,
            })
    }
}

impl Graph {
    /// Reads the references of all files.
    pub fn new(files: &[SourceFile]) -> Self {
        let resolver = Resolver::new(files);
        let mut graph = Self {
            dependencies: Vec::new(),
            unresolved: Vec::new(),
            inherent_impls: Vec::new(),
        };
        for (file, source) in files.iter().enumerate() {
            let items = &source.items;
            let is_local = |path: &[String]| {
                let first = path.first().map_or("", String::as_str);
                ["crate", "super", "self"].contains(&first) && path.len() > 1
            };
            // A re-export is a reference only if the file uses the name itself, as a path.
            for import in items.imports.iter().filter(|i| i.name != "*") {
                let found = resolver.resolve(&import.module, &import.target, MAX_STEPS);
                match found {
                    Some(_) if import.is_public => {}
                    Some(target) => graph.add(file, target, import.line),
                    None if is_local(&import.target) => {
                        let path = import.target.join("::");
                        graph
                            .unresolved
                            .push(format!("{}: {path}", source.at(import.line)));
                    }
                    None => {}
                }
            }
            for path in &items.paths {
                match resolver.resolve(&path.module, &path.segments, MAX_STEPS) {
                    Some(target) => graph.add(file, target, path.line),
                    None if is_local(&path.segments) => {
                        let text = path.segments.join("::");
                        graph
                            .unresolved
                            .push(format!("{}: {text}", source.at(path.line)));
                    }
                    None => {}
                }
            }
            for path in &items.inherent_impls {
                let found = resolver.resolve(&path.module, &path.segments, MAX_STEPS);
                if let Some(Target::Item { path, .. }) = found {
                    graph.inherent_impls.push((path, file));
                }
            }
        }
        graph
    }

    /// A module by itself is only a name: the items used through it count.
    fn add(&mut self, from: usize, target: Target, line: usize) {
        if let Target::Item { file: to, path } = target
            && to != from
        {
            self.dependencies.push(Dependency {
                from,
                to,
                line,
                item: path,
            });
        }
    }

    /// Groups of files that depend on each other, by name. Each is a cycle or several that share
    /// files.
    pub fn file_cycles(&self, files: &[SourceFile]) -> Vec<Vec<String>> {
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for d in &self.dependencies {
            let (from, to) = (files[d.from].name(), files[d.to].name());
            edges.entry(from).or_default().insert(to);
        }
        cycles(&edges)
    }

    /// Pairs of files that refer to each other.
    pub fn mutual_pairs(&self, files: &[SourceFile]) -> BTreeSet<(String, String)> {
        let edges: BTreeSet<(usize, usize)> =
            self.dependencies.iter().map(|d| (d.from, d.to)).collect();
        edges
            .iter()
            .filter(|(a, b)| a < b && edges.contains(&(*b, *a)))
            .map(|(a, b)| (files[*a].name(), files[*b].name()))
            .collect()
    }

    /// Groups of folders, or of folders and files beside them, that depend on each other.
    ///
    /// Compares what is directly inside one folder: a file represents itself, a folder all files
    /// below it. `x.rs` beside a folder `x` belongs to that folder. Inside of it, `x.rs` or
    /// `mod.rs` is a file like the others. Cycles of files alone are not reported here.
    pub fn folder_cycles(&self, files: &[SourceFile]) -> Vec<Vec<String>> {
        let names: Vec<(ModulePath, bool)> = files.iter().map(|f| place(f, files)).collect();
        let mut levels: BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for d in &self.dependencies {
            let (from, to) = (&names[d.from].0, &names[d.to].0);
            let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            let level = levels.entry(from[..shared].to_vec()).or_default();
            let from = from[shared].clone();
            level.entry(from).or_default().insert(to[shared].clone());
        }
        let mut found = Vec::new();
        for (parent, edges) in &levels {
            for group in cycles(edges) {
                let full = |name: &String| {
                    let mut path = parent.clone();
                    path.push(name.clone());
                    path
                };
                let is_folder = |name: &String| {
                    names.iter().any(|(path, _)| {
                        path.len() > parent.len() + 1 && path.starts_with(&full(name))
                    })
                };
                // A single file below `src` is a module of its own and counts as a folder.
                if parent.is_empty() || group.iter().any(is_folder) {
                    found.push(group.iter().map(|n| full(n).join("/")).collect());
                }
            }
        }
        found
    }
}

/// Folders down to a file and its name, for example `planes`, `packet`, `rate.rs`.
fn place(file: &SourceFile, files: &[SourceFile]) -> (ModulePath, bool) {
    let mut path = module_path(&file.path);
    let is_parent = files.iter().any(|other| {
        let other = module_path(&other.path);
        other.len() > path.len() && other.starts_with(&path)
    });
    if is_parent {
        path.push("mod.rs".into());
    } else if let Some(last) = path.last_mut() {
        last.push_str(".rs");
    }
    (path, is_parent)
}

/// The strongly connected components of more than one node, sorted.
pub fn cycles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reach = |start: &String| {
        let mut seen = BTreeSet::new();
        let mut open = vec![start.clone()];
        while let Some(node) = open.pop() {
            for next in edges.get(&node).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        edges.keys().map(|node| (node, reach(node))).collect();
    let mut done = BTreeSet::new();
    let mut found = Vec::new();
    for (node, others) in &reached {
        if done.contains(*node) {
            continue;
        }
        let group: Vec<String> = others
            .iter()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(*node)))
            .cloned()
            .collect();
        done.extend(group.iter().cloned());
        if group.len() > 1 {
            found.push(group);
        }
    }
    found
}
