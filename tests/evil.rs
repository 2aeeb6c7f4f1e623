//! An init that was taken over can do no more to the host than its sandbox could.
//!
//! Each call ends in time and says what is wrong, nothing of it stays, and the other sandboxes of
//! the caller go on.
//!
//! The library embeds its init. So `evil/host`, a caller of its own, is built with `evil/init` in
//! it, and each test here is some ways to be evil and the calls that meet them, in a process of
//! their own, on this kernel and as on one that can't refuse descriptors.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::harness::{
    BUILD_LIMIT, Home, NOBODY, Need, cargo, copy_program, needs, repository, succeeds,
    target_directory,
};
use crate::own_namespaces::give_to_nobody;

/// The kernel that there is, and one that passes on what a receiver did not ask for.
const KERNELS: [&str; 2] = ["this", "older"];
/// What a call may take that waits for nothing but the machine, for its deadline of 300 ms, or for
/// a second more.
const SOON: Duration = Duration::from_secs(2);
/// How much more that may be where the machine does other things: much less than what init holds up
/// whoever closes what it has sent.
const LOADED: Duration = Duration::from_secs(4);
/// What a call may take that gives init up after ten seconds.
const AFTER_TEN: Duration = Duration::from_secs(12);
const AFTER_TWENTY: Duration = Duration::from_secs(23);
/// How much memory a call may take, in KiB.
const MEMORY: u64 = 32 << 10;
/// How much processor time a call may take that only waits.
const IDLE: Duration = Duration::from_millis(200);

fn host() -> &'static Path {
    static HOST: OnceLock<PathBuf> = OnceLock::new();
    HOST.get_or_init(|| {
        let target = target_directory().join("tmp/evil");
        let build = |package: &str, init: Option<&Path>| {
            let mut command = Command::new(cargo());
            command.args(["build", "--quiet", "--locked", "--package", package, "--target-dir"]);
            command.arg(&target).current_dir(repository());
            // Half the time.
            command.env("CARGO_PROFILE_DEV_DEBUG", "0").env_remove("ADL_INIT");
            succeeds(command.envs(init.map(|init| ("ADL_INIT", init))));
        };
        let built = target.join("x86_64-unknown-linux-gnu/debug");
        build("adl-evil-init", None);
        build("adl-evil-host", Some(&built.join("evil-init")));
        built.join("evil-host")
    })
}

/// What came of a call.
#[derive(Debug)]
struct Told(Vec<(String, String)>);

impl Told {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    fn number(&self, key: &str) -> u64 {
        self.get(key).unwrap().parse().unwrap()
    }

    fn time(&self, key: &str) -> Duration {
        Duration::from_millis(self.number(key))
    }
}

/// Kernels, and what is tried on each: ways and calls.
type Run<'a> = (&'a str, &'a [(&'a str, &'a str)]);

/// Who makes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Who runs the tests.
    Own,
    /// An ordinary user: whom root becomes.
    OrdinaryUser,
}

