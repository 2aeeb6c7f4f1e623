//! Ends the unit tests where one hangs: the test harness of Rust names it after a minute, and would
//! wait for ever.
#![expect(unsafe_code, reason = "system calls")]

use std::fs;
use std::time::Duration;

use crate::sys::ticks_since_boot;

/// What no unit test takes.
const LIMIT: Duration = Duration::from_secs(240);

/// Has the loader start it before the harness, which has no place for that.
// SAFETY: the loader calls each function of this section once, after the C library is ready.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // What is left out of a usual run may take as long as it does.
    if std::env::args_os().any(|argument| argument == "--ignored") {
        return;
    }
    // Where there can be no thread, a hang is one.
    let _ = std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch);
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if let Some(name) = running_for(LIMIT) {
            eprintln!("{name}…: still running after {LIMIT:?}");
            // SAFETY: does not return. Not exit(3), which may wait for what hangs.
            unsafe { libc::_exit(101) };
        }
    }
}

/// The beginning of the name of a test that runs for so long: each has a thread of its own, which
/// is called as it is (proc_pid_comm(5)).
fn running_for(limit: Duration) -> Option<String> {
    let tasks = fs::read_dir("/proc/self/task").ok()?;
    let mut stats =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats.find_map(|stat| {
        let (_, rest) = stat.split_once('(')?;
        let (name, rest) = rest.rsplit_once(')')?;
        let began: u64 = rest.split_whitespace().nth(19)?.parse().ok()?;
        let ran = Duration::from_millis(ticks_since_boot().saturating_sub(began) * 10);
        (name.contains("::") && ran >= limit).then(|| name.to_owned())
    })
}

#[test]
fn a_test_that_runs_is_found_by_its_thread() {
    let comm = fs::read_to_string("/proc/thread-self/comm").unwrap();
    // With one thread for all tests, they run in that of the harness.
    if comm.contains("::") {
        assert!(running_for(Duration::ZERO).is_some());
    }
    assert_eq!(running_for(Duration::from_secs(1 << 30)), None);
}
