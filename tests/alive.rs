//! Many sandboxes of one process are alive at once: each answers, none costs the caller much, and
//! all of them end.

use std::fs::File;
use std::time::Duration;

use adl_runtime::Sandbox;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::census::{self, Census, status};
use crate::forks::{finish, fork};
use crate::harness::{Home, Need, needs, shell, within};
use crate::helper::Helper;

const MANY: usize = 200;
/// What each may have of the caller's descriptors, also when it has run something.
const DESCRIPTORS: usize = 6;

#[test]
fn two_hundred_at_once_answer_and_leave_nothing() {
    if needs(&[]) {
        let home = Home::of_a_test_that_takes(Duration::from_secs(600));
        Helper::start("be-many", &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn be_many(state: &std::path::Path) {
    let own = std::process::id().cast_signed();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let config = || adl_runtime::Config {
        state_directory: Some(state.to_owned()),
        ..adl_runtime::Config::default()
    };
    // What the first ones of a process make and leave.
    for _ in 0..2 {
        let sandbox = Sandbox::create(config()).unwrap();
        shell(&sandbox, "true");
        sandbox.delete().unwrap();
    }
    let settle = || {
        adl_runtime::finish_removals();
        Census::take(state, "adl-no-such-prefix")
    };
    let before = settle();
    let descriptors = || census::descriptors(own).len();
    let (at_first, mut all) = (descriptors(), Vec::new());
    for _ in 0..MANY {
        all.push(Sandbox::create(config()).unwrap());
    }
    for (number, sandbox) in all.iter().enumerate() {
        let answer = shell(sandbox, format!("echo {number} > /root/file; cat /root/file"));
        assert_eq!(answer, format!("{number}\n"));
    }
    // Each has its own, to the end.
    for (number, sandbox) in all.iter().enumerate().rev() {
        assert_eq!(shell(sandbox, "cat /root/file"), format!("{number}\n"));
    }
    let each = (descriptors() - at_first) as f64 / MANY as f64;
    assert!(each <= DESCRIPTORS as f64 + 0.1, "{each} descriptors each");
    all.iter().for_each(|sandbox| sandbox.delete().unwrap());
    drop(all);
    let mut after = settle();
    let same = within(Duration::from_secs(10), || {
        if after != before {
            after = settle();
        }
        after == before
    });
    assert!(same, "{:#?}", after.difference(&before));
}

/// How many descriptors a process has room for: what was copied, is not given back.
fn room(pid: i32) -> usize {
    status(pid, "FDSize").unwrap().trim().parse().unwrap()
}

const OPEN: usize = 600;

fn open_many() -> Vec<File> {
    (0..OPEN).map(|_| File::open("/dev/null").unwrap()).collect()
}

#[test]
fn what_a_caller_has_open_is_not_copied_for_its_sandboxes() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    finish(fork(|| {
        let _open = open_many();
        // The first is cloned from what the caller has.
        let first = home.sandbox();
        assert!(room(first.init_pid()) > OPEN, "{}", room(first.init_pid()));
        for _ in 0..3 {
            let sandbox = home.sandbox();
            assert!(room(sandbox.init_pid()) < OPEN, "{}", room(sandbox.init_pid()));
            assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
            sandbox.reset().unwrap();
            assert!(room(sandbox.init_pid()) < OPEN, "{}", room(sandbox.init_pid()));
            sandbox.delete().unwrap();
        }
        first.delete().unwrap();
        adl_runtime::finish_removals();
    }));
}