/// Makes calls, and checks all that must hold whatever init does: one of `results` begins what each
/// returned, in time, and nothing is left of it.
#[track_caller]
fn survives(
    caller: Caller,
    calls: &[(&str, &str)],
    results: &[&str],
    within: Duration,
) -> Vec<Told> {
    let home = Home::of_a_test_that_takes(BUILD_LIMIT);
    let becomes_user = caller == Caller::OrdinaryUser && nix::unistd::geteuid().is_root();
    // The build may lie in a place that no one else can enter.
    let program = match becomes_user {
        true => home.path("evil-host"),
        false => host().to_owned(),
    };
    if becomes_user {
        copy_program(host(), &program);
        give_to_nobody(&home);
    }
    // Those that wait for long wait side by side.
    let runs: Vec<Run<'_>> = match within > SOON {
        true => KERNELS.iter().flat_map(|k| calls.chunks(1).map(|call| (*k, call))).collect(),
        false => vec![("this,older", calls)],
    };
    let start = |(number, (kernels, calls)): (usize, Run<'_>)| {
        let state = home.path(format!("calls-{number}"));
        std::fs::create_dir(&state).unwrap();
        let mut command = Command::new(&program);
        if becomes_user {
            chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        command.arg(&state).arg(kernels);
        for (way, call) in calls {
            command.args([way, call]);
        }
        thread::spawn(move || succeeds(&mut command))
    };
    let runs: Vec<_> = runs.into_iter().enumerate().map(start).collect();
    let output: String = runs.into_iter().map(|run| run.join().unwrap()).collect();
    let mut all: Vec<Told> = Vec::new();
    for (key, value) in output.lines().filter_map(|line| line.split_once(' ')) {
        if key == "call" {
            all.push(Told(Vec::new()));
        }
        all.last_mut().unwrap().0.push((key.to_owned(), value.to_owned()));
    }
    assert_eq!(all.len(), 2 * calls.len(), "once for each kernel");
    for told in &all {
        let result = told.get("result").unwrap();
        let is_expected = results.iter().any(|expected| result.starts_with(expected));
        assert!(is_expected, "{told:?}, and not {results:?}");
        assert!(told.time("took") < within + LOADED, "{told:?}");
        assert_eq!(told.get("left"), None, "{told:?}");
        assert!(told.time("neighbour") < SOON + LOADED, "{told:?}");
        assert!(told.number("grown") < MEMORY, "{told:?}");
    }
    all
}

/// One test for each promise: of these ways and calls, with these results, in that time.
macro_rules! promises {
    (
        $caller:ident, $needs:expr;
        $($name:ident: [$($way:literal $call:literal),+] => $results:expr, $within:expr;)+
    ) => {$(
        #[test]
        fn $name() {
            if needs(&$needs) {
                survives(Caller::$caller, &[$(($way, $call)),+], &$results, $within);
            }
        }
    )+};
}

// Of an ordinary user, whose init is asked for the way to its network.
promises! {
    OrdinaryUser, [Need::Workspace, Need::Userns];
    an_ordinary_users_sockets_are_had: [
        "behaves" "listen-inside", "behaves" "publish-inside", "behaves" "forward-inside"
    ] => ["Ok"], SOON;
    no_socket_of_another_network_leads_to_the_sandboxes: [
        "socket-given" "given-listen", "socket-given" "given-connect",
        "socket-given" "given-publish", "socket-given" "given-forward"
    ] => ["Protocol: the init of the sandbox broke the protocol: a socket that is another"], SOON;
    no_sandbox_with_a_network_of_its_own_has_the_callers: [
        "socket-given-cookie" "given-listen", "socket-given-cookie" "given-publish"
    ] => ["Protocol: the init of the sandbox broke the protocol: a sandbox with the network"], SOON;
    no_other_socket_leads_to_a_network: [
        "socket-unix" "listen-inside", "socket-mptcp" "listen-inside",
        "socket-six" "listen-inside", "socket-listener" "listen-inside",
        "socket-unconnected" "connect-inside", "socket-none" "connect-inside",
        "socket-hundreds" "connect-inside", "socket-good-and-null" "connect-inside",
        "socket-null" "publish-inside", "socket-path" "publish-inside",
        "socket-nested" "forward-inside", "socket-fifo" "forward-inside"
    ] => ["Protocol", "SandboxDied"], SOON;
    a_way_to_a_network_that_does_not_come_is_given_up: [
        "socket-silent" "connect-inside", "socket-exit" "connect-inside",
        "socket-lingering" "connect-inside", "socket-exit" "publish-inside"
    ] => ["TimedOut", "SandboxDied", "Protocol"], SOON;
    a_way_to_a_network_is_waited_for_ten_seconds: [
        "socket-silent" "publish-inside"
    ] => ["TimedOut"], AFTER_TEN;
    what_is_told_of_a_way_to_a_network_is_only_that: [
        "socket-started" "connect-inside", "socket-exited" "listen-inside",
        "socket-failed-0" "connect-inside", "socket-failed-minus" "listen-inside"
    ] => ["Protocol", "Io: make a socket inside", "Start: "], SOON;
}

