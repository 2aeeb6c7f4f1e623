//! Each example runs, for root and for an ordinary user, prints what it shows, and leaves nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{BUILD_LIMIT, Home, Need, OrdinaryUser, copy_program, needs, stderr};

/// Each example with the lines that it must print, in this order; others may be between them.
const EXAMPLES: [(&str, &[&str]); 10] = [
    (
        "files",
        &[
            "notes: one two (8 bytes)",
            "large: xxxx... 1048576 bytes",
            "copied in: 1 files, 1 directories",
            "project: input (File)",
            "project: output (File)",
            r#"copied out: "a\nb\n""#,
        ],
    ),
    (
        "fork",
        &[
            "prepared: exit status 0",
            "snapshot: Added /srv/work/model",
            r#"first: model "base\nfirst\n""#,
            "first: Deleted /srv/work/cache",
            "first: Modified /srv/work/model",
            r#"second: model "base\nsecond\n""#,
            "second: Added /srv/work/new",
            r#"origin: model "base\n""#,
            "attempt: Deleted /srv/work/cache",
            "next: cache is there: false",
            "second, reset: 0 changes",
            "removed",
        ],
    ),
    (
        "hello",
        &[
            "echo: hello, $HOME;",
            "shell: exit status 3: hello from root in /tmp",
            "missing: tell whoever asked for it (\"no-such-program\" did not start: there is no \
             such program in the sandbox, or its interpreter is missing)",
            "unreadable: tell whoever asked for it (could not read \"/no/such/file\" in the \
             sandbox: No such file or directory (os error 2))",
            "late: change the call (the sandbox was deleted: create another)",
        ],
    ),
    ("host_image", &["/etc", "/etc/ld.so.cache"]),
    (
        "limits",
        &[
            "time: its time was up (signal 9, timed out)",
            r#"time: kept "so far", 0 bytes left out"#,
            "silence: it was silent for too long (signal 9, silent for too long)",
            "output: it wrote too much (signal 9, too much output)",
            "after all: exit status 0",
        ],
    ),
    (
        "pool",
        &[
            "thread 0: found state",
            "thread 1: found state",
            "thread 2: found state",
            "thread 3: found state",
            r#"after a reset: "prepared\n""#,
            "in use 1, failed 0, acquired 5",
            "closed: whoever asks is told",
        ],
    ),
    (
        "server",
        &[
            "ready at 127.0.0.1:8080",
            "asked one: ONE",
            "asked two: TWO",
            "log so far:",
            "request: one",
            "request: two",
            "stopped: signal 15, 26 bytes of log",
        ],
    ),
    (
        "terminal",
        &[
            r#""ready> ""#,
            r#""stty size\r\n24 80\r\nready> ""#,
            r#""stty size\r\n50 132\r\nready> ""#,
            r#"interrupted: "^C\r\nready> ""#,
            "exit status 7",
            r#"the rest: "exit 7\r\n""#,
        ],
    ),
    (
        "threads",
        &[
            "3 commands run at once",
            "thread 0: it was reset (signal 9, the sandbox has died); its file is there: false; \
             exit status 0",
            "thread 2: it was reset (signal 9, the sandbox has died); its file is there: false; \
             exit status 0",
            "deleted: the others are told that it was",
        ],
    ),
    ("tokio", &["through the sandbox", "cat: exit status 0", "sleep: signal 9", "collected"]),
];

/// Builds all examples, as what they stand on was built already. Where they are.
fn build() -> PathBuf {
    let arguments = ["build", "--package", "adl-runtime", "--examples"];
    let one = crate::cargo::build("hello", &arguments).unwrap();
    one.parent().unwrap().to_owned()
}

/// Runs an example that must succeed, with a directory for temporary files. What it prints.
#[track_caller]
fn run(mut example: Command, temporary: &Path, state: &Path) -> String {
    let output = example.env("TMPDIR", temporary).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{example:?}: {}\n{text}{}", output.status, stderr(&output));
    assert_eq!(stderr(&output), "", "{example:?}");
    for directory in [temporary, &state.join("sandboxes"), &state.join("snapshots")] {
        let left: Vec<_> = match fs::read_dir(directory) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{}: {error}", directory.display()),
        };
        assert!(left.is_empty(), "{example:?} leaves {left:?}");
    }
    text
}

