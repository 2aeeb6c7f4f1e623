//! What is inside can neither see nor reach what is outside.
//!
//! Each attempt is made from inside, and beside it stands a control: the same attempt where it
//! must succeed, or its failure would prove nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{
    Capabilities, Capability, Config, Error, Image, Network, Sandbox, Seccomp, Step,
};

use crate::census;
use crate::harness::{Home, Need, adl, needs, shell, succeeds, within};
use crate::images;

/// Whether a script succeeds, as root inside.
fn succeeds_inside(sandbox: &Sandbox, script: &str) -> bool {
    sandbox.shell(script).status().unwrap().success()
}

#[test]
fn ps_shows_init_and_the_job_only() {
    if !needs(&[Need::Program("ps")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let output = sandbox.command("ps").args(["-e", "-o", "pid=,comm="]).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = output.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(names.len(), 2, "{output}");
    assert_eq!(names[0], ["1", "adl-init"]);
    assert_eq!(names[1][1], "ps");
}

#[test]
fn root_inside_is_no_one_outside() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_eq!(shell(&sandbox, "id -u; id -g; id -G"), "0\n0\n0\n");
    let (first, length) = sandbox.id_range().unwrap();
    assert!(first >= 1 << 16 && length == 65_536, "{first} {length}");
    let mut job = sandbox.command("sleep").arg("1000").spawn().unwrap();
    let mut other = sandbox.command("sleep").arg("1000").uid(1000).gid(1001).spawn().unwrap();
    let tree = census::tree(sandbox.init_pid());
    assert_eq!(tree.len(), 3, "{tree:?}");
    let id = |offset: u32| vec![(first + offset).to_string(); 4].join("\t");
    let ids = |p: &census::Process| [p.status("Uid").unwrap(), p.status("Gid").unwrap()];
    assert_eq!(ids(&tree[1]), [id(0), id(0)]);
    assert_eq!(ids(&tree[2]), [id(1000), id(1001)]);
    assert!(!ids(&tree[0])[0].split_whitespace().any(|id| id == "0"), "init is root outside");
    // And another sandbox has other ids.
    let neighbour = home.sandbox();
    assert_ne!(neighbour.id_range().unwrap().0, first);
    job.kill().unwrap();
    other.kill().unwrap();
}

#[test]
fn an_ordinary_user_is_root_inside_and_no_more_outside() {
    if !needs(&[]) || nix::unistd::geteuid().is_root() {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_eq!(sandbox.id_range(), None);
    assert_eq!(shell(&sandbox, "id -u"), "0\n");
    let own = vec![nix::unistd::geteuid().to_string(); 4].join("\t");
    assert_eq!(census::status(sandbox.init_pid(), "Uid"), Some(own));
}

#[test]
fn a_file_made_inside_belongs_to_root_inside() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let listing =
        shell(&sandbox, "umask; touch /tmp/a; chown 7:8 /tmp/a; stat -c %u:%g:%a /tmp/a /usr /tmp");
    assert_eq!(listing, "0022\n7:8:644\n0:0:755\n0:0:1777\n");
    // Where one may write, the owner is one of inside, and no one else may.
    let denied = sandbox.shell("echo > /etc/passwd; echo > /tmp/a").uid(1000).gid(1000).output();
    let stderr = String::from_utf8(denied.unwrap().stderr).unwrap();
    assert_eq!(stderr.matches("Permission denied").count(), 2, "{stderr}");
}

#[test]
fn the_only_network_device_is_loopback_and_it_is_up() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let devices = shell(&sandbox, "cat /proc/net/dev");
    let names: Vec<_> =
        devices.lines().skip(2).map(|l| l.split(':').next().unwrap().trim()).collect();
    assert_eq!(names, ["lo"]);
    assert_eq!(shell(&sandbox, "cat /proc/net/route").lines().count(), 1);
    let talk = "import socket
s = socket.create_server(('127.0.0.1', 0))
c = socket.create_connection(s.getsockname(), timeout=5)
s.accept()[0].sendall(b'over loopback')
print(c.recv(99).decode())";
    let output = sandbox.command("python3").args(["-c", talk]).output().unwrap();
    assert_eq!(output.stdout, b"over loopback\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_port_of_the_host_is_out_of_reach() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}", listener.local_addr().unwrap().port());
    let home = Home::new();
    let output = home.sandbox().shell(&script).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("Connection refused"), "{output:?}");
    // Control.
    let config = Config { network: Network::Host, ..home.config() };
    shell(&Sandbox::create(config).unwrap(), &script);
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("adl-test-{}", std::process::id());
    let _listener =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let connect = format!(
        "import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('reached')"
    );
    let home = Home::new();
    let output = home.sandbox().command("python3").args(["-c", &connect]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("ConnectionRefused"), "{output:?}");
    // Control.
    let config = Config { network: Network::Host, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let output = sandbox.command("python3").args(["-c", &connect]).output().unwrap();
    assert_eq!(output.stdout, b"reached\n", "{output:?}");
}

