//! Sandboxes of an ordinary user begin in an empty mount namespace, too, with what the user sees at
//! that moment; where that can't be had, they begin as the first one does.

use std::cell::RefCell;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{
    Access, Capabilities, Capability, Config, Error, Image, Mount, Sandbox, Seccomp, Sysfs, Upper,
};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

use crate::empty_namespace::{filter, warm_up};
use crate::forks::{finish, fork};
use crate::harness::{Home, NOBODY, Need, alone, needs, shell, within};

/// Has root become an ordinary user, whose state directory is in `home`. One that is stays it.
pub(crate) fn become_ordinary(home: &Home) {
    if nix::unistd::geteuid().is_root() {
        give_to_nobody(home);
        become_nobody();
    }
}

/// Gives the state directory to whom [`become_nobody`] makes of a process.
pub(crate) fn give_to_nobody(home: &Home) {
    chown(home.path(""), Some(NOBODY), Some(NOBODY)).unwrap();
}

pub(crate) fn become_nobody() {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[]).unwrap();
    setresgid(gid, gid, gid).unwrap();
    setresuid(uid, uid, uid).unwrap();
    // As after an exec.
    prctl::set_dumpable(true).unwrap();
}

/// Where a sandbox began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Empty,
    AsCaller,
}

/// Makes sure where a sandbox began: its user namespace is the child of another than the caller's
/// where that was the empty namespace. Of root's sandboxes that is not to be seen.
#[track_caller]
pub(crate) fn assert_begins(expected: Where, sandbox: &Sandbox) {
    if nix::unistd::geteuid().is_root() {
        return;
    }
    // The files of init are no one's.
    let mut sleep = sandbox.command("sleep");
    let _sleep = sleep.arg("1000").kill_on_drop(true).spawn().unwrap();
    let init = sandbox.init_pid();
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let job = children.split_whitespace().last().unwrap();
    let namespace = fs::File::open(format!("/proc/{job}/ns/user")).unwrap();
    let parent = fs::File::from(parent_of(&namespace));
    let found = match parent.metadata().unwrap().ino() == own_user_namespace() {
        true => Where::AsCaller,
        false => Where::Empty,
    };
    assert_eq!(found, expected);
}

fn own_user_namespace() -> u64 {
    fs::metadata("/proc/self/ns/user").unwrap().ino()
}