/// The first of the lines that are not printed, or not after those before it.
fn missing<'a>(text: &str, lines: &[&'a str]) -> Option<&'a str> {
    let mut printed = text.lines();
    lines.iter().copied().find(|line| !printed.any(|it| it == *line))
}

#[track_caller]
fn assert_shows(name: &str, text: &str, lines: &[&str]) {
    assert_eq!(missing(text, lines), None, "{name} prints:\n{text}");
}

#[test]
fn each_example_prints_what_it_shows_and_leaves_nothing() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let home = Home::of_a_test_that_takes(BUILD_LIMIT);
    let place = build();
    let temporary = home.path("temporary");
    fs::create_dir(&temporary).unwrap();
    for (name, lines) in EXAMPLES {
        let mut example = Command::new(place.join(name));
        example.env("ADL_STATE_DIR", home.state()).stdin(Stdio::null());
        let text = run(example, &temporary, &home.state());
        assert_shows(name, &text, lines);
        if name == "files" && nix::unistd::geteuid().is_root() {
            let lines = ["mine: owner 1000", "large, for 1000: Permission denied (os error 13)"];
            assert_shows(name, &text, &lines);
        }
    }
}

#[test]
fn an_ordinary_user_can_run_each_example() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let _home = Home::of_a_test_that_takes(BUILD_LIMIT);
    let place = build();
    let user = OrdinaryUser::new();
    let top = user.state().with_file_name("examples");
    let temporary = user.state().with_file_name("temporary");
    for directory in [&top, &temporary] {
        fs::create_dir(directory).unwrap();
        if nix::unistd::geteuid().is_root() {
            use crate::harness::NOBODY;
            std::os::unix::fs::chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    for (name, lines) in EXAMPLES {
        // The build may lie in a place that no one else can enter.
        let program = top.join(name);
        copy_program(&place.join(name), &program);
        let text = run(user.command(&program), &temporary, &user.state());
        fs::remove_file(&program).unwrap();
        assert_shows(name, &text, lines);
        match name {
            "files" => assert_shows(name, &text, &["mine: this sandbox has one user, 0"]),
            "limits" if text.starts_with("without cgroups: ") => {
                let lines = ["memory: it exited by itself (exit status 1)"];
                assert_shows(name, &text, &lines);
            }
            _ => {}
        }
    }
}

#[test]
fn with_cgroups_the_example_of_limits_tells_why_a_command_has_ended() {
    if !needs(&[Need::Workspace, Need::Cgroups]) {
        return;
    }
    let home = Home::of_a_test_that_takes(BUILD_LIMIT);
    let temporary = home.path("temporary");
    fs::create_dir(&temporary).unwrap();
    let mut example = Command::new(build().join("limits"));
    example.env("ADL_STATE_DIR", home.state()).stdin(Stdio::null());
    let text = run(example, &temporary, &home.state());
    assert_shows(
        "limits",
        &text,
        &["memory: the sandbox had no more memory (signal 9, out of memory)"],
    );
    assert!(text.lines().any(|line| line.starts_with("processes: ")), "{text}");
    assert!(!text.contains("processes: it exited by itself (exit status 0)"), "{text}");
}

#[test]
fn each_file_among_the_examples_says_how_it_is_run_and_is_tried() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let files = crate::layout::files("runtime/examples", ".rs");
    let names: Vec<_> = files.iter().map(|(path, _)| path.file_stem().unwrap()).collect();
    assert_eq!(names, EXAMPLES.map(|(name, _)| name));
    for (path, text) in &files {
        let command = format!("`cargo run --example {}`", path.file_stem().unwrap().display());
        assert!(text.contains(&command), "{}: no {command}", path.display());
        let lines = text.lines().count();
        assert!((30..=100).contains(&lines), "{}: {lines} lines", path.display());
    }
    assert!(crate::readme::readme().contains("](runtime/examples/)"), "the README names them");
}

#[test]
fn a_line_that_is_missing_or_comes_too_early_is_found() {
    let text = "one\ntwo\nthree\n";
    assert_eq!(missing(text, &["one", "three"]), None);
    assert_eq!(missing(text, &["one", "four"]), Some("four"));
    assert_eq!(missing(text, &["two", "one"]), Some("one"));
    assert_eq!(missing(text, &["tw"]), Some("tw"));
}