/// Prints what descriptors it has. One that the shell has open only for the listing is gone when
/// looked at.
const LIST_DESCRIPTORS: &str =
    "for f in /proc/self/fd/*; do if [ -e $f ] || [ -h $f ]; then echo ${f##*/}; fi; done";

#[test]
fn a_job_has_three_descriptors_and_no_more() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_eq!(shell(&sandbox, LIST_DESCRIPTORS), "0\n1\n2\n");
    // Also one that is started beside others, with channels and pipes of theirs.
    let mut sleep = sandbox.command("sleep");
    let mut others: Vec<_> = (0..8)
        .map(|_| sleep.arg("1000").stdout(adl_runtime::Stdio::piped()).spawn().unwrap())
        .collect();
    assert_eq!(shell(&sandbox, LIST_DESCRIPTORS), "0\n1\n2\n");
    // Control: the script sees one more where there is one.
    assert_eq!(shell(&sandbox, format!("exec 7</dev/null; {LIST_DESCRIPTORS}")), "0\n1\n2\n7\n");
    others.iter_mut().for_each(|job| job.kill().unwrap());
}

#[test]
fn what_the_caller_leaves_open_reaches_no_job() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let open_many = "for i in {10..509}; do eval \"exec $i</etc/passwd\"; done; exec \"$@\"";
    let run = |command: &[&str]| {
        let mut many = std::process::Command::new("bash");
        many.args(["-c", open_many, "bash"]).args(command).env("ADL_STATE_DIR", home.state());
        succeeds(many.stdin(std::process::Stdio::null()))
    };
    let adl = adl().to_str().unwrap();
    assert_eq!(run(&[adl, "run", "--", "bash", "-c", LIST_DESCRIPTORS]), "0\n1\n2\n");
    // Control.
    assert_eq!(run(&["bash", "-c", LIST_DESCRIPTORS]).lines().count(), 503);
}

#[test]
fn there_is_nothing_above_the_root() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let stat = shell(&sandbox, "stat -L -c %d:%i / /.. /../../.. /proc/self/root/..");
    let all: Vec<_> = stat.lines().collect();
    assert!(all.iter().all(|stat| *stat == all[0]), "{stat}");
    // chroot's well-known way out ends at the same root.
    let escape = "import os
before = os.stat('/'); os.mkdir('/tmp/jail'); fd = os.open('/', os.O_RDONLY)
os.chroot('/tmp/jail'); os.fchdir(fd)
for i in range(64): os.chdir('..')
os.chroot('.'); after = os.stat('/')
print((before.st_dev, before.st_ino) == (after.st_dev, after.st_ino))";
    let output = sandbox.command("python3").args(["-c", escape]).output().unwrap();
    assert_eq!(output.stdout, b"True\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a sandbox has of the host's `/dev`.
const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

#[test]
fn the_mounts_name_nothing_of_the_host() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    images::small(&image);
    let small = home.sandbox_of(Image::directory(&image));
    for (sandbox, image) in [(&home.sandbox(), None), (&small, Some(&image))] {
        let mounts = shell(sandbox, "cat /proc/self/mountinfo");
        for secret in [Some(&home.state()), image].into_iter().flatten() {
            assert!(!mounts.contains(secret.to_str().unwrap()), "{secret:?} in {mounts}");
        }
        assert!(!mounts.contains("adl-test"), "{mounts}");
        let mut devices = 0;
        for mount in mounts.lines() {
            // id parent device root target options… - type source superblock-options
            let (own, of_superblock) = mount.split_once(" - ").unwrap();
            let own: Vec<_> = own.split(' ').collect();
            let (root, target) = (own[3], own[4]);
            let kind = of_superblock.split(' ').next().unwrap();
            // Nothing spreads, in either direction.
            assert!(!mount.contains(" shared:") && !mount.contains(" master:"), "{mount}");
            match kind {
                "overlay" | "proc" | "devpts" | "mqueue" => {}
                // Ours: /dev, /dev/shm, and what covers parts of /proc.
                "tmpfs" if !DEVICES.contains(&target) => {}
                // The host's /dev may be of any kind; of it, one node.
                _ => {
                    let of_host = DEVICES.iter().find(|device| target == **device);
                    let name = of_host.map(|device| device.trim_start_matches("/dev"));
                    assert!(name.is_some_and(|name| root.ends_with(name)), "{mount}");
                    devices += 1;
                    continue;
                }
            }
            assert!(own[5].split(',').any(|option| option == "nosuid"), "{mount}");
        }
        // With a range of ids, they are the sandbox's own.
        assert_eq!(devices, if sandbox.id_range().is_some() { 0 } else { 6 }, "{mounts}");
    }
}

