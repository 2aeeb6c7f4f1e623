//! The layout of the sources: who imports whom, and how they are written.
//!
//! A circle of imports is one file in several pieces: none can be read without the others. So there
//! is none among folders, and none among files, where what a file takes of the one that it is a
//! part of (`mod.rs` of its folder) does not count. ARCHITECTURE.md lists which folder imports
//! which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Need, needs, repository};

/// Modules by their paths, as `store::quota`; the root is empty.
type Modules = BTreeMap<String, String>;

/// The files below a directory of the repository that end so, without those that are built.
pub(crate) fn files(top: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let top = repository().join(top);
    let mut found = Vec::new();
    let mut directories = vec![top.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                directories.push(path);
            } else if path.is_file() && name.ends_with(ending) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&top).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// The modules of a crate whose root file is named, without its tests.
fn modules(top: &str, root: &str) -> Modules {
    let is_other = |path: &Path| {
        let first = path.iter().next().unwrap();
        let is_test = path.iter().any(|part| part == "tests" || part == "tests.rs");
        is_test || root == "lib.rs" && (first == "bin" || path == Path::new("main.rs"))
    };
    let name = |path: &Path| {
        let name = path.to_str().unwrap().trim_end_matches(".rs");
        let name = name.trim_end_matches("/mod").replace('/', "::");
        if path == Path::new(root) { String::new() } else { name }
    };
    let files = files(top, ".rs").into_iter().filter(|(path, _)| !is_other(path));
    files.map(|(path, text)| (name(&path), code(&text))).collect()
}

/// A source without its comments, and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The paths that a tree of a `use` stands for.
fn leaves(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let (mut depth, mut start) = (0_i32, 0);
    let mut parts = Vec::new();
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((before, rest)) => {
                let rest = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
                leaves(&format!("{prefix}{before}"), rest, found);
            }
            None => found.push(format!("{prefix}{}", part.split(" as ").next().unwrap())),
        }
    }
}

/// The paths that a source names, by `use` or in its text, that begin with `crate` or `super`.
fn paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut others = String::new();
    while let Some((before, after)) = rest.split_once("use ") {
        let is_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let Some((tree, after)) = after.split_once(';').filter(|_| !is_word) else {
            others.push_str(before);
            rest = after;
            continue;
        };
        others.push_str(before);
        leaves("", tree, &mut found);
        rest = after;
    }
    others.push_str(rest);
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    found.extend(others.split(|c| !is_path(c)).map(str::to_owned));
    let begins = |path: &String| path.starts_with("crate::") || path.starts_with("super::");
    found.retain(begins);
    found
}

/// The module that a path leads to, from another.
fn target(modules: &Modules, from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut base: Vec<&str> = Vec::new();
    if parts[0] == "super" {
        base = from.split("::").collect();
    }
    while let Some(first @ ("crate" | "super")) = parts.first().copied() {
        parts.remove(0);
        if first == "super" {
            base.pop();
        }
    }
    base.extend(parts);
    while !base.is_empty() {
        let name = base.join("::");
        if modules.contains_key(&name) {
            return Some(name);
        }
        base.pop();
    }
    None
}

/// Which module imports which others, but the one that it is a part of.
fn imports(modules: &Modules) -> BTreeMap<String, BTreeSet<String>> {
    let of = |name: &String, text: &String| {
        let targets = paths(text).into_iter().filter_map(|path| target(modules, name, &path));
        let is_above = |other: &String| name.starts_with(&format!("{other}::"));
        targets.filter(|other| other != name && !is_above(other)).collect()
    };
    modules.iter().map(|(name, text)| (name.clone(), of(name, text))).collect()
}

/// A circle among these, as a list that ends where it begins.
fn circle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        at: &str,
        edges: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|other| other == at) {
            return Some(way[start..].iter().cloned().chain([at.to_owned()]).collect());
        }
        if !done.insert(at.to_owned()) {
            return None;
        }
        way.push(at.to_owned());
        let found = edges.get(at)?.iter().find_map(|next| visit(next, edges, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|at| visit(at, edges, &mut Vec::new(), &mut done))
}

fn folder(module: &str) -> String {
    module.split("::").next().unwrap_or_default().to_owned()
}

