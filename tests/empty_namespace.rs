//! All sandboxes of a process but the first begin in an empty mount namespace: they are the same as
//! that first one, and what is below their roots can't be reached.

use std::fs;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{Access, Capabilities, Capability, Config, Error, Mount, Sandbox, Seccomp};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal};
use nix::sys::wait::WaitStatus;

use crate::forks::{finish, fork};
use crate::harness::{Home, Need, needs, shell, within};
use crate::helper::Helper;
use crate::own_namespaces::{Where, assert_begins, become_ordinary};

/// Has something done by this user, and by an ordinary one where this is root: each in a process of
/// its own, with a state directory of its own.
fn as_each_user(does: fn(&Home)) {
    let home = Home::new();
    finish(fork(|| does(&home)));
    if nix::unistd::geteuid().is_root() {
        let home = Home::new();
        finish(fork(|| {
            become_ordinary(&home);
            does(&home);
        }));
    }
}

/// Makes what the first sandbox of a process does not have.
pub(crate) fn warm_up(home: &Home) {
    for _ in 0..2 {
        home.sandbox().delete().unwrap();
    }
}

/// How many mount namespaces this process has open.
fn namespaces() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let is_one = |path: &Path| path.to_string_lossy().starts_with("mnt:[");
    links.filter(|entry| fs::read_link(entry.path()).is_ok_and(|link| is_one(&link))).count()
}