#[test]
fn dangerous_parts_of_proc_are_covered() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for name in [
        "kcore",
        "keys",
        "locks",
        "timer_list",
        "interrupts",
        "diskstats",
        "partitions",
        "swaps",
        "kmsg",
    ] {
        if Path::new("/proc").join(name).exists() {
            let empty = format!("test ! -s /proc/{name} && ! (head -c1 /proc/{name} | grep -q .)");
            assert!(succeeds_inside(&sandbox, &empty), "{name}");
        }
    }
    for name in ["bus", "fs", "irq", "pressure"] {
        if Path::new("/proc").join(name).exists() {
            assert_eq!(shell(&sandbox, format!("ls -A /proc/{name}")), "", "{name}");
            // Control.
            assert_ne!(fs::read_dir(format!("/proc/{name}")).unwrap().count(), 0, "{name}");
        }
    }
    // What programs need of the machine is there.
    for name in ["cpuinfo", "loadavg", "meminfo", "stat", "uptime", "version", "vmstat"] {
        assert_ne!(shell(&sandbox, format!("head -c 100 /proc/{name}")), "", "{name}");
    }
    for name in
        ["sys/kernel/core_pattern", "sys/kernel/hostname", "sysrq-trigger", "sys/vm/drop_caches"]
    {
        if Path::new("/proc").join(name).exists() {
            // Nothing is written, so that nothing happens where it works.
            let open = sandbox.shell(format!(": >> /proc/{name}")).output().unwrap();
            let stderr = String::from_utf8(open.stderr).unwrap();
            assert!(
                stderr.contains("Read-only file system") || stderr.contains("Permission denied"),
                "{name}: {stderr}"
            );
        }
    }
    // Control: what is the job's own can be written.
    shell(&sandbox, "echo name > /proc/self/comm");
}

fn capabilities(sandbox: &Sandbox, uid: u32) -> Vec<(String, u64)> {
    let output =
        sandbox.command("cat").arg("/proc/self/status").uid(uid).gid(uid).output().unwrap();
    let status = String::from_utf8(output.stdout).unwrap();
    let sets = status.lines().filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
    sets.map(|(set, bits)| (set.to_owned(), u64::from_str_radix(bits, 16).unwrap())).collect()
}

fn sets(inheritable: u64, permitted: u64, effective: u64, bounding: u64) -> Vec<(String, u64)> {
    let all = [inheritable, permitted, effective, bounding, 0];
    ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(str::to_owned).into_iter().zip(all).collect()
}

#[test]
fn jobs_have_the_capabilities_of_the_configuration() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let none = Capabilities::NONE;
    let default = Capabilities::default();
    // As `docker run` has them by default: without NET_ADMIN, SYS_ADMIN, SYS_PTRACE and the like.
    assert_eq!(default.bits(), 0xa804_25fb);
    let more = default.with(Capability::SysNice);
    for capabilities_of_root in [default, none, more] {
        let config = Config { capabilities: capabilities_of_root, ..home.config() };
        let sandbox = Sandbox::create(config).unwrap();
        let bits = capabilities_of_root.bits();
        assert_eq!(capabilities(&sandbox, 0), sets(0, bits, bits, bits));
        if nix::unistd::geteuid().is_root() {
            assert_eq!(capabilities(&sandbox, 1000), sets(0, 0, 0, bits));
        }
    }
}

