//! This program once more, as a process of its own: to be killed, or to be counted alone.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census::{self, Process};
use crate::harness::within;
use crate::host_image;
use crate::lifetime::GONE;
use crate::own_namespaces::become_nobody;

/// Names what the helper is to do.
pub(crate) const ROLE: &str = "ADL_TEST_HELPER";
/// Has it become an ordinary user first, where this is root.
pub(crate) const AS_A_USER: &str = "as a user: ";
/// Names its state directory.
pub(crate) const STATE: &str = "ADL_TEST_HELPER_STATE";
/// Begins each line that is from it and not from the test harness around it.
const MARK: &str = "@ ";

/// Starts a helper.
pub(crate) struct Helper {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Helper {
    pub(crate) fn start(role: &str, state: &Path) -> Self {
        Self::start_by(&["env"], role, state)
    }

    /// Starts it where what is mounted at `hidden` is not.
    pub(crate) fn start_without(hidden: &str, role: &str, state: &Path) -> Self {
        let unmount = format!("umount -R {hidden} && exec \"$@\"");
        let by = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &unmount, "sh"];
        Self::start_by(&by, role, state)
    }

    /// Starts it where the machine seems to have started five seconds later.
    pub(crate) fn start_at_another_time(role: &str, state: &Path) -> Self {
        let by = ["unshare", "--time", "--boottime", "-5", "--fork", "--kill-child"];
        Self::start_by(&by, role, state)
    }

    fn start_by(by: &[&str], role: &str, state: &Path) -> Self {
        Self::start_as(command_by(by, role, state))
    }