/// All that tells a root file system and a process apart from others, but for numbers.
const LOOK: &str = r#"
cut -d' ' -f3-  /proc/self/mountinfo | sed -E 's/^[0-9]+:[0-9]+ //; s/0:[0-9]+//; s/[ug]id=[0-9]+//g' | sort
ls -la --time-style=+ / /dev /proc/sys /dev/pts | sed -E 's/^([^ ]+) +[0-9]+ /\1 /' | grep -v '^total'
stat -c '%n %a %u %g %t %T' /dev/* / /.. /proc /proc/sys
for file in cmdline keys interrupts; do echo $file $(wc -c < /proc/$file); done
ls /proc/fs /proc/bus /proc/irq /proc/acpi 2>&1
ls -l /proc/self/fd | sed 's/.* \([0-9]* ->\)/\1/; s/[0-9]*\]/]/; s,/proc/[0-9]*,/proc/N,'
cat /proc/1/mounts | wc -l
grep -E '^(Cap|Sec|NoNew|Sig|Umask)' /proc/self/status
cat /proc/self/coredump_filter /proc/self/oom_score_adj /proc/self/limits
readlink /proc/self/root /proc/self/cwd
"#;

#[track_caller]
fn same(one: &str, other: &str) {
    let differ: Vec<_> =
        one.lines().zip(other.lines()).filter(|(one, other)| one != other).collect();
    assert!(differ.is_empty() && one.len() == other.len(), "{differ:#?}");
}

#[test]
fn the_first_sandbox_and_the_others_are_the_same() {
    if needs(&[]) {
        as_each_user(all_are_the_same);
    }
}

fn all_are_the_same(home: &Home) {
    let first = home.sandbox();
    assert_begins(Where::AsCaller, &first);
    let others = [home.sandbox(), home.sandbox()];
    let of_first = shell(&first, LOOK);
    assert!(of_first.contains("/dev/mqueue"), "{of_first}");
    for other in &others {
        assert_begins(Where::Empty, other);
        same(&shell(other, LOOK), &of_first);
        other.reset().unwrap();
        same(&shell(other, LOOK), &of_first);
    }
    first.reset().unwrap();
    same(&shell(&first, LOOK), &of_first);
}

#[test]
fn a_process_has_one_from_its_second_sandbox_on() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = || home.sandbox().delete().unwrap();
    // A fork, whose descriptors are its own, and which has none of its parent's.
    let has_one_more = |more: &dyn Fn()| {
        finish(fork(|| {
            let before = namespaces();
            let comes_to = |count| {
                let is_so = within(Duration::from_secs(5), || {
                    adl_runtime::finish_removals();
                    namespaces() == before + count
                });
                assert!(is_so, "{} after {before}, not {count} more", namespaces());
            };
            sandbox();
            comes_to(0);
            for _ in 0..3 {
                sandbox();
                comes_to(1);
            }
            more();
        }));
    };
    has_one_more(&|| has_one_more(&|| ()));
}

#[test]
fn no_process_but_init_stays_of_a_create() {
    if needs(&[]) {
        as_each_user(no_process_stays);
    }
}

fn no_process_stays(home: &Home) {
    let children = || {
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        let all = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap());
        all.collect::<String>()
    };
    for handler in [SigHandler::SigDfl, SigHandler::SigIgn] {
        finish(fork(|| {
            ignore_children(handler);
            for _ in 0..3 {
                let sandbox = home.sandbox();
                assert_eq!(children(), format!("{} ", sandbox.init_pid()));
                sandbox.delete().unwrap();
                // Reaped, whatever the caller does with the ends of its children.
                assert_eq!(children(), "");
            }
        }));
    }
}

#[expect(unsafe_code, reason = "what a caller may do")]
fn ignore_children(handler: SigHandler) {
    // SAFETY: no function is installed.
    unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGCHLD, handler) }.unwrap();
}

/// `below` succeeds where what only the empty namespace has can be seen, `whole` where what is
/// covered of a procfs can.
const SEES: &str = r#"
below() { [ -e /scratch ] || [ -e /../scratch ] || [ -e /m0 ] || [ -e /../m0 ]; }
whole() { [ -n "$(cat $1/cmdline)" ]; }
"#;

/// As [`Home::sandbox`], with no filter.
fn unconfined(home: &Home, more: &[Capability]) -> Sandbox {
    let capabilities = more.iter().fold(Capabilities::default(), |all, one| all.with(*one));
    let config = Config { seccomp: Seccomp::Unconfined, capabilities, ..home.config() };
    Sandbox::create(config).unwrap()
}

#[test]
fn a_user_namespace_inside_gets_no_whole_proc_and_no_sysfs() {
    if needs(&[Need::Program("unshare")]) {
        as_each_user(nested_gets_no_whole);
    }
}

fn nested_gets_no_whole(home: &Home) {
    warm_up(home);
    let sandbox = unconfined(home, &[]);
    assert_begins(Where::Empty, &sandbox);
    let nested = "unshare --user --map-root-user --mount --pid --net --fork sh -c";
    for kind in ["proc", "sysfs"] {
        let script = format!("{nested} 'mkdir -p /tmp/new; mount -t {kind} {kind} /tmp/new'");
        let output = sandbox.shell(&script).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains("denied"), "{kind}: {stderr}");
        // Control: what needs no whole one.
        shell(&sandbox, format!("{nested} 'mkdir -p /tmp/new; mount -t tmpfs t /tmp/new'"));
    }
    // Control: who may take the covers away may mount one, and sees all of it.
    let weak = unconfined(home, &[Capability::SysAdmin]);
    let script = format!("{SEES}mkdir /tmp/new; mount -t proc proc /tmp/new; whole /tmp/new");
    shell(&weak, script);
}

#[test]
fn nothing_below_the_root_is_reached() {
    let programs = ["unshare", "nsenter", "pivot_root", "python3"].map(Need::Program);
    if needs(&programs) {
        as_each_user(nothing_below_is_reached);
    }
}

fn nothing_below_is_reached(home: &Home) {
    warm_up(home);
    let sandbox = unconfined(home, &[]);
    assert_begins(Where::Empty, &sandbox);
    let nested = |script: &str| {
        format!("unshare --user --map-root-user --mount sh -c '{}'", script.replace('\'', "'\\''"))
    };
    let python = r#"import ctypes, os, sys
call = ctypes.CDLL(None).syscall
own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
for path in b"/", b"/.", b"/..":
    call(166, path, 2)
    call(308, own, 0x20000)
sys.exit(9 if os.path.exists("/scratch") else 0)"#;
    let enters_again = format!("python3 -c '{python}'; [ $? = 9 ] && exit 9");
    let attacks = [
        &*enters_again,
        "umount -l /",
        "umount -l / ; umount -l /; umount -R /",
        "nsenter --mount=/proc/self/ns/mnt sh -c 'ls /' > /tmp/list; grep -q scratch /tmp/list && exit 9",
        "mount --bind / /mnt && cd /mnt && pivot_root . mnt && umount -l /mnt; cd /; umount -l /",
        "mount --bind / /mnt && cd /mnt && pivot_root . . && umount -l . ; cd /; umount -l .",
        "mkdir -p /tmp/d; chroot /tmp/d true; cd /../../../..; ls . | grep -q scratch && exit 9",
        "mount --move / /mnt; umount -l /proc /sys",
        "mount -o remount,rw /; mount --make-rshared /; umount -l /",
    ];
    for attack in attacks {
        let looks = format!("{SEES}{{ {attack}; }} 2>/dev/null\nbelow && exit 9\nexit 0");
        // With the rights to do so, a job may take its own sandbox apart.
        let with_rights = unconfined(home, &[Capability::SysAdmin]);
        for (sandbox, script) in [
            (&sandbox, looks.clone()),
            (&sandbox, nested(&looks)),
            (&with_rights, nested(&looks)),
            (&with_rights, looks),
        ] {
            let status = sandbox.shell(&script).status().unwrap();
            assert_ne!(status.code(), Some(9), "{script}");
        }
    }
    // Control: what is looked for is seen where it is.
    assert_eq!(
        sandbox.shell(format!("{SEES}mkdir /scratch && below && exit 9")).status().unwrap().code(),
        Some(9)
    );
}

/// Lists what the kernel tells of mounts that can be seen, and of those with lower numbers.
const STATMOUNT: &str = r#"
import ctypes, struct, sys
call = ctypes.CDLL(None, use_errno=True).syscall
ids = (ctypes.c_uint64 * 256)()
count = call(458, struct.pack('IIQQ', 24, 0, 2**64 - 1, 0), ids, 256, 0)
if count < 0: sys.exit(f'listmount: {ctypes.get_errno()}')
low = min(ids[:count])
for number in [*range(low - 200, low), *ids[:count]]:
    told = ctypes.create_string_buffer(4096)
    # The kind of file system, what of it is mounted, and where.
    if call(457, struct.pack('IIQQ', 24, 0, number, 0x3b), told, 4096, 0) == 0:
        print('hidden' if number < low else 'seen', told.raw[512:].replace(b'\0', b' ').strip())
"#;

#[test]
fn no_call_tells_where_what_lies_below_the_root_comes_from() {
    if needs(&[Need::Program("unshare"), Need::Program("python3")]) {
        as_each_user(no_call_tells);
    }
}

fn no_call_tells(home: &Home) {
    warm_up(home);
    let script = "unshare --user --map-root-user --mount python3 -c \"$0\"";
    let look = |sandbox: &Sandbox| sandbox.shell(script).arg(STATMOUNT).output().unwrap();
    let sandbox = unconfined(home, &[]);
    assert_begins(Where::Empty, &sandbox);
    let output = look(&sandbox);
    let stderr = String::from_utf8(output.stderr).unwrap();
    if stderr.starts_with("listmount: 38") {
        // A kernel before 6.8, which tells no one.
        return;
    }
    let told = String::from_utf8(output.stdout).unwrap();
    // Control.
    assert!(
        told.lines().any(|line| line.starts_with("seen") && line.contains("overlay")),
        "{told}{stderr}"
    );
    let state = home.state();
    assert!(!told.contains(state.to_str().unwrap()), "{told}");
    // Behind the filter there is neither.
    let filtered = home.sandbox();
    let output = look(&filtered);
    assert!(!output.status.success(), "{output:?}");
    let direct = filtered.command("python3").args(["-c", STATMOUNT]).output().unwrap();
    let refused = String::from_utf8(direct.stderr).unwrap();
    assert!(refused.starts_with("listmount: 38"), "{refused}");
}

#[test]
fn a_caller_who_has_changed_its_own_namespaces_goes_on() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    warm_up(&home);
    let [place, other] = ["place", "other"].map(|name| home.path(name));
    for directory in [&place, &other] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(other.join("file"), "new").unwrap();
    // Its mounts: a volume is what it sees now.
    finish(fork(|| {
        warm_up(&home);
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none).unwrap();
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&other), &place, none, bind, none).unwrap();
        let volume = Mount::volume(&place, "/data", Access::ReadOnly);
        let config = Config { mounts: vec![volume], ..home.config() };
        let sandbox = Sandbox::create(config).unwrap();
        assert_eq!(shell(&sandbox, "cat /data/file"), "new");
    }));
    // Its children are in another PID namespace, which is at its end when its first process is. The
    // kernel makes no sandbox there; what it was made for can go on.
    finish(fork(|| {
        warm_up(&home);
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        let refused = Sandbox::create(home.config());
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
        finish(fork(|| assert_eq!(std::process::id(), 1)));
    }));
}

#[test]
fn a_caller_whom_a_filter_would_end_for_a_call_creates_without_it() {
    if needs(&[Need::Root]) {
        let home = Home::new();
        Helper::start("filter-that-kills", &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn create_under_a_filter_that_kills(state: &Path) {
    let config = || Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let create = || {
        let sandbox = Sandbox::create(config()).unwrap();
        assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    };
    create();
    create();
    // Of few descriptors it has no need of the call.
    let _many: Vec<_> = (0..600).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    create();
    filter(libc::SYS_pidfd_getfd, libc::SECCOMP_RET_KILL_PROCESS);
    // The control: a process that calls it is ended.
    let ended = fork(|| {
        // SAFETY: no number of a descriptor, and no pointer.
        #[expect(unsafe_code, reason = "nothing of ours makes the call here")]
        let _ = unsafe { libc::syscall(libc::SYS_pidfd_getfd, -1, 0, 0) };
    });
    let end = nix::sys::wait::waitpid(ended, None).unwrap();
    assert!(matches!(end, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{end:?}");
    for _ in 0..3 {
        create();
    }
}

/// Installs a filter (`seccomp(2)`) of one call, for this thread and what it starts.
#[expect(unsafe_code, reason = "the library's filters are no caller's")]
pub(crate) fn filter(number: libc::c_long, action: u32) {
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let number = u32::try_from(number).unwrap();
    let mut filter = [
        statement(0x20, 0),
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number },
        statement(0x06, action),
        statement(0x06, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: a program of the length that is said, which the kernel copies.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