/// The namespace that another was made in (`ioctl_nsfs(2)`).
#[expect(unsafe_code, reason = "nix has no such call")]
fn parent_of(namespace: &fs::File) -> OwnedFd {
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    // SAFETY: a descriptor, and no pointer.
    let parent = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
    assert!(parent >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel made it, for us.
    unsafe { OwnedFd::from_raw_fd(parent) }
}

/// Has an ordinary user do something in a process of its own.
fn as_ordinary(home: &Home, does: impl FnOnce()) {
    finish(fork(|| {
        become_ordinary(home);
        does();
    }));
}

fn sandbox(home: &Home, more: Config) -> Sandbox {
    Sandbox::create(Config { state_directory: Some(home.state()), ..more }).unwrap()
}

fn with_volume(home: &Home, volume: &Path) -> Sandbox {
    let mounts = vec![Mount::volume(volume, "/data", Access::ReadWrite)];
    sandbox(home, Config { mounts, ..Config::default() })
}

#[test]
fn all_that_a_root_is_made_of_is_there() {
    if !needs(&[Need::Sysfs]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        let [volume, image] = ["volume", "image"].map(|name| home.path(name));
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "of the volume").unwrap();
        fs::create_dir_all(image.join("usr")).unwrap();
        let usual = || {
            let mounts = vec![
                Mount::volume(&volume, "/data", Access::ReadOnly),
                Mount::volume(&volume, "/copied", Access::CopyOnWrite),
                Mount::volume(volume.join("file"), "/some/file", Access::ReadWrite),
                Mount::Device { source: "/dev/zero".into(), target: "/dev/other".into() },
                Mount::tmpfs("/scratch", 1 << 20),
            ];
            Config { mounts, sysfs: Sysfs::Always, ..Config::default() }
        };
        let in_memory = || Config { upper: Upper::Memory { size: 64 << 20 }, ..usual() };
        let of_directory = || {
            let usr = Mount::volume("/usr", "/usr", Access::ReadOnly);
            let links = ["bin", "lib", "lib64", "sbin"];
            for name in links.iter().filter(|name| fs::symlink_metadata(image.join(name)).is_err())
            {
                symlink(format!("usr/{name}"), image.join(name)).unwrap();
            }
            let mounts = [usual().mounts, vec![usr]].concat();
            Config { image: Image::directory(&image), mounts, ..usual() }
        };
        let look = |sandbox: &Sandbox| {
            let script = "cat /data/file /copied/file /some/file; head -c 3 /dev/other | od -c
                echo more > /some/file; echo more > /copied/file; echo more > /data/file
                cat /data/file /copied/file; touch /scratch/file /root/file; ls /sys/class/net
                echo x > /dev/full; ls -l --time-style=+ /dev | sed -E 's/^([^ ]+) +[0-9]+ /\\1 /'
                sed -E 's/^[0-9]+ [0-9]+ [0-9]+:[0-9]+ //' /proc/self/mountinfo | sort 2>&1";
            fs::write(volume.join("file"), "of the volume").unwrap();
            shell(sandbox, format!("exec 2>&1; {script}"))
        };
        for config in [&usual as &dyn Fn() -> Config, &in_memory, &of_directory] {
            let first = sandbox(&home, config());
            let of_first = look(&first);
            assert!(of_first.contains("of the volume") && of_first.contains("lo\n"), "{of_first}");
            for _ in 0..2 {
                let other = sandbox(&home, config());
                assert_begins(Where::Empty, &other);
                assert_eq!(look(&other), of_first);
                other.reset().unwrap();
                assert_begins(Where::Empty, &other);
                assert_eq!(look(&other), of_first);
            }
        }
    });
}

/// Has an ordinary user do something in a mount namespace in which root does what the user asks for
/// by a name.
fn beside_root(
    home: &Home,
    propagation: MsFlags,
    root: impl Fn(&str),
    user: impl FnOnce(&dyn Fn(&'static str)),
) {
    finish(fork(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        for propagation in [MsFlags::MS_PRIVATE, propagation] {
            mount(none, "/", none, MsFlags::MS_REC | propagation, none).unwrap();
        }
        root("begin");
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let user = fork(|| {
            become_ordinary(home);
            user(&|step| {
                assert!(step.len() < 16);
                (&theirs).write_all(format!("{step:15}\n").as_bytes()).unwrap();
                (&theirs).read_exact(&mut [0]).unwrap();
            });
        });
        drop(theirs);
        let mut step = [0; 16];
        while ours.read_exact(&mut step).is_ok() {
            root(std::str::from_utf8(&step).unwrap().trim_end());
            ours.write_all(b"x").unwrap();
        }
        finish(user);
    }));
}

#[test]
fn what_is_mounted_later_is_seen_and_what_is_unmounted_is_not() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let volume = home.path("volume");
    fs::create_dir(&volume).unwrap();
    let inner = volume.join("in");
    let none = None::<&str>;
    let tmpfs = |place: &Path, content: &str| {
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).unwrap();
        fs::write(place.join("file"), content).unwrap();
    };
    let root = |step: &str| match step {
        "begin" => {
            tmpfs(&volume, "first");
            fs::create_dir(&inner).unwrap();
        }
        "mount in it" => tmpfs(&inner, "inner"),
        "read-only" => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(none, &volume, none, flags, none).unwrap();
        }
        "unmount in it" => umount2(&inner, MntFlags::empty()).unwrap(),
        "mount on it" => tmpfs(&volume, "second"),
        "unmount it" => umount2(&volume, MntFlags::empty()).unwrap(),
        other => panic!("{other}"),
    };
    for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        beside_root(&home, propagation, root, |ask| {
            warm_up(&home);
            let with_volume = || {
                let made = with_volume(&home, &volume);
                assert_begins(Where::Empty, &made);
                made
            };
            let before = with_volume();
            assert_eq!(shell(&before, "cat /data/file"), "first");
            ask("mount in it");
            let now = with_volume();
            assert_eq!(shell(&now, "cat /data/in/file; echo > /data/written"), "inner");
            // Nothing of the host's is mounted in one that was there before.
            assert_eq!(shell(&before, "ls /data/in"), "");
            ask("read-only");
            let now = with_volume();
            assert!(!now.shell("echo > /data/written").status().unwrap().success());
            assert_eq!(shell(&now, "cat /data/file /data/in/file"), "firstinner");
            ask("unmount in it");
            assert_eq!(shell(&with_volume(), "ls /data/in"), "");
            ask("mount on it");
            assert_eq!(shell(&with_volume(), "cat /data/file"), "second");
            // What lies on another's source by now is not that.
            assert!(before.reset().is_err());
            ask("unmount it");
            before.reset().unwrap();
            assert_eq!(shell(&before, "cat /data/file"), "first");
            assert_eq!(shell(&with_volume(), "cat /data/file"), "first");
        });
    }
}

