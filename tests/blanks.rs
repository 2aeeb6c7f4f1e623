//! A sandbox made of a blank is as one that is made without, and of blanks nothing is left.
//!
//! A process has blanks for all that it does, so each test has one of its own.

use std::path::Path;
use std::time::Duration;

use adl_runtime::{
    Access, Capabilities, Config, Image, Mount, Network, Sandbox, Upper, blanks_ready, keep_blanks,
    metrics,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pause};

use crate::census::{self, Census, Process};
use crate::forks::{finish, fork};
use crate::harness::{Home, Need, needs, shell, within};
use crate::helper::{AS_A_USER, Helper, say};
use crate::images;
use crate::lifetime::GONE;
use crate::own_namespaces::{Where, assert_begins, give_to_nobody};

/// How long a blank may take to be made.
const READY: Duration = Duration::from_secs(10);

fn config(state: &Path) -> Config {
    Config { state_directory: Some(state.to_owned()), ..Config::default() }
}

/// All that descends from this process.
fn inits() -> Vec<Process> {
    let own = std::process::id().cast_signed();
    census::tree(own).into_iter().filter(|process| process.pid != own).collect()
}

#[track_caller]
fn until_ready(count: usize) {
    assert!(within(READY, || blanks_ready() == count), "{} blanks, not {count}", blanks_ready());
}

/// Creates a sandbox while there are blanks, and says whether it is one of them.
#[track_caller]
fn create(config: Config) -> (Sandbox, bool) {
    let before = inits();
    let sandbox = Sandbox::create(config).unwrap();
    let is_of_blank = before.iter().any(|init| init.pid == sandbox.init_pid());
    (sandbox, is_of_blank)
}

/// The first that is one of them: what is ready before may be for another.
#[track_caller]
fn create_of_blank(config: Config) -> Sandbox {
    let mut made = None;
    let is_of_blank = within(READY, || {
        made = None;
        until_ready(1);
        let (sandbox, is_of_blank) = create(config.clone());
        made = Some(sandbox);
        is_of_blank
    });
    assert!(is_of_blank, "it was made now");
    made.unwrap()
}

#[track_caller]
fn create_without(config: Config) -> Sandbox {
    until_ready(1);
    let (sandbox, is_of_blank) = create(config);
    assert!(!is_of_blank, "the blank was for another");
    sandbox
}

/// Has a helper do something, and one that is an ordinary user's where this is root.
#[track_caller]
fn helper_does(role: &str) {
    if needs(&[]) {
        done_by(role);
    }
    if nix::unistd::geteuid().is_root() {
        done_by(&format!("{AS_A_USER}{role}"));
    }
}

#[track_caller]
fn done_by(role: &str) {
    let home = Home::new();
    if role.starts_with(AS_A_USER) {
        give_to_nobody(&home);
    }
    Helper::start(role, &home.state()).finish();
    if !role.starts_with(AS_A_USER) {
        adl_runtime::collect_garbage(Some(&home.state())).unwrap();
    }
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn what_it_is_made_of_shows_in_nothing() {
    helper_does("blanks-show-nothing");
}

/// All that a program sees of how it runs, but for names and numbers that are another's each time.
const LOOK: &str = "cat /proc/self/limits /proc/self/cgroup; umask
    grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Cpus_allowed|Sig)' /proc/self/status
    cut -d' ' -f 4- /proc/self/mountinfo | sed -E 's/(uid|gid)=[0-9]+//g' | sort
    ls /proc/self/fd /dev /sys; cat /proc/self/oom_score_adj
    cat /proc/sys/net/ipv4/ping_group_range; grep -vE '^(Vm|Rss)|ctxt_switches' /proc/1/status";