/// Which folder imports which others; a file at the top is one.
fn folders(edges: &BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, others) in edges.iter().filter(|(name, _)| !name.is_empty()) {
        let name = folder(name);
        let others = others.iter().map(|other| folder(other)).filter(|other| *other != name);
        found.entry(name.clone()).or_default().extend(others);
    }
    found
}

const CRATES: [(&str, &str); 3] =
    [("runtime/src", "lib.rs"), ("runtime/src/bin/adl", "main.rs"), ("init/src", "lib.rs")];

#[test]
fn no_circle_of_imports_is_among_files_or_folders() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    for (top, root) in CRATES {
        let edges = imports(&modules(top, root));
        assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 10, "{top}: {edges:?}");
        assert_eq!(circle(&edges), None, "{top}");
        assert_eq!(circle(&folders(&edges)), None, "{top}");
    }
    let chain = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")];
    let edges = chain.map(|(from, to)| (from.to_owned(), BTreeSet::from([to.to_owned()])));
    let found = circle(&edges.into_iter().collect()).unwrap();
    assert_eq!(found, ["a", "b", "c", "a"]);
}

#[test]
fn architecture_says_who_imports_whom() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("## Who imports whom\n").expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let mut said = BTreeMap::new();
    for row in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let names = |cell: &str| -> BTreeSet<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let [name, others] = cells[..] else { panic!("{row}") };
        said.insert(name.trim_end_matches('`').to_owned(), names(others));
    }
    let mut there = folders(&imports(&modules("runtime/src", "lib.rs")));
    // Everything may fail.
    there.remove("error");
    there.values_mut().for_each(|others| others.retain(|other| other != "error"));
    assert_eq!(said, there);
}

#[test]
fn the_first_line_of_each_file_says_what_it_is_for() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    for top in ["runtime", "init", "protocol", "tests"] {
        let all = files(top, ".rs");
        assert!(!all.is_empty());
        for (path, text) in all {
            let first = text.lines().next().unwrap_or_default();
            assert!(
                first.starts_with("//! ") && first.len() > 20,
                "{top}/{}: {first}",
                path.display()
            );
        }
    }
}

#[test]
fn prose_is_read_out_of_context() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let mut wrong = Vec::new();
    for top in ["runtime", "init", "protocol", "tests"] {
        for (path, text) in files(top, ".rs") {
            let mut is_going_on = false;
            for (number, line) in (1..).zip(text.lines()) {
                let line = line.trim_start();
                let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
                if !is_going_on && doc.is_some_and(|doc| doc.trim_start().starts_with("The same")) {
                    wrong.push(format!("{top}/{}:{number}: {line}", path.display()));
                }
                is_going_on = doc.is_some();
                let is_link = line.contains("://");
                if line.starts_with("//") && line.chars().count() > 100 && !is_link {
                    wrong.push(format!("{top}/{}:{number}: too long", path.display()));
                }
            }
        }
    }
    for (path, text) in files("", ".md") {
        let mut is_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            is_code ^= line.starts_with("```");
            let is_prose = !is_code && !line.starts_with('|') && !line.contains("://");
            if is_prose && line.chars().count() > 100 {
                wrong.push(format!("{}:{number}: too long", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The names under the headings of a manifest that this chooses.
fn dependencies(manifest: &str, chosen: fn(&str) -> bool) -> BTreeSet<String> {
    let text = fs::read_to_string(repository().join(manifest)).unwrap();
    let mut is_chosen = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            is_chosen = chosen(line);
        } else if let Some((name, _)) = line.split_once(['.', ' ']).filter(|_| is_chosen) {
            found.insert(name.to_owned());
        }
    }
    found.remove("#");
    found
}

#[test]
fn whoever_has_what_the_library_needs_has_what_init_is_made_of() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let plain = |heading: &str| heading == "[dependencies]";
    let all = |heading: &str| heading == "[dependencies]" || heading.contains("cfg(any())");
    let library = dependencies("runtime/Cargo.toml", all);
    let mut init = dependencies("init/Cargo.toml", plain);
    assert!(
        init.contains("rustix") && !dependencies("runtime/Cargo.toml", plain).contains("rustix")
    );
    init.retain(|name| !library.contains(name));
    assert_eq!(init, BTreeSet::new(), "name them in runtime/Cargo.toml, where rustix is");
}
