//! What runs the tests (`run.rs`) ends with a result whatever they do, and tells all of it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::harness::{needs, stderr, within};
use crate::report;

/// Runs tests of this binary by a runner of their own, one after the other.
fn suite(arguments: &[&str]) -> Output {
    let runner = std::env::var_os(report::SUITE).map(PathBuf::from).unwrap_or_else(|| {
        let build = ["test", "--no-run", "--package", "adl-tests", "--test", "suite"];
        crate::cargo::build("suite", &build).unwrap()
    });
    let mut command = Command::new(runner);
    command.env(report::TESTS, std::env::current_exe().unwrap());
    // It is not used.
    command.env("ADL_BIN", "/bin/false").env_remove("ADL_EXPECT").env_remove(report::ALONE);
    command.args(["--test-threads", "1"]).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The last line that says something.
fn result(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[test]
fn whatever_a_test_does_the_others_run_and_the_end_tells_all() {
    if !needs(&[]) {
        return;
    }
    let output = suite(&["--ignored", "suite::specimens::"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(101), "{text}{}", stderr(&output));
    let ends: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("test suite::specimens::"))
        .map(|line| line.split(" (").next().unwrap())
        .collect();
    let expected = [
        "exits ... FAILED: it ended without a result",
        "fails ... FAILED: exit status: 101",
        "hangs ... FAILED: still running after 2s",
        "is_killed ... FAILED: signal: 9",
        "lacks_something ... skipped, without no-such-program",
        "passes ... ok",
        // When all others have run.
        "asks_to_be_alone ... ok",
    ];
    assert_eq!(ends, expected, "{text}");
    // With what they wrote, and by name.
    let (_, failures) = text.split_once("\nfailures:\n").unwrap();
    for told in ["hanging", "as it should", "still running after 2s"] {
        assert!(failures.contains(told), "{told}: {text}");
    }
    let names = "\nfailures:\n    suite::specimens::exits\n    suite::specimens::fails\n    \
                 suite::specimens::hangs\n    suite::specimens::is_killed\n";
    assert!(text.contains(names), "{text}");
    let skipped = "\nskipped 1 tests:\n    no-such-program is missing: no no-such-program in /usr\n        \
                   suite::specimens::lacks_something\n\
                   To run them, too: apt-get install no-such-program\n";
    assert!(text.contains(skipped), "{text}");
    let counts = "test result: FAILED. 2 passed; 4 failed; 1 ignored; 0 measured; ";
    assert!(result(&output).starts_with(counts), "{text}");
    // What the one that hung had started has ended with it.
    let (_, child) = text.split_once("hanging with ").unwrap();
    let child: i32 = child.lines().next().unwrap().parse().unwrap();
    let state = || crate::census::status(child, "State");
    let is_over = || state().is_none_or(|state| state.starts_with('Z'));
    assert!(within(crate::jobs::SOON, is_over), "{child}: {:?}", state());
}

#[test]
fn tests_are_chosen_as_the_harness_of_rust_does() {
    let passes = "suite::specimens::passes";
    for (arguments, expected) in [
        (&["--exact", passes, "--ignored"][..], "ok. 1 passed; 0 failed; 0 ignored"),
        (&["--exact", passes, "--include-ignored"], "ok. 1 passed; 0 failed; 0 ignored"),
        (&["--exact", passes], "ok. 0 passed; 0 failed; 1 ignored"),
        (&["--exact", "passes", "--ignored"], "ok. 0 passed; 0 failed; 0 ignored"),
        (&["mens::pas", "nothing at all", "--ignored"], "ok. 1 passed; 0 failed; 0 ignored"),
        (&["mens::pas", "--skip", "passes", "--ignored"], "ok. 0 passed; 0 failed; 0 ignored"),
    ] {
        let output = suite(arguments);
        let expected = format!("test result: {expected}; 0 measured; ");
        assert!(result(&output).starts_with(&expected), "{arguments:?}: {output:?}");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    let listed = suite(&["--list", "--ignored", "mens::pas"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), format!("{passes}: test\n"));
    let unknown = suite(&["--shuffle"]);
    assert_eq!(unknown.status.code(), Some(101));
    assert!(stderr(&unknown).contains("shuffle"), "{unknown:?}");
}

/// What a test can do, for the tests above.
mod specimens {
    use std::process::{Command, Stdio};

    use std::time::Duration;

    use crate::harness::{Need, alone, needs, tell};
    use crate::report::Line;

    #[test]
    #[ignore = "for a test of what runs the tests"]
    fn asks_to_be_alone() {
        let _alone = alone();
    }

    #[test]
    #[ignore = "for a test of what runs the tests"]
    fn exits() {
        std::process::exit(0);
    }

    #[test]
    #[ignore = "for a test of what runs the tests"]
    fn fails() {
        panic!("as it should");
    }

    #[test]
    #[ignore = "for a test of what runs the tests, and never ends"]
    fn hangs() {
        let mut child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
        println!("hanging with {}", child.id());
        tell(&Line::Takes(Duration::from_secs(2)));
        child.wait().unwrap();
    }

    #[test]
    #[ignore = "for a test of what runs the tests"]
    fn is_killed() {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    #[ignore = "for a test of what runs the tests"]
    fn lacks_something() {
        assert!(!needs(&[Need::Program("no-such-program")]));
    }

    #[test]
    #[ignore = "for a test of what runs the tests"]
    fn passes() {}
}