/// A file system whose server says that it is there, and answers no more.
struct Silent(fs::File);

impl Silent {
    fn on(place: &Path) -> Self {
        let mut server = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options =
            format!("fd={},rootmode=40000,user_id={NOBODY},group_id={NOBODY}", server.as_raw_fd());
        mount(Some("fuse"), place, Some("fuse"), MsFlags::empty(), Some(&*options)).unwrap();
        let mut request = [0; 1 << 16];
        assert!(server.read(&mut request).unwrap() >= 40);
        // `fuse_out_header` and `fuse_init_out` of linux/fuse.h.
        let mut answer = [0; 16 + 64];
        answer[0] = 80;
        answer[8..16].copy_from_slice(&request[8..16]);
        answer[16..24].copy_from_slice(&[7, 0, 0, 0, 31, 0, 0, 0]);
        answer[37] = 0x10;
        server.write_all(&answer).unwrap();
        Self(server)
    }

    /// Waits until someone waits for an answer. The question is not taken: who waits for the answer
    /// to one that was can't even be killed.
    fn until_asked(&self) {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::NONE), Ok(1));
    }
}

#[test]
fn what_does_not_answer_holds_up_what_is_made_of_it_alone_and_not_for_ever() {
    if !needs(&[Need::Root, Need::Fuse]) {
        return;
    }
    let home = Home::new();
    let place = home.path("place");
    let volume = place.join("volume");
    fs::create_dir_all(&volume).unwrap();
    let server = RefCell::new(None);
    let root = |step: &str| match step {
        "begin" => {}
        "be silent" => *server.borrow_mut() = Some(Silent::on(&place)),
        "until asked" => server.borrow().as_ref().unwrap().until_asked(),
        other => panic!("{other}"),
    };
    beside_root(&home, MsFlags::MS_PRIVATE, root, |ask| {
        warm_up(&home);
        let kept = with_volume(&home, &volume);
        ask("be silent");
        std::thread::scope(|scope| {
            let reset = scope.spawn(|| kept.reset());
            ask("until asked");
            // Another is made meanwhile.
            let (sender, made) = std::sync::mpsc::channel();
            let home = &home;
            scope.spawn(move || {
                assert_begins(Where::Empty, &home.sandbox());
                sender.send(()).unwrap();
            });
            if made.recv_timeout(Duration::from_secs(20)).is_err() || reset.is_finished() {
                std::process::exit(3);
            }
            if !within(Duration::from_secs(60), || reset.is_finished()) {
                std::process::exit(4);
            }
            let refused = reset.join().unwrap();
            assert!(matches!(refused, Err(Error::TimedOut { .. })), "{refused:?}");
        });
        assert_eq!(shell(&kept, "echo alive"), "alive\n");
    });
}