#[test]
fn no_program_gives_new_privileges() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_eq!(shell(&sandbox, "grep NoNewPrivs /proc/self/status"), "NoNewPrivs:\t1\n");
    if nix::unistd::geteuid().is_root() {
        let set_uid = "cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id && stat -c %a /tmp/id";
        assert_eq!(shell(&sandbox, set_uid), "4755\n");
        let output = sandbox.command("/tmp/id").arg("-u").uid(1000).gid(1000).output().unwrap();
        assert_eq!(output.stdout, b"1000\n");
    }
}

#[test]
fn system_calls_are_filtered_unless_the_caller_says_otherwise() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let seccomp = "grep ^Seccomp: /proc/self/status";
    let filtered = home.sandbox();
    assert_eq!(shell(&filtered, seccomp), "Seccomp:\t2\n");
    assert_eq!(census::status(filtered.init_pid(), "Seccomp").as_deref(), Some("2"));
    // Control.
    let config = Config { seccomp: Seccomp::Unconfined, ..home.config() };
    assert_eq!(shell(&Sandbox::create(config).unwrap(), seccomp), "Seccomp:\t0\n");
}

#[test]
fn no_namespace_and_no_mount_can_be_made_inside() {
    if !needs(&[Need::Program("unshare")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let attempts = [
        "unshare --user true",
        "unshare --mount true",
        "unshare --net true",
        "unshare --user --map-root-user --mount true",
        "mount -t tmpfs none /mnt",
        "mount --bind /etc /mnt",
        "mount -o remount,rw /proc/sys",
        "umount /proc/sys",
        "umount /dev/null",
    ];
    for attempt in attempts {
        let output = sandbox.shell(attempt).output().unwrap();
        assert!(!output.status.success(), "{attempt}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let refused = ["not permitted", "ermission denied", "must be superuser", "not mounted"];
        assert!(refused.iter().any(|text| stderr.contains(text)), "{attempt}: {stderr}");
    }
    // Control: the same, where the configuration lets it.
    let capabilities = Capabilities::default().with(Capability::SysAdmin);
    let config = Config { seccomp: Seccomp::Unconfined, capabilities, ..home.config() };
    let weak = Sandbox::create(config).unwrap();
    for attempt in [
        "unshare --user true",
        "unshare --mount true",
        "mount -t tmpfs none /mnt",
        "mount --bind /etc /mnt",
    ] {
        shell(&weak, attempt);
    }
}

#[test]
fn a_working_directory_cannot_lead_out() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "ln -s / /tmp/root; ln -s ../../../../etc /tmp/up; mkdir /tmp/here");
    for magic in [
        "/proc/1/cwd",
        "/proc/1/root",
        "/proc/self/cwd",
        "/proc/self/fd/0",
        "/proc/thread-self/root",
    ] {
        let output = sandbox.command("pwd").current_dir(magic).output();
        assert!(
            matches!(output, Err(Error::Start { stage: adl_runtime::Stage::Directory, .. })),
            "{magic}: {output:?}"
        );
    }
    // Control: ordinary links are followed, inside.
    for (path, is) in [
        ("/tmp/root", "/\n"),
        ("/tmp/up", "/etc\n"),
        ("/tmp/here", "/tmp/here\n"),
        ("/../tmp", "/tmp\n"),
    ] {
        let output = sandbox.command("/bin/pwd").arg("-P").current_dir(path).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), is, "{path}");
    }
}

#[test]
fn an_image_whose_system_directories_are_links_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (name, step) in [("proc", Step::Proc), ("dev", Step::Dev)] {
        for (number, target) in
            ["/", "/tmp", "../../../../../tmp", "nowhere"].into_iter().enumerate()
        {
            let image = home.path(format!("{name}{number}"));
            fs::create_dir(&image).unwrap();
            symlink(target, image.join(name)).unwrap();
            let before = census::mounts();
            let config = Config { image: Image::directory(&image), ..home.config() };
            match Sandbox::create(config) {
                Err(Error::Setup { step: at, .. }) if at == step => {}
                other => panic!("{name} -> {target}: {other:?}"),
            }
            assert_eq!(census::mounts(), before);
            assert!(within(Duration::from_secs(5), || home.left().is_empty()), "{:?}", home.left());
        }
        // A file in its place is refused, too.
        let image = home.path(format!("{name}-file"));
        fs::create_dir(&image).unwrap();
        fs::write(image.join(name), "").unwrap();
        let config = Config { image: Image::directory(&image), ..home.config() };
        let refused = Sandbox::create(config);
        assert!(matches!(&refused, Err(Error::Setup { .. })), "{refused:?}");
    }
}