pub(crate) fn show_nothing(state: &Path) {
    let look = |sandbox: &Sandbox| shell(sandbox, LOOK);
    // The first one of a process begins in a copy of its mounts and descriptors.
    drop(Sandbox::create(config(state)).unwrap());
    let cold = Sandbox::create(config(state)).unwrap();
    keep_blanks(1);
    drop(Sandbox::create(config(state)).unwrap());
    let warm = create_of_blank(config(state));
    let (cold_shows, warm_shows) = (look(&cold), look(&warm));
    for (cold, warm) in cold_shows.lines().zip(warm_shows.lines()) {
        assert_eq!(cold, warm);
    }
    assert_eq!(cold_shows, warm_shows);
    assert!(cold_shows.lines().count() > 100, "the control: {cold_shows}");
    // It is of this sandbox, and of no other.
    let named = Config { name: Some("kept".into()), ..config(state) };
    let named = create_of_blank(named);
    assert_eq!(shell(&named, "uname -n; hostname"), "kept\nkept\n");
    let ids = [&cold, &warm, &named].map(Sandbox::id_range);
    assert!(ids[0].is_none() || ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
}

#[test]
fn it_is_taken_for_what_it_fits_and_nothing_else() {
    if needs(&[Need::Root]) {
        done_by("blanks-fit");
    }
}

pub(crate) fn fit(state: &Path) {
    let root = state.parent().unwrap().join("root");
    images::small(&root);
    keep_blanks(1);
    drop(Sandbox::create(config(state)).unwrap());
    let upper = Upper::Memory { size: 1 << 20 };
    let image = Image::directory(&root);
    let other = create_of_blank(Config { image, upper, ..config(state) });
    assert_eq!(shell(&other, "[ -e /usr ] || echo > /file; echo /fil*"), "/file\n");

    let host = Config { network: Network::Host, ..config(state) };
    let network = |sandbox: &Sandbox| shell(sandbox, "readlink /proc/self/ns/net");
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let own = format!("{}\n", own.display());
    assert_eq!(network(&create_without(host.clone())), own);
    assert_eq!(network(&create_of_blank(host)), own);
    let none = create_without(config(state));
    assert_ne!(network(&none), own);

    let rights = |sandbox: &Sandbox| shell(sandbox, "grep CapBnd /proc/self/status");
    let few = Config { capabilities: Capabilities::NONE, ..config(state) };
    let few = rights(&create_without(few));
    assert_eq!(few, "CapBnd:\t0000000000000000\n");
    assert_ne!(rights(&create_without(config(state))), few);

    // What is now, and not what was when the blank was made: one that is for such a sandbox.
    drop(create_of_blank(config(state)));
    until_ready(1);
    let (_, hard) = getrlimit(Resource::RLIMIT_SIGPENDING).unwrap();
    let lower = hard - 5;
    setrlimit(Resource::RLIMIT_SIGPENDING, lower, lower).unwrap();
    let pending = |sandbox: &Sandbox| shell(sandbox, "ulimit -Hi");
    assert_eq!(pending(&create_without(config(state))), format!("{lower}\n"));
    assert_eq!(pending(&create_of_blank(config(state))), format!("{lower}\n"));
    until_ready(1);
    refuse_new_code();
    drop(create_without(config(state)));
    drop(create_of_blank(config(state)));
}

/// No memory of this process, nor of what it starts, becomes code any more (Linux 6.3).
#[expect(unsafe_code, reason = "no crate of ours knows the option")]
fn refuse_new_code() {
    const PR_SET_MDWE: nix::libc::c_int = 65;
    let (gain, zero): (nix::libc::c_ulong, nix::libc::c_ulong) = (1, 0);
    // SAFETY: it takes numbers.
    let set = unsafe { nix::libc::prctl(PR_SET_MDWE, gain, zero, zero, zero) };
    // Where the kernel has none, there is nothing to compare, and another limit does for that.
    if set != 0 {
        let (_, hard) = getrlimit(Resource::RLIMIT_MSGQUEUE).unwrap();
        setrlimit(Resource::RLIMIT_MSGQUEUE, hard - 1, hard - 1).unwrap();
    }
}

#[test]
fn an_ordinary_users_fit_where_its_sandboxes_begin_in_an_empty_namespace() {
    if !needs(&[]) {
        return;
    }
    let role = "blanks-of-a-user";
    match nix::unistd::geteuid().is_root() {
        true => done_by(&format!("{AS_A_USER}{role}")),
        false => done_by(role),
    }
}

pub(crate) fn of_a_user(state: &Path) {
    let volume = state.parent().unwrap().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "content").unwrap();
    keep_blanks(1);
    drop(Sandbox::create(config(state)).unwrap());
    let mounts = vec![Mount::volume(&volume, "/data", Access::ReadOnly)];
    let with_volume = create_of_blank(Config { mounts: mounts.clone(), ..config(state) });
    assert_begins(Where::Empty, &with_volume);
    assert_eq!(shell(&with_volume, "cat /data/file"), "content");
    // Its user namespace has the limits of when it was made as ceilings.
    until_ready(1);
    let (soft, hard) = getrlimit(Resource::RLIMIT_SIGPENDING).unwrap();
    setrlimit(Resource::RLIMIT_SIGPENDING, soft - 1, hard).unwrap();
    for _ in 0..3 {
        let (sandbox, is_of_blank) = create(Config { mounts: mounts.clone(), ..config(state) });
        assert!(!is_of_blank);
        assert_begins(Where::AsCaller, &sandbox);
        assert_eq!(shell(&sandbox, "cat /data/file"), "content");
    }
    setrlimit(Resource::RLIMIT_SIGPENDING, soft, hard).unwrap();
    let (sandbox, _) = create(config(state));
    assert_begins(Where::Empty, &sandbox);
    drop(create_of_blank(config(state)));
}

#[test]
fn two_kinds_in_turn_have_one_each() {
    helper_does("blanks-of-two-kinds");
}