#[test]
fn what_a_source_forbids_and_hides_stays_so() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let volume = home.path("volume");
    let inner = volume.join("in");
    fs::create_dir(&volume).unwrap();
    let tmpfs = |place: &Path, flags| {
        mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("mode=1777")).unwrap();
    };
    let root = |step: &str| {
        assert_eq!(step, "begin");
        tmpfs(&volume, MsFlags::MS_NOEXEC);
        fs::copy("/bin/true", volume.join("true")).unwrap();
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("hidden"), "").unwrap();
        tmpfs(&inner, MsFlags::empty());
        fs::write(inner.join("seen"), "").unwrap();
        let none = None::<&str>;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, &inner, none, flags, none).unwrap();
    };
    for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        beside_root(&home, propagation, root, |_| {
            warm_up(&home);
            let sandbox = sandbox(
                &home,
                Config {
                    mounts: vec![Mount::volume(&volume, "/data", Access::ReadWrite)],
                    seccomp: Seccomp::Unconfined,
                    capabilities: Capabilities::default().with(Capability::SysAdmin),
                    ..Config::default()
                },
            );
            assert_begins(Where::Empty, &sandbox);
            let script =
                "mkdir /new /other; touch /data/written && ! /data/true 2>/dev/null || exit 2
                [ -e /data/in/seen ] && ! touch /data/in/written 2>/dev/null || exit 3
                { mount -o remount,bind,exec /data; mount -o remount,bind,rw /data/in
                  umount /data/in; umount -l /data/in; mount --bind /data /new
                  mount --move /data/in /other; } 2>/dev/null
                /data/true 2>/dev/null && exit 4
                touch /data/in/written 2>/dev/null && exit 5
                [ -e /data/in/hidden ] || [ -e /new/in/hidden ] && exit 6
                # The control: what the guest has mounted itself.
                set -e; mkdir /data/own; touch /data/own/below; mount -t tmpfs -o noexec t /data/own
                cp /bin/true /data/own; ! /data/own/true 2>/dev/null
                mount -o remount,bind,exec /data/own; /data/own/true
                umount /data/own; [ -e /data/own/below ]; rm -r /data/own /data/written";
            for script in [script.to_owned(), format!("unshare -Urm sh -c '{script}'")] {
                let output = sandbox.shell(&script).output().unwrap();
                assert_eq!(output.status.code(), Some(0), "{output:?}");
                sandbox.reset().unwrap();
            }
        });
    }
}

#[test]
fn what_is_put_in_the_place_of_a_volume_is_not_followed() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        let [volume, moved, secret] = ["volume", "moved", "secret"].map(|name| home.path(name));
        for (place, content) in [(&volume, "ours"), (&secret, "secret")] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("file"), content).unwrap();
        }
        warm_up(&home);
        let kept = with_volume(&home, &volume);
        fs::rename(&volume, &moved).unwrap();
        for put in [&|| symlink(&secret, &volume).unwrap() as _, &|| {
            fs::remove_file(&volume).unwrap();
            fs::rename(&secret, &volume).unwrap();
        }] as [&dyn Fn(); 2]
        {
            put();
            kept.reset().unwrap();
            assert_begins(Where::Empty, &kept);
            assert_eq!(shell(&kept, "cat /data/file"), "ours");
        }
        // What is not to be found by any path is not had.
        fs::remove_dir_all(&moved).unwrap();
        assert!(kept.reset().is_err());
        // The control: who asks for what is there now gets it.
        assert_eq!(shell(&with_volume(&home, &volume), "cat /data/file"), "secret");
    });
}