promises! {
    Own, [Need::Workspace];
    // Control: what is evil in no way.
    all_calls_succeed_where_init_behaves: [
        "behaves" "create", "behaves" "delete", "behaves" "reset", "behaves" "status",
        "behaves" "output", "behaves" "spawn", "behaves" "exit", "behaves" "background",
        "behaves" "terminal", "echoes" "echo"
    ] => ["Ok", "exit status 0", "7", "true"], SOON;

    // Pools and spares.
    a_pool_of_inits_that_behave_is_no_trouble: [
        "behaves" "pool", "behaves" "pool-status", "behaves" "pool-prepare",
        "behaves" "reset-spare"
    ] => ["Ok"], SOON;
    a_pool_tells_what_its_inits_do_wrong: [
        "ready-length-max" "pool", "ready-trailing" "pool", "ready-exit" "pool",
        "ready-version-max" "pool", "ready-with-lingering" "pool", "ready-flood" "pool"
    ] => ["Pool: the pool could not make a sandbox: the init of the sandbox broke the protocol",
          "Pool: the pool could not make a sandbox: the sandbox has died"], SOON;
    a_pool_tells_what_is_wrong_with_a_job_that_prepares: [
        "job-trailing" "pool-prepare", "job-length-zero" "pool-prepare"
    ] => ["Pool: the pool could not make a sandbox: could not prepare a new sandbox"], SOON;
    // That a job ended with its sandbox is the job's end: init may be seen to live a moment longer.
    a_pool_hands_out_what_dies_while_it_is_prepared_or_tells_it: [
        "job-exit" "pool-prepare"
    ] => ["Pool: the pool could not make a sandbox: could not prepare a new sandbox", "Ok"], SOON;
    a_pool_whose_inits_say_nothing_ends_in_time: [
        "job-silent" "pool-prepare", "job-silent" "pool"
    ] => ["TimedOut", "Ok"], SOON;
    a_pool_whose_inits_are_never_ready_ends_in_time: [
        "ready-silent" "pool"
    ] => ["TimedOut", "Pool: the pool could not make a sandbox: waited"], AFTER_TWENTY;
    what_inits_of_a_pool_send_unasked_holds_up_no_one: [
        "ready-then-lingering" "pool", "ready-then-lingering" "pool-status",
        "left-with-lingering" "pool-status", "ready-then-lingering" "reset-spare",
        "job-flood" "pool-status"
    ] => ["Ok", "Protocol"], SOON;

    // Blanks.
    what_is_made_of_a_blank_is_trusted_as_little: [
        "behaves" "create-blank", "ready-then-lingering" "create-blank",
        "job-flood" "create-blank", "job-exit" "create-blank", "job-trailing" "create-blank"
    ] => ["Ok", "Protocol", "SandboxDied"], SOON;

    // Frames.
    a_set_up_is_not_answered_by_what_is_no_frame: [
        "ready-length-zero" "create", "ready-length-max" "create", "ready-length-over" "create",
        "ready-trailing" "create", "ready-unknown" "create", "ready-wrong-type" "create"
    ] => ["Protocol"], SOON;
    an_end_is_not_told_by_what_is_no_frame: [
        "job-length-zero" "status", "job-length-max" "status", "job-length-over" "status",
        "job-trailing" "status", "job-unknown" "status",
        "job-length-zero" "output", "job-length-max" "spawn", "job-unknown" "background"
    ] => ["Protocol", "Io: collect output"], SOON;
    half_a_frame_and_the_end_is_the_end: [
        "ready-truncated-exit" "create", "ready-exit" "create", "job-exit" "spawn"
    ] => ["SandboxDied"], SOON;
    half_a_frame_and_the_end_of_a_job_is_the_end: [
        "job-truncated-close" "status", "job-close" "status", "job-exit" "status",
        "job-exit" "output", "job-exit-after-start" "exit"
    ] => ["signal 9, the sandbox has died"], SOON;
    an_init_that_stays_silent_in_set_up_is_given_up: [
        "ready-truncated-silent" "create", "ready-silent" "create"
    ] => ["TimedOut"], AFTER_TWENTY;
    a_job_of_which_half_a_frame_is_told_goes_on: [
        "job-truncated-silent" "exit", "job-silent" "exit", "job-close-control" "exit"
    ] => ["None", "TimedOut"], AFTER_TEN;
    a_start_that_is_never_told_is_given_up: [
        "job-notice-held" "spawn", "job-notice-held" "terminal", "behaves" "stopped"
    ] => ["TimedOut"], AFTER_TEN;

    // Versions and failures.
    no_other_version_is_spoken: [
        "ready-version-0" "create", "ready-version-max" "create"
    ] => ["Protocol: the init of the sandbox broke the protocol: init speaks another version"], SOON;
    no_step_of_set_up_is_taken_for_another: [
        "ready-unmapped" "create"
    ] => ["Protocol: the init of the sandbox broke the protocol: init says that it is at another"], SOON;
    a_failure_of_set_up_is_told_whatever_its_number: [
        "ready-failed-0" "create", "ready-failed-minus" "create", "ready-failed-million" "create"
    ] => [r#"Setup: the sandbox was not built: could not set the host name \"/x\": error number"#], SOON;
    a_path_of_a_failure_is_told_without_what_a_terminal_would_obey: [
        "ready-failed-nul" "create", "ready-failed-path" "create"
    ] => [r#"Setup: the sandbox was not built: could not set the host name \"/"#], SOON;
    a_path_that_is_too_long_is_no_frame: [
        "ready-failed-too-long" "create"
    ] => ["Protocol"], SOON;
    a_failure_to_start_is_told_whatever_its_number: [
        "job-failed-0" "status", "job-failed-minus" "spawn", "job-failed-million" "output"
    ] => ["Start"], SOON;

    // Order.
    a_job_is_told_in_its_order: [
        "job-exited-first" "spawn", "job-started-twice" "exit", "job-terminal-unasked" "exit",
        "job-pid-0" "spawn", "job-pid-minus" "spawn", "job-pid-least" "spawn"
    ] => ["Protocol"], SOON;
    what_follows_an_end_is_not_read: [
        "job-exited-twice" "exit", "ready-twice" "status"
    ] => ["exit status 0"], SOON;
    an_end_may_say_anything_of_what_was_used: [
        "job-huge" "status", "job-timed-out" "status"
    ] => ["exit status 0", "signal 255 (core dumped), timed out"], SOON;

    // Descriptors that are expected.
    no_other_file_is_a_mount_namespace: [
        "ready-with-none" "create", "ready-with-directory" "create", "ready-with-socket" "create",
        "ready-with-fifo" "create", "ready-with-memfd" "create", "ready-control" "create",
        "ready-with-user-namespace" "create", "ready-with-path" "create",
        "ready-with-nested" "create", "ready-with-lingering" "create"
    ] => ["Protocol"], SOON;
    a_set_up_ends_with_one_descriptor: [
        "ready-with-two" "create", "ready-with-many" "create", "ready-out-of-band" "create",
        "ready-with-lingering-in-pieces" "create"
    ] => ["Protocol"], SOON;
    no_other_file_is_a_terminal: [
        "terminal-with-none" "terminal", "terminal-with-null" "terminal",
        "terminal-with-ptmx-path" "terminal", "terminal-with-fifo" "terminal",
        "terminal-with-nested" "terminal", "terminal-with-lingering" "terminal",
        "terminal-with-terminals" "terminal", "terminal-with-many" "terminal",
        "terminal-with-lingering" "terminal-output"
    ] => ["Protocol"], SOON;

    // Descriptors that are not.
    descriptors_at_a_start_hold_up_no_one: [
        "start-with-lingering" "spawn", "start-with-many" "spawn", "start-with-nested" "spawn",
        "start-with-path" "spawn", "start-with-fifo" "spawn", "start-with-lingering" "output",
        "job-out-of-band" "status"
    ] => ["7", "Protocol", "exit status 0"], SOON;
    descriptors_at_an_end_hold_up_no_one: [
        "end-with-lingering" "wait", "end-with-lingering" "kill", "end-with-lingering" "drop",
        "end-with-many" "wait", "end-with-nested" "wait", "end-with-nested" "kill"
    ] => ["Some(ExitStatus { status: Code(0)", "Protocol", "Ok"], SOON;
    descriptors_that_are_never_read_hold_up_no_one: [
        "left-with-lingering" "drop", "left-with-lingering" "wait", "left-with-nested" "drop",
        "ready-then-lingering" "delete", "ready-then-lingering" "reset",
        "ready-then-lingering" "status", "terminal-then-lingering" "terminal-wait"
    ] => ["Some(ExitStatus {", "Ok", "exit status 0", "None", "Protocol"], SOON;

    // Sockets.
    what_is_asked_for_is_taken: [
        "behaves" "listen-inside", "behaves" "connect-unix", "socket-control" "connect-unix",
        "socket-given" "given-unix", "socket-nested" "connect-unix"
    ] => ["Ok"], SOON;
    no_socket_of_another_network_is_the_sandboxes: [
        "socket-given" "given-unix-of-own", "socket-given-cookie" "given-unix-of-own"
    ] => ["Protocol: the init of the sandbox broke the protocol: a socket that is another"], SOON;
    sockets_are_made_where_init_is: [
        "network-left" "listen-inside", "network-left" "publish-inside",
        "network-left" "forward-inside"
    ] => ["Ok"], SOON;
    no_socket_is_made_in_the_callers_network: [
        "behaves" "connect-inside", "network-left" "connect-inside",
        "behaves" "connect-joined", "lies-cookie" "connect-joined",
        "network-left" "connect-joined"
    ] => ["Socket: "], SOON;
    no_other_socket_is_a_unix_one: [
        "socket-listener" "connect-unix", "socket-unconnected-unix" "connect-unix",
        "socket-unix-packets" "connect-unix", "socket-datagrams" "connect-unix",
        "socket-none" "connect-unix", "socket-many" "connect-unix", "socket-fifo" "connect-unix",
        "socket-lingering" "connect-unix", "socket-memfd" "connect-unix",
        "socket-mptcp" "connect-unix", "socket-six" "connect-unix",
        "socket-unconnected" "connect-unix", "socket-hundreds" "connect-unix",
        "socket-good-and-null" "connect-unix", "socket-null" "connect-unix",
        "socket-path" "connect-unix"
    ] => ["Protocol"], SOON;
    a_socket_that_does_not_come_is_given_up: [
        "socket-silent" "connect-unix", "socket-exit" "connect-unix"
    ] => ["TimedOut", "SandboxDied"], SOON;
    what_is_told_of_a_socket_is_only_that: [
        "socket-started" "connect-unix", "socket-exited" "connect-unix",
        "socket-failed-0" "connect-unix", "socket-failed-minus" "connect-unix"
    ] => ["Protocol", "File: could not", "Start: "], SOON;

    // Too much, or not enough.
    a_flood_stays_outside: [
        "ready-flood" "create", "job-flood" "spawn", "job-flood" "exit", "job-flood" "status",
        "control-flood" "status", "job-flood-truncated" "status"
    ] => ["Protocol", "exit status 0", "7"], SOON;
    an_init_that_does_not_read_is_given_up: [
        "never-reads" "request"
    ] => ["TimedOut"], AFTER_TEN;
    a_stdin_that_no_one_reads_ends_with_the_time_of_its_job: [
        "job-stdin-unread" "stdin"
    ] => ["signal 9, timed out"], SOON;

    // Files.
    a_file_is_no_longer_than_asked_for: [
        "file-more" "range", "file-for-ever" "read", "file-for-ever" "range",
        "file-for-ever" "metadata", "file-for-ever" "link", "file-for-ever" "list",
        "file-for-ever" "remove", "file-for-ever" "stream"
    ] => ["TooLarge", "Io", "TimedOut"], SOON;
    a_file_call_ends_with_its_time: [
        "file-silent" "read", "file-silent" "write", "file-silent" "metadata",
        "file-silent" "list", "file-silent" "remove", "file-silent" "stream",
        "file-silent" "copy-in", "tree-silent" "copy-out", "tree-silent" "tar",
        "list-for-ever" "list"
    ] => ["TimedOut", "TooLarge"], SOON;
    an_answer_that_does_not_decode_is_none: [
        "file-garbage" "metadata", "file-garbage" "list", "file-nothing" "metadata",
        "file-longer-than-said" "metadata", "file-two-answers" "metadata",
        "list-kind" "list", "list-fewer-kinds" "list"
    ] => ["Protocol"], SOON;
    any_number_in_an_answer_is_only_a_number: [
        "file-lies" "metadata", "file-failed-0" "read", "file-failed-minus" "read",
        "list-nothing-for-ever" "list"
    ] => ["Metadata {", "File: ", "0 entries"], SOON;
    a_name_that_no_directory_can_have_is_refused: [
        "list-slash" "list", "list-parent" "list", "list-empty-name" "list"
    ] => ["Refused"], SOON;
    a_tree_stays_in_its_place: [
        "tree-parent" "copy-out", "tree-up" "copy-out", "tree-absolute" "copy-out",
        "tree-dot" "copy-out", "tree-two-names" "copy-out", "tree-no-name" "copy-out",
        "tree-long-name" "copy-out", "tree-leave-top" "copy-out",
        "tree-link-outside" "copy-out", "tree-link-unknown" "copy-out",
        "tree-unknown" "copy-out", "tree-entry-length" "copy-out", "tree-chunk" "copy-out",
        "tree-size" "copy-out", "tree-sizes" "copy-out", "tree-cut-off" "copy-out",
        "file-garbage" "copy-out", "file-nothing" "copy-out", "tree-up" "tar", "tree-chunk" "tar",
        "tree-size" "tar", "tree-link-outside" "tar", "tree-cut-off" "tar"
    ] => ["Refused", "Protocol", "TooLarge", "Io"], SOON;
    a_tree_without_an_end_is_cut_off: [
        "tree-deep" "copy-out", "tree-for-ever" "copy-out", "tree-for-ever" "tar"
    ] => ["TooLarge", "Refused", "TimedOut"], SOON;
}

/// Control: the descriptors that would hold up who closes them do so.
#[test]
fn who_closes_a_lingering_connection_is_held_up() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    for told in
        survives(Caller::Own, &[("job-closes-lingering", "status")], &["exit status 0"], AFTER_TEN)
    {
        assert!(told.time("took") > Duration::from_secs(7), "{told:?}");
    }
}

#[test]
fn all_that_a_tree_makes_is_below_its_target() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let ways = [
        "tree-up",
        "tree-parent",
        "tree-leave-top",
        "tree-link-outside",
        "tree-special",
        "tree-through-link",
        "tree-over-link",
    ];
    let results = ["Ok", "Refused", "Protocol", "Io"];
    for told in survives(Caller::Own, &ways.map(|way| (way, "copy-out")), &results, SOON) {
        assert_eq!(told.get("made"), Some("canary copy"), "{told:?}");
    }
}

#[test]
fn waiting_for_what_never_comes_takes_no_processor() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let calls = [("job-silent", "exit"), ("job-out-of-band-alone", "wait")];
    for told in survives(Caller::Own, &calls, &["None", "Protocol"], SOON) {
        assert!(told.time("cpu") < IDLE, "{told:?}");
    }
    for told in survives(Caller::Own, &[("job-notice-held", "spawn")], &["TimedOut"], AFTER_TEN) {
        assert!(told.time("cpu") < IDLE, "{told:?}");
    }
}

#[test]
fn a_channel_that_init_has_given_away_ends_with_init() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    // The last is the control: one that it has not.
    let ways = ["job-channel-away", "job-channel-parked", "job-exit-after-start"];
    let results = ["signal 9, the sandbox has died", "Protocol"];
    survives(Caller::Own, &ways.map(|way| (way, "wait-for-ever")), &results, SOON);
}

#[test]
fn a_terminal_for_which_the_caller_has_no_descriptor_is_the_callers_error() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let calls = [("terminal-late", "terminal-without-descriptors")];
    for told in survives(Caller::Own, &calls, &["Io: receive a descriptor"], SOON) {
        assert!(told.get("result").unwrap().contains("Too many open files"), "{told:?}");
    }
}