pub(crate) fn of_two_kinds(state: &Path) {
    keep_blanks(2);
    let few = Config { capabilities: Capabilities::NONE, ..config(state) };
    // Two of a kind before there is another.
    drop(Sandbox::create(config(state)).unwrap());
    until_ready(2);
    // The first of the other kind finds none, and what is made after it is one of each.
    for (number, kind) in [few.clone(), config(state)].iter().cycle().take(8).enumerate() {
        let (_, is_of_blank) = create(kind.clone());
        assert_eq!(is_of_blank, number > 0, "{number}");
        let made = 3 + number as u64;
        assert!(within(READY, || metrics().blanks.made == made), "{:?}", metrics().blanks);
        until_ready(2);
    }
    assert_eq!(metrics().blanks.taken, 7);
}

#[test]
fn nothing_is_left_of_them() {
    helper_does("blanks-end");
}

pub(crate) fn end(state: &Path) {
    let take = || {
        adl_runtime::finish_removals();
        Census::take(state, "adl-blanks-")
    };
    let live = |most| {
        keep_blanks(most);
        drop(Sandbox::create(config(state)).unwrap());
        until_ready(most);
        assert_eq!(inits().len(), most);
        keep_blanks(0);
        assert_eq!((inits(), blanks_ready()), (vec![], 0));
    };
    live(1);
    let before = take();
    for most in [1, 3, 2] {
        live(most);
    }
    assert_eq!(take().difference(&before), [""; 0]);

    // As many as are kept, and fewer at once when that is said.
    keep_blanks(3);
    drop(Sandbox::create(config(state)).unwrap());
    let mut taken = metrics().blanks.taken;
    for _ in 0..3 {
        until_ready(3);
        assert_eq!(metrics().blanks.ready, 3);
        let three: Vec<_> = (0..3).map(|_| create(config(state))).collect();
        assert!(three.iter().all(|(_, is_of_blank)| *is_of_blank));
        let now = metrics().blanks;
        assert_eq!(now.taken, taken + 3);
        taken = now.taken;
    }
    until_ready(3);
    keep_blanks(1);
    assert_eq!((inits().len(), blanks_ready()), (1, 1));
    // Also while one is being made.
    for _ in 0..20 {
        keep_blanks(2);
        drop(Sandbox::create(config(state)).unwrap());
        keep_blanks(0);
        assert_eq!(inits(), []);
    }
    assert_eq!(take().difference(&before), [""; 0]);
}

#[test]
fn one_that_has_died_is_not_taken() {
    helper_does("blanks-die");
}

pub(crate) fn die(state: &Path) {
    keep_blanks(1);
    drop(Sandbox::create(config(state)).unwrap());
    until_ready(1);
    let [blank] = &inits()[..] else { panic!("{:?}", inits()) };
    kill(Pid::from_raw(blank.pid), Signal::SIGKILL).unwrap();
    let is_dead = || census::status(blank.pid, "State").is_none_or(|s| s.starts_with('Z'));
    assert!(within(GONE, is_dead));
    let (sandbox, _) = create(config(state));
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    drop(sandbox);
    assert_eq!(shell(&create_of_blank(config(state)), "echo alive"), "alive\n");
    assert!(!blank.exists(), "it was reaped");
}

#[test]
fn a_caller_that_is_killed_takes_them_with_it_whatever_a_fork_holds() {
    if !needs(&[Need::Root]) {
        return;
    }
    for role in ["blanks-wait", "blanks-wait-beside-a-fork"] {
        let home = Home::new();
        let mut helper = Helper::start(role, &home.state());
        let fork: i32 = helper.next().unwrap().parse().unwrap();
        let members = helper.stop_and_kill();
        assert!(members.len() >= 3, "{members:?}");
        let gone = || members.iter().all(|process| process.pid == fork || !process.exists());
        assert!(within(GONE, gone), "{members:?}");
        if fork != 0 {
            kill(Pid::from_raw(fork), Signal::SIGKILL).unwrap();
            // It holds what was locked until then.
            assert!(within(GONE, || members.iter().all(|process| !process.exists())));
        }
        adl_runtime::collect_garbage(Some(&home.state())).unwrap();
        assert_eq!(home.left(), [""; 0], "{role}");
    }
}

pub(crate) fn wait(state: &Path, has_fork: bool) {
    keep_blanks(2);
    let sandbox = Sandbox::create(config(state)).unwrap();
    until_ready(2);
    let fork = match has_fork {
        true => fork(pause).as_raw(),
        false => 0,
    };
    say(fork);
    pause();
    drop(sandbox);
}

#[test]
fn a_fork_has_none_and_harms_none() {
    helper_does("blanks-beside-forks");
}

pub(crate) fn beside_forks(state: &Path) {
    keep_blanks(1);
    drop(Sandbox::create(config(state)).unwrap());
    until_ready(1);
    finish(fork(|| {
        assert_eq!(blanks_ready(), 0);
        drop(Sandbox::create(config(state)).unwrap());
        keep_blanks(0);
    }));
    assert_eq!(shell(&create_of_blank(config(state)), "echo alive"), "alive\n");
}
