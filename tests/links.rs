//! The links in the documents lead somewhere, and the paths that they name are there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::harness::{Need, needs, repository};
use crate::layout::files;

/// The lines of a Markdown text that are not in a fenced block.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// A line in pieces, each with whether it is in backticks.
fn spans(line: &str) -> impl Iterator<Item = (bool, &str)> {
    line.split('`').enumerate().map(|(at, piece)| (at % 2 == 1, piece))
}

/// Where the links of a text lead, but for those to other places of the web.
fn links(text: &str) -> Vec<String> {
    // A link may go on in the next line.
    let text = prose(text)
        .flat_map(|line| spans(line).filter(|(is_code, _)| !is_code).chain([(false, "\n")]))
        .map(|(_, piece)| piece)
        .collect::<String>();
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let referenced = text.lines().filter(|line| line.starts_with('['));
    let referenced = referenced.filter_map(|line| Some(line.split_once("]: ")?.1));
    let target = |target: &str| target.split_whitespace().next().unwrap_or_default().to_owned();
    let all = inline.chain(referenced).map(target);
    all.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// The anchors of a text's headings, as web sites for code make them.
fn anchors(text: &str) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|line| {
        let rest = line.trim_start_matches('#');
        rest.len() < line.len() && rest.starts_with(' ')
    });
    let mut anchors = Vec::new();
    for heading in headings {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept: String = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let count = counts.entry(kept.clone()).or_default();
        anchors.push(if *count == 0 { kept } else { format!("{kept}-{count}") });
        *count += 1;
    }
    anchors
}

/// A path without `..`, or none if it leads out of the repository.
fn within_the_repository(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if plain.pop() => {}
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(plain)
}

/// What is wrong with a link in a document.
fn fault(document: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let to = if path.is_empty() {
        document.to_owned()
    } else {
        let Some(to) = within_the_repository(&document.parent().unwrap().join(path)) else {
            return Some("leads out of the repository".to_owned());
        };
        to
    };
    let full = repository().join(&to);
    if !full.exists() {
        return Some(format!("no {}", to.display()));
    }
    if anchor.is_empty() {
        return None;
    }
    let there = anchors(&fs::read_to_string(full).unwrap_or_default());
    (!there.iter().any(|it| it == anchor)).then(|| format!("not among {there:?}"))
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let mut wrong = Vec::new();
    let mut count = 0;
    for (document, text) in files("", ".md") {
        for link in links(&text) {
            count += 1;
            let fault = fault(&document, &link);
            wrong.extend(fault.map(|fault| format!("{}: {link}: {fault}", document.display())));
        }
    }
    assert!(count > 30, "{count} links");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let document = Path::new("docs/jobs.md");
    for (link, is_fine) in [
        ("limits.md", true),
        ("../README.md#start", true),
        ("../tests/", true),
        ("README.md", false),
        ("../README.md#no-such-heading", false),
        ("#no-such-heading", false),
        ("../../elsewhere", false),
    ] {
        assert_eq!(fault(document, link).is_none(), is_fine, "{link}");
    }
}

#[test]
fn every_path_that_a_document_names_is_there() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let tops = [".ci/", "docs/", "fuzz/", "init/", "protocol/", "python/", "runtime/", "tests/"];
    let is_path = |piece: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        tops.iter().any(|top| piece.starts_with(top)) && piece.chars().all(is_plain)
    };
    let mut wrong = Vec::new();
    let mut count = 0;
    for (document, text) in files("", ".md") {
        for (is_code, piece) in prose(&text).flat_map(spans) {
            if is_code && is_path(piece) {
                count += 1;
                if !repository().join(piece).exists() {
                    wrong.push(format!("{}: {piece}", document.display()));
                }
            }
        }
    }
    assert!(count > 30, "{count} paths");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_and_anchors_are_found() {
    let text = "# A b\n[one](x.md) and `[no](code)` and [two\nlines](y.md#a)\n```sh\n[no](fence)\n\
                # no\n```\n## A b\n## `C::d`, e!\n[web](https://example.org)\n[r]: z.md\n#no\n";
    assert_eq!(links(text), ["x.md", "y.md#a", "z.md"]);
    assert_eq!(anchors(text), ["a-b", "a-b-1", "cd-e"]);
}