#[test]
fn what_a_user_namespace_takes_from_its_maker_is_that_of_the_moment() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        warm_up(&home);
        assert_begins(Where::Empty, &home.sandbox());
        for limit in [
            Resource::RLIMIT_MEMLOCK,
            Resource::RLIMIT_MSGQUEUE,
            Resource::RLIMIT_NPROC,
            Resource::RLIMIT_SIGPENDING,
        ] {
            let (soft, hard) = getrlimit(limit).unwrap();
            setrlimit(limit, soft.min(1 << 30) - 1, hard).unwrap();
            assert_begins(Where::AsCaller, &home.sandbox());
            setrlimit(limit, soft, hard).unwrap();
        }
        assert_begins(Where::Empty, &home.sandbox());
        assert!(prctl::get_dumpable().unwrap());
    });
}

#[test]
fn threads_and_forks_have_what_the_process_has() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        warm_up(&home);
        let from_threads = || {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..2 {
                            assert_begins(Where::Empty, &home.sandbox());
                        }
                    });
                }
            });
            assert!(prctl::get_dumpable().unwrap());
        };
        from_threads();
        // It makes its own, for its second one.
        finish(fork(|| {
            assert_begins(Where::AsCaller, &home.sandbox());
            from_threads();
        }));
        assert_begins(Where::Empty, &home.sandbox());
    });
}

#[test]
fn a_caller_with_many_descriptors_has_what_others_have() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        let volume = home.path("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "content").unwrap();
        warm_up(&home);
        let many: Vec<_> = (0..600).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        for _ in 0..3 {
            let sandbox = with_volume(&home, &volume);
            assert_begins(Where::Empty, &sandbox);
            assert_eq!(shell(&sandbox, "cat /data/file"), "content");
        }
        // And where it can't enter those.
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        setrlimit(Resource::RLIMIT_MEMLOCK, soft.min(1 << 30) - 1, hard).unwrap();
        assert_begins(Where::AsCaller, &with_volume(&home, &volume));
        drop(many);
    });
}

#[test]
fn where_what_it_needs_can_not_be_cloned_init_begins_once_more() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        prctl::set_no_new_privs().unwrap();
        // A call that init makes for volumes alone is told EPERM.
        filter(libc::SYS_mount_setattr, libc::SECCOMP_RET_ERRNO | 1);
        warm_up(&home);
        let sandbox = home.sandbox();
        for _ in 0..3 {
            assert_begins(Where::AsCaller, &sandbox);
            assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
            sandbox.reset().unwrap();
            // Nothing is left of the first.
            let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
            let children: String = threads
                .map(|thread| fs::read_to_string(thread.path().join("children")).unwrap())
                .collect();
            assert_eq!(children.split_whitespace().count(), 1, "{children}");
        }
    });
}

#[test]
fn where_namespaces_are_few_none_is_made_beside_those_of_sandboxes() {
    if needs(&[Need::Root]) {
        ["user", "pid", "net"].into_iter().for_each(few_of);
    }
}

/// The test of one kind.
fn few_of(kind: &str) {
    let home = Home::new();
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let user = fork(|| {
        unshare(CloneFlags::CLONE_NEWUSER).unwrap();
        theirs.write_all(b"x").unwrap();
        theirs.read_exact(&mut [0]).unwrap();
        fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), "2").unwrap();
        become_ordinary(&home);
        let both = [home.sandbox(), home.sandbox()];
        both.iter().for_each(|sandbox| assert_begins(Where::AsCaller, sandbox));
        // The control.
        assert!(Sandbox::create(home.config()).is_err());
        both.into_iter().for_each(|sandbox| sandbox.delete().unwrap());
        // The kernel counts a namespace for a moment more.
        assert!(within(Duration::from_secs(5), || Sandbox::create(home.config()).is_ok()));
    });
    ours.read_exact(&mut [0]).unwrap();
    for name in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{user}/{name}"), "0 0 65536").unwrap();
    }
    ours.write_all(b"x").unwrap();
    finish(user);
}