    /// Starts what [`command_by`] has made.
    pub(crate) fn start_as(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next; `None` when it has ended.
    pub(crate) fn next(&mut self) -> Option<String> {
        loop {
            let line = self.lines.next()?.unwrap();
            // The harness may have begun the line.
            if let Some((_, said)) = line.split_once(MARK) {
                return Some(said.to_owned());
            }
        }
    }

    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Has it go on to what it does next.
    pub(crate) fn ask(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
    }

    /// Waits until it has ended, however.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Ends it as nothing can prevent.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it where it stands still. Returns it and all that descends from it, some of which may
    /// live for a moment more. In a list made while it runs, what it starts next is missing.
    pub(crate) fn stop_and_kill(self) -> Vec<Process> {
        let id = self.id();
        kill(Pid::from_raw(id), Signal::SIGSTOP).unwrap();
        let stands = || {
            let threads = fs::read_dir(format!("/proc/{id}/task")).unwrap();
            let mut states = threads.filter_map(|thread| {
                let thread = thread.unwrap().file_name().into_string().unwrap();
                census::status(thread.parse().unwrap(), "State")
            });
            states.all(|state| state.starts_with('T'))
        };
        assert!(within(GONE, stands), "it does not stop");
        let members = census::tree(id);
        self.kill();
        members
    }

    /// Waits until it has done its part, and makes sure that it has.
    pub(crate) fn finish(mut self) {
        drop(self.child.stdin.take());
        while self.next().is_some() {}
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the helper failed: {status}");
    }
}

/// How a helper is run whose streams are the test's.
pub(crate) fn command(role: &str, state: &Path) -> Command {
    command_by(&["env"], role, state)
}

/// How it is run by another program, which ends in its arguments.
pub(crate) fn command_by(by: &[&str], role: &str, state: &Path) -> Command {
    let (program, arguments) = by.split_first().unwrap();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "helper::entry", "--ignored", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(STATE, state);
    command
}

/// For the helper: tells the test.
pub(crate) fn say(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{text}").unwrap();
    out.flush().unwrap();
}

#[test]
#[ignore = "the entry of helper processes, which other tests start"]
fn entry() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let state = PathBuf::from(std::env::var_os(STATE).unwrap());
    let role = match role.strip_prefix(AS_A_USER) {
        Some(role) => {
            become_nobody();
            role
        }
        None => &role,
    };
    match role {
        "have-ports-in-a-joined-network" => crate::join::have_ports(&state),
        "hold-a-thousand-connections" => crate::port_attacks::hold_a_thousand_connections(&state),
        "have-few-descriptors" => crate::port_attacks::have_few_descriptors(&state),
        "have-descriptors-on-their-way" => {
            crate::port_attacks::have_descriptors_on_their_way(&state);
        }
        "snapshot-with-few-descriptors" => {
            crate::port_attacks::snapshot_with_few_descriptors(&state);
        }
        "fork-beside-connections" => crate::port_attacks::fork_beside_connections(&state),
        "take-all-ports" => crate::port_attacks::take_all_ports(&state),
        "hold-a-port" => crate::port_attacks::hold_a_port(&state),
        "connect-often" => crate::port_attacks::connect_often(&state),
        "hold-sandboxes" => crate::lifetime::hold_sandboxes(&state),
        "count-descriptors" => crate::lifetime::count_descriptors(&state),
        "without-cgroups" => crate::limits::without_cgroups(&state),
        "without-version-2" => crate::cgroups::without_version_2(&state),
        "live-shortly" => crate::cycles::live_shortly(&state),
        "live-often" => crate::cycles::live_often(&state),
        "reset-without-descriptors" => crate::ends::reset_without_descriptors(&state),
        "cycle" => crate::lifetime::cycle(&state),
        "collect-much" => crate::output::collect_much(&state),
        "inherits-streams" => crate::stdio::inherits_streams(&state),
        "joins-its-streams" => crate::relays::joins_its_streams(&state),
        "wait-in-vain" => crate::jobs::wait_in_vain(&state),
        "joins-many" => crate::relays::joins_many(&state),
        "inherits-both-streams" => crate::stdio::inherits_both_streams(&state),
        "background-with-few-descriptors" => crate::jobs::background_with_few_descriptors(&state),
        "cancel-many" => crate::jobs::cancel_many(&state),
        "few-descriptors" => crate::shares::few_descriptors(&state),
        "write-for-ever" => crate::files::write_for_ever(&state),
        "reset-for-ever" => crate::reset::reset_for_ever(&state),
        "exit-when-removed" => {
            crate::ends::exit_after_a_delete(&state, std::time::Duration::from_secs(100));
        }
        "exit-at-once" => crate::ends::exit_after_a_delete(&state, std::time::Duration::ZERO),
        "in-flight" => crate::shares::in_flight(&state),
        "snapshot-for-ever" => crate::snapshots::snapshot_for_ever(&state),
        "hold-one" => crate::shares::hold_one(&state),
        "lend-to-forks" => crate::forks::lend_to_forks(&state),
        "lend-to-namespaces" => crate::forks::lend_to_namespaces(&state),
        "share-with-forks" => crate::forks::share_with_forks(&state),
        "share-with-namespaces" => crate::forks::share_with_namespaces(&state),
        "fork-among-threads" => crate::forks::fork_among_threads(&state),
        "swap-for-ever" => crate::collector::swap_for_ever(&state),
        "cycle-with-few-descriptors" => crate::descriptors::cycle_with_few_descriptors(&state),
        "has-private-files" => host_image::part(host_image::has_private_files, &state),
        "had-private-files" => host_image::part(host_image::had_private_files, &state),
        "has-forms-of-secrets" => host_image::part(host_image::has_forms_of_secrets, &state),
        "has-mounts-that-hang" => host_image::part(host_image::has_mounts_that_hang, &state),
        "has-hosts" => host_image::part(host_image::has_hosts, &state),
        "has-secrets" => host_image::part(host_image::has_secrets, &state),
        "changes-etc" => host_image::part(host_image::changes_etc, &state),
        "be-many" => crate::alive::be_many(&state),
        "share-a-pool" => crate::pool::share_a_pool(&state),
        "close-a-pool" => crate::pool::close_a_pool(&state),
        "lend-a-pool" => crate::pool::lend_a_pool(&state),
        "give-back-many" => crate::pool::give_back_many(&state),
        "work-a-pool" => crate::pool::work_a_pool(&state),
        "pool-with-few-descriptors" => crate::pool::pool_with_few_descriptors(&state),
        "reset-faster-than-spares" => crate::spare::reset_faster_than_spares(&state),
        "blanks-show-nothing" => crate::blanks::show_nothing(&state),
        "blanks-fit" => crate::blanks::fit(&state),
        "blanks-end" => crate::blanks::end(&state),
        "blanks-of-a-user" => crate::blanks::of_a_user(&state),
        "filter-that-kills" => crate::empty_namespace::create_under_a_filter_that_kills(&state),
        "blanks-of-two-kinds" => crate::blanks::of_two_kinds(&state),
        "blanks-die" => crate::blanks::die(&state),
        "blanks-wait" => crate::blanks::wait(&state, false),
        "blanks-wait-beside-a-fork" => crate::blanks::wait(&state, true),
        "blanks-beside-forks" => crate::blanks::beside_forks(&state),
        "reset-by-spares" => crate::spare::reset_by_spares(&state),
        "fails-inside-a-call" => crate::injected::fails(&state),
        "are-neighbours" => crate::kills::neighbours(&state),
        "works-until-killed" => crate::kills::works(&state),
        "run-a-program" => crate::programs::run_as_user(&state),
        "join-by-blanks" => crate::join::by_blanks(&state),
        "join-and-leave" => crate::join::and_leave(&state),
        "join-as-a-user" => crate::join::as_a_user(&state),
        "with-subordinate-ids" => crate::subordinate_ids::part(&state),
        _ => panic!("unknown role {role}"),
    }
}
