//! Every command in the README does what it says.

use std::fs;
use std::process::{Command, Stdio};

use crate::harness::{BUILD_LIMIT, Home, Need, needs, repository, target_directory};

/// The fenced blocks of a Markdown text whose info string is `language`.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut fence: Option<bool> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), fence) {
            (Some(info), None) => {
                let wanted = info.trim() == language;
                if wanted {
                    blocks.push(String::new());
                }
                fence = Some(wanted);
            }
            (Some(_), Some(_)) => fence = None,
            (None, Some(true)) => {
                let block = blocks.last_mut().unwrap();
                block.push_str(line);
                block.push('\n');
            }
            (None, _) => {}
        }
    }
    blocks
}

/// The README.
pub(crate) fn readme() -> String {
    fs::read_to_string(repository().join("README.md")).expect("README.md")
}

/// The commands of a block of shell: lines, joined where one ends with a backslash.
fn commands(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.trim().trim_start_matches("$ "));
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Whether a command runs the tests: it is run by whoever runs this one.
fn runs_the_tests(command: &str) -> bool {
    command.split_whitespace().any(|word| word == "cargo") && command.contains("cargo test")
}

#[test]
fn every_command_runs() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let home = Home::of_a_test_that_takes(BUILD_LIMIT);
    let blocks = blocks(&readme(), "sh");
    let first = blocks.first().expect("a block marked sh");
    assert!(first.starts_with("cargo install "), "the README begins with {first:?}");
    // What is installed there is what the other commands find.
    let mut path = home.path("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    for block in blocks {
        let commands: Vec<_> =
            commands(&block).into_iter().filter(|c| !runs_the_tests(c)).collect();
        // One shell for a block, so that a `cd` or a variable holds for what follows.
        let mut sh = Command::new("sh");
        sh.args(["-exc", &commands.join("\n")]).current_dir(repository()).stdin(Stdio::null());
        sh.env("ADL_STATE_DIR", home.state()).env("CARGO_TARGET_DIR", target_directory());
        sh.env("TMPDIR", home.path("")).env("CARGO_INSTALL_ROOT", home.path("")).env("PATH", &path);
        let output = sh.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}:\n{block}\n{stderr}", output.status);
    }
}

#[test]
fn the_command_that_runs_the_tests_is_the_one_that_ci_runs() {
    let ci = fs::read_to_string(repository().join(".ci/run")).expect(".ci/run");
    let all: Vec<_> = blocks(&readme(), "sh").iter().flat_map(|block| commands(block)).collect();
    let tests: Vec<_> = all.iter().filter(|command| runs_the_tests(command)).collect();
    assert!(!tests.is_empty(), "the README does not say how to run the tests");
    for command in tests {
        let command = &command[command.find("cargo test").unwrap()..];
        assert!(ci.contains(command), ".ci/run does not run {command:?}");
    }
}

#[test]
fn blocks_and_commands_are_found() {
    let text =
        "a\n```sh\n$ one \\\n  more\n# no\n\ntwo\n```\n```text\nthree\n```\n```sh\nfour\n```\n";
    let found: Vec<_> = blocks(text, "sh").iter().map(|block| commands(block)).collect();
    assert_eq!(found, [vec!["one    more".to_owned(), "two".to_owned()], vec!["four".to_owned()]]);
    assert!(runs_the_tests("cargo test --workspace") && !runs_the_tests("cargo run -- test"));
}