/// That of this process and of all its children that have ended.
fn processor_time() -> Duration {
    let of = |who| {
        let usage = getrusage(who).unwrap();
        [usage.user_time(), usage.system_time()]
    };
    let all = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(of);
    let micros = all.as_flattened().iter().map(TimeVal::num_microseconds).sum::<i64>();
    Duration::from_micros(micros.unsigned_abs())
}

#[test]
fn mounts_of_the_machine_cost_an_ordinary_user_nothing() {
    const MOUNTS: usize = 4000;
    if !needs(&[Need::Root]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let (place, none) = (home.path("many"), None::<&str>);
    fs::create_dir(&place).unwrap();
    let root = |step: &str| {
        if step == "mount" {
            // Not on the image's own mount: of that the kernel looks at each child at a clone.
            mount(none, &place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            for number in 0..MOUNTS {
                let inner = place.join(number.to_string());
                fs::create_dir(&inner).unwrap();
                mount(Some(&inner), &inner, none, MsFlags::MS_BIND, none).unwrap();
            }
        }
    };
    beside_root(&home, MsFlags::MS_PRIVATE, root, |ask| {
        warm_up(&home);
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        // The processor time of host and init, from the create to the end: the least of many.
        let measure = || {
            let mut least = [Duration::MAX; 2];
            for _ in 0..60 {
                // Under another limit it begins as the caller is.
                for (least, limit) in least.iter_mut().zip([soft, soft.min(1 << 30) - 1]) {
                    setrlimit(Resource::RLIMIT_MEMLOCK, limit, hard).unwrap();
                    let begin = processor_time();
                    home.sandbox().delete().unwrap();
                    *least = (processor_time() - begin).min(*least);
                }
            }
            least
        };
        let [quiet, _] = measure();
        ask("mount");
        let [empty, as_caller] = measure();
        let [more, as_caller] = [empty, as_caller].map(|time| time.saturating_sub(quiet));
        assert!(more * 2 < as_caller, "{more:?} more than {quiet:?}, as the caller {as_caller:?}");
        // The control.
        assert!(as_caller > quiet / 2, "{as_caller:?} more than {quiet:?}");
    });
}

#[test]
fn what_helps_to_create_may_be_killed_at_any_moment() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        warm_up(&home);
        let creator = std::process::id();
        let own_children = move || {
            let threads = fs::read_dir(format!("/proc/{creator}/task")).into_iter().flatten();
            let children =
                |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children"));
            let all: String = threads.flatten().flat_map(children).collect();
            all.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        };
        let killer = fork(|| {
            let own = std::process::id().cast_signed();
            while std::os::unix::process::parent_id() == creator {
                for pid in own_children().into_iter().filter(|pid| *pid != own) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        });
        let mut failed = 0;
        while failed < 200 {
            failed += usize::from(Sandbox::create(home.config()).is_err());
        }
        kill(killer, Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(killer, None).unwrap();
        assert_begins(Where::Empty, &home.sandbox());
    });
}

#[test]
fn signals_are_no_reason_to_begin_elsewhere() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    as_ordinary(&home, || {
        warm_up(&home);
        signal_often();
        for _ in 0..200 {
            assert_begins(Where::Empty, &home.sandbox());
        }
    });
}

/// Has signals come, which do nothing, as to a program that a profiler looks at.
#[expect(unsafe_code, reason = "what a caller may do")]
fn signal_often() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nix::sys::signal::SigHandler::Handler(nothing);
    let often = libc::timeval { tv_sec: 0, tv_usec: 30 };
    let timer = libc::itimerval { it_interval: often, it_value: often };
    // SAFETY: a handler that does nothing, and a struct itimerval.
    unsafe {
        nix::sys::signal::signal(Signal::SIGALRM, handler).unwrap();
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
}
