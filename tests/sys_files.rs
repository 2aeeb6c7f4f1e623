//! What a sandbox finds of the kernel: `/sys`, `/dev`, its boot id, parameters of its namespaces.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use adl_runtime::{Config, Error, Limits, Network, Sandbox, Step, Sysfs};

use crate::harness::{Home, Need, OrdinaryUser, adl_command, needs, shell, stderr, succeeds};

fn with(home: &Home, change: impl FnOnce(&mut Config)) -> Sandbox {
    let mut config = home.config();
    change(&mut config);
    Sandbox::create(config).unwrap()
}

#[test]
fn each_boot_has_an_id_of_its_own() {
    if !needs(&[]) {
        return;
    }
    const READ: &str = "cat /proc/sys/kernel/random/boot_id";
    let home = Home::new();
    let (one, other) = (home.sandbox(), home.sandbox());
    let mut ids = vec![fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()];
    ids.extend([&one, &other].map(|sandbox| shell(sandbox, READ)));
    assert_eq!(shell(&one, READ), ids[1]);
    one.reset().unwrap();
    ids.push(shell(&one, READ));
    for id in &ids {
        let digits = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit());
        let parts: Vec<_> = id.trim_end().split('-').collect();
        let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        assert!(parts.iter().all(|part| digits(part)), "{id}");
    }
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
    let write = "echo 1 > /proc/sys/kernel/random/boot_id";
    assert!(!one.shell(write).status().unwrap().success());
}

/// A server on port 80, and an echo request, of a user who is not root.
const PORT_AND_PING: &str = r#"
import os, socket, struct
server = socket.socket(); server.bind(('127.0.0.1', 80)); server.listen()
client = socket.create_connection(('127.0.0.1', 80))
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
ping.settimeout(20)
ping.sendto(struct.pack('!BBHHH', 8, 0, 0, 0, 1) + b'hello', ('127.0.0.1', 0))
answer = ping.recv(100)
print(os.getuid(), answer[0], answer[-5:].decode())
"#;

#[test]
fn a_user_binds_a_low_port_and_pings_in_a_network_of_its_own() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut command = sandbox.command("python3");
    command.args(["-c", PORT_AND_PING]);
    let users: &[u32] = if sandbox.id_range().is_some() { &[0, 1000, 65_535] } else { &[0] };
    for user in users {
        let output = command.uid(*user).gid(*user).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text, format!("{user} 0 hello\n"), "{why}");
    }
}

#[test]
fn an_ordinary_users_sandbox_pings_and_has_a_sys() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let user = OrdinaryUser::new();
    assert_eq!(user.run(&["python3", "-c", PORT_AND_PING]), "0 0 hello\n");
    let text = run_as(&user, &["--sysfs", "always"], "cat /sys/devices/system/cpu/possible");
    assert_eq!(text, fs::read_to_string("/sys/devices/system/cpu/possible").unwrap());
    let options = ["--shm-size", "1m", "--sysctl", "net.ipv4.ip_default_ttl=56"];
    let text = run_as(
        &user,
        &options,
        "cat /proc/sys/net/ipv4/ip_default_ttl; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2",
    );
    assert_eq!(text, "56\n1024\n");
}

/// Runs a script in a sandbox of an ordinary user's that must succeed; what it wrote to stdout.
#[track_caller]
fn run_as(user: &OrdinaryUser, options: &[&str], script: &str) -> String {
    let mut adl = user.command(user.adl());
    succeeds(adl.arg("run").args(options).args(["--", "sh", "-c", script]))
}

#[test]
fn a_sys_shows_processors_and_memory_and_nothing_of_the_machine() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = with(&home, |config| config.sysfs = Sysfs::Always);
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    assert_eq!(shell(&sandbox, "cat /sys/devices/system/cpu/possible"), possible);
    if Path::new("/usr/bin/lscpu").exists() {
        let text = shell(&sandbox, "LC_ALL=C lscpu");
        assert!(text.lines().any(|line| line.starts_with("On-line CPU(s)")), "{text}");
    }
    assert_eq!(shell(&sandbox, "cd /sys; echo *"), "class devices fs kernel\n");
    let there =
        "cd /sys; echo class/* devices/* devices/system/* devices/virtual/* kernel/* kernel/mm/*";
    let text = shell(&sandbox, there);
    let expected = "class/net devices/system devices/virtual devices/system/cpu devices/system/node \
                    devices/virtual/net kernel/mm kernel/mm/transparent_hugepage";
    let allowed: HashSet<_> = expected.split(' ').collect();
    // What has nothing in it stands as it was asked for.
    let mut names = text.split_whitespace().filter(|name| !name.ends_with("/*"));
    assert!(names.all(|name| allowed.contains(name)), "{text}");
    // The control: all of it is there on the host.
    for of_host in ["firmware", "module", "block", "kernel/debug", "power"] {
        let told = fs::exists(Path::new("/sys").join(of_host)).unwrap();
        assert!(told || of_host == "kernel/debug", "{of_host}");
        let look = sandbox.command("ls").arg(Path::new("/sys").join(of_host)).output().unwrap();
        assert!(!look.status.success(), "{of_host}");
    }
    // Nothing can be written to, whoever tries.
    let write = "find /sys -type f -perm /222 | while read -r file; do
                     (: >> $file) 2>/dev/null && echo $file; done; \
                 for d in /sys /sys/fs/cgroup /sys/class; do mkdir $d/x 2>/dev/null && echo $d; done; true";
    assert_eq!(shell(&sandbox, write), "");
}

#[test]
fn a_sys_shows_the_devices_of_the_network_that_the_sandbox_has() {
    if !needs(&[Need::Sysfs]) {
        return;
    }
    const LIST: &str = "cd /sys/class/net; LC_ALL=C; echo *; cat lo/mtu";
    let home = Home::new();
    let sandbox = with(&home, |config| config.sysfs = Sysfs::Always);
    assert_eq!(shell(&sandbox, LIST), "lo\n65536\n");
    let user = OrdinaryUser::new();
    assert_eq!(run_as(&user, &["--sysfs", "always"], LIST), "lo\n65536\n");
    let shared = with(&home, |config| {
        config.sysfs = Sysfs::Always;
        config.network = Network::Host;
    });
    let mut of_host: Vec<_> = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    of_host.sort();
    let text = shell(&shared, LIST);
    assert_eq!(text.lines().next().unwrap().split(' ').collect::<Vec<_>>(), of_host);
}

#[test]
fn there_is_a_sys_when_it_was_asked_for_or_there_are_limits() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let has = |sandbox: &Sandbox| shell(sandbox, "echo /sys/*") != "/sys/*\n";
    assert!(!has(&home.sandbox()));
    assert!(has(&with(&home, |config| config.sysfs = Sysfs::Always)));
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let limits = || Limits { memory: Some(64 << 20), ..Limits::default() };
    assert!(has(&with(&home, |config| config.limits = limits())));
    assert!(!has(&with(&home, |config| {
        config.limits = limits();
        config.sysfs = Sysfs::Never;
    })));
}

#[test]
fn limits_can_be_read_inside_and_not_written() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    const MEMORY: u64 = 200 << 20;
    let home = Home::new();
    let limits = |memory| Limits { memory: Some(memory), pids: Some(100), ..Limits::default() };
    let sandbox = with(&home, |config| config.limits = limits(MEMORY));
    let read = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null
                cat pids/pids.max pids.max 2>/dev/null; true";
    assert_eq!(shell(&sandbox, read), format!("{MEMORY}\n100\n"));
    // As it is now, in each life.
    sandbox.set_limits(limits(2 * MEMORY)).unwrap();
    assert_eq!(shell(&sandbox, read), format!("{}\n100\n", 2 * MEMORY));
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, read), format!("{}\n100\n", 2 * MEMORY));
    let write = "find /sys/fs/cgroup -type f | while read -r file; do
                     (: >> $file) 2>/dev/null && echo $file; done; \
                 find /sys/fs/cgroup -type d | while read -r directory; do
                     mkdir $directory/x 2>/dev/null && echo $directory; done; true";
    assert_eq!(shell(&sandbox, write), "");
    // Nothing of other cgroups, by no way.
    let text = shell(&sandbox, "find /sys/fs/cgroup/.. /sys/fs/cgroup/*/.. -maxdepth 1 | sort -u");
    assert!(!text.contains("adl-"), "{text}");
}

/// Looks for its limits as programs do: the path that `/proc/self/cgroup` tells, below where
/// `mountinfo` says that the hierarchy is mounted, if what is mounted is the root of what it sees
/// or is that path. Prints a line for each name that the limit has.
const FIND: &str = r#"
import os, sys
mounts = {}
for line in open('/proc/self/mountinfo'):
    root, at = line.split()[3:5]
    kind, _, options = line.split(' - ')[1].split()
    if kind == 'cgroup2':
        mounts[''] = (root, at)
    if kind == 'cgroup':
        mounts.update((name, (root, at)) for name in options.split(','))
paths = {}
for line in open('/proc/self/cgroup'):
    _, names, path = line.rstrip('\n').split(':', 2)
    paths.update((name, path) for name in names.split(','))
for controller, file in (name.split('/') for name in sys.argv[1:]):
    root, at = mounts[controller]
    path = paths[controller]
    # Version 2 has one mount, whose root programs don't look at.
    assert controller == '' or root == '/', (controller, root, path)
    assert '..' not in path.split('/'), path
    print(open(at + path + '/' + file).read().strip())
"#;

/// The files of memory, processors and processes as [`FIND`] wants them.
fn limits_here() -> [&'static str; 3] {
    if crate::cgroups::is_pure_v2() {
        ["/memory.max", "/cpu.max", "/pids.max"]
    } else {
        ["memory/memory.limit_in_bytes", "cpu/cpu.cfs_quota_us", "pids/pids.max"]
    }
}

/// What that is of half a processor.
fn half() -> &'static str {
    if crate::cgroups::is_pure_v2() { "50000 100000" } else { "50000" }
}

#[test]
fn the_path_of_a_commands_cgroup_leads_to_its_limits() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    const MEMORY: u64 = 200 << 20;
    let home = Home::new();
    let limits = |memory| Limits {
        memory: Some(memory),
        cpu: Some(500),
        pids: Some(100),
        ..Limits::default()
    };
    let sandbox = with(&home, |config| config.limits = limits(MEMORY));
    let find = || {
        let mut command = sandbox.command("python3");
        let output = command.args(["-c", FIND]).args(limits_here()).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{why}");
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = |memory: u64| format!("{memory}\n{}\n100\n", half());
    // In the first leaf, and in one that was used; with other limits, in that and in a new one; and
    // in each life.
    for _ in 0..2 {
        assert_eq!(find(), expected(MEMORY));
    }
    sandbox.set_limits(limits(2 * MEMORY)).unwrap();
    assert_eq!(find(), expected(2 * MEMORY));
    let mut other = sandbox.command("/bin/sleep").arg("1000").spawn().unwrap();
    assert_eq!(find(), expected(2 * MEMORY));
    other.kill().unwrap();
    other.wait().unwrap();
    sandbox.reset().unwrap();
    assert_eq!(find(), expected(2 * MEMORY));
    // A neighbour has its own.
    let neighbour = with(&home, |config| config.limits = limits(4 * MEMORY));
    let output = neighbour.command("python3").args(["-c", FIND]).args(limits_here()).output();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), expected(4 * MEMORY));
}

#[test]
fn no_command_sees_the_name_of_a_cgroup_outside() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let limits = || Limits { memory: Some(64 << 20), pids: Some(30), ..Limits::default() };
    let sandbox = with(&home, |config| config.limits = limits());
    let _neighbour = with(&home, |config| config.limits = limits());
    // Of itself, and of others inside.
    let look = "sleep 1000 & cat /proc/self/cgroup /proc/$!/cgroup /proc/self/mountinfo; kill $!";
    let text = shell(&sandbox, look);
    assert!(text.contains("0::/") && !text.contains("adl-"), "{text}");
    let text =
        shell(&sandbox, "find /sys/fs/cgroup -type d; ls -a /sys/fs/cgroup/.. /sys/fs/cgroup/*/..");
    assert!(!text.contains("adl-"), "{text}");
}

#[test]
fn runtimes_size_themselves_by_the_limit() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    const MEMORY: u64 = 256 << 20;
    let home = Home::new();
    let sandbox = with(&home, |config| {
        config.limits = Limits { memory: Some(MEMORY), cpu: Some(1000), ..Limits::default() };
    });
    let run = |program: &str, arguments: &[&str]| {
        let output = sandbox.command(program).args(arguments).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{why}");
        String::from_utf8(output.stdout).unwrap()
    };
    if needs(&[Need::Program("node")]) {
        let text = run("node", &["-e", "console.log(process.constrainedMemory())"]);
        assert_eq!(text, format!("{MEMORY}\n"));
    }
    if needs(&[Need::Program("java")]) {
        let text = run("java", &["-XX:+PrintFlagsFinal", "-version"]);
        // A quarter of what it takes the machine to have.
        let heap = text.lines().find(|line| line.contains(" MaxHeapSize ")).unwrap();
        let bytes = heap.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap();
        assert!(bytes <= MEMORY / 2, "{heap}");
        let text = run("java", &["-Xlog:os+container=trace", "-version"]);
        assert!(text.contains(&format!("Memory Limit is: {MEMORY}")), "{text}");
        assert!(text.contains("active_processor_count: 1"), "{text}");
    }
}

#[test]
fn programs_count_the_processors_that_they_may_use() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = with(&home, |config| config.limits.cpuset = Some("0".to_owned()));
    let count = "import os; print(len(os.sched_getaffinity(0)))";
    let text = shell(&sandbox, format!("nproc; python3 -c '{count}'"));
    assert_eq!(text, "1\n1\n");
}

#[test]
fn dev_is_complete() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let expected =
        "console core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(shell(&sandbox, "cd /dev; echo $(LC_ALL=C ls)"), format!("{expected}\n"));
    let links = "cd /dev; for l in console core fd ptmx stdin; do readlink $l; done";
    let expected = "tty\n/proc/kcore\n/proc/self/fd\npts/ptmx\n/proc/self/fd/0\n";
    assert_eq!(shell(&sandbox, links), expected);
    // There is nothing behind it, whether this kernel has such a file or not.
    assert_eq!(shell(&sandbox, "cat /dev/core 2>/dev/null || true"), "");
    // It is the terminal of whoever opens it, where there is one.
    assert!(!sandbox.shell("echo x > /dev/console").status().unwrap().success());
    let mut command = sandbox.shell("echo from the console > /dev/console");
    let output = command.terminal(24, 80).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("from the console"), "{output:?}");
}

#[test]
fn the_size_of_shared_memory_is_as_asked_for() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let fill = "head -c 2000000 /dev/zero > /dev/shm/file && echo fits";
    let large = with(&home, |config| config.shm_size = Some(4 << 20));
    assert_eq!(shell(&large, fill), "fits\n");
    let small = with(&home, |config| config.shm_size = Some(1 << 20));
    assert!(!small.shell(fill).status().unwrap().success());
    let wrong = Config { shm_size: Some(0), ..home.config() };
    assert!(matches!(Sandbox::create(wrong), Err(Error::Invalid { .. })));
}

#[test]
fn parameters_of_its_own_network_are_set() {
    if !needs(&[]) {
        return;
    }
    let all = [("net.ipv4.ip_default_ttl", "77"), ("net.ipv4.ip_unprivileged_port_start", "500")];
    are_set(&all);
}

#[test]
fn parameters_of_its_own_ipc_are_set() {
    if !needs(&[Need::IpcSysctls]) {
        return;
    }
    let all = [
        ("kernel.shmmax", "123456789"),
        ("kernel.sem", "100\t200\t300\t400"),
        ("kernel.msgmax", "4096"),
        ("fs.mqueue.msg_max", "20"),
    ];
    are_set(&all);
    let user = OrdinaryUser::new();
    let options = ["--sysctl", "kernel.sem=1 2 3 4"];
    assert_eq!(run_as(&user, &options, "cat /proc/sys/kernel/sem"), "1\t2\t3\t4\n");
}

/// Makes sure that parameters are as asked for, in each life, and can't be changed inside.
#[track_caller]
fn are_set(all: &[(&str, &str)]) {
    let home = Home::new();
    let read_on_host = || -> Vec<_> {
        all.iter().map(|(name, _)| fs::read_to_string(file_of(name)).unwrap()).collect()
    };
    let of_host = read_on_host();
    let pairs = all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let sandbox = with(&home, |config| config.sysctls = pairs.collect());
    for life in 0..2 {
        for (name, value) in all {
            let text = shell(&sandbox, format!("cat {}", file_of(name)));
            assert_eq!(text, format!("{value}\n"), "{name} in life {life}");
            let write = format!("echo 1 > {}", file_of(name));
            assert!(!sandbox.shell(write).status().unwrap().success(), "{name}");
        }
        sandbox.reset().unwrap();
    }
    assert_eq!(read_on_host(), of_host);
}

fn file_of(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

#[test]
fn no_parameters_of_the_machine_are_set() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (name, value) in [
        ("kernel.hostname", "other"),
        ("kernel.core_pattern", "core"),
        ("vm.swappiness", "1"),
        ("net.core/../../kernel/panic", "1"),
    ] {
        let sysctls = vec![(name.to_owned(), value.to_owned())];
        let wrong = Sandbox::create(Config { sysctls, ..home.config() });
        assert!(matches!(wrong, Err(Error::Invalid { .. })), "{name}: {wrong:?}");
    }
    let sysctls = vec![("net.core.somaxconn".to_owned(), "1".to_owned())];
    let shared = Config { sysctls, network: Network::Host, ..home.config() };
    assert!(matches!(Sandbox::create(shared), Err(Error::Invalid { .. })));
    // What the kernel refuses is told with its name.
    for (name, value) in [("net.ipv4.no_such_thing", "1"), ("kernel.shmmni", "many")] {
        let sysctls = vec![(name.to_owned(), value.to_owned())];
        match Sandbox::create(Config { sysctls, ..home.config() }) {
            Err(Error::Setup { step: Step::Sysctl, path, .. }) => {
                assert_eq!(path, Path::new(&name.replace('.', "/")));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_command_line_sets_them() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let run = |options: &[&str], script: &str| {
        let mut adl = adl_command(&home.state());
        adl.arg("run").args(options).args(["--", "sh", "-c", script]).output().unwrap()
    };
    let options =
        ["--sysctl", "net.ipv4.tcp_retries2=12", "--sysctl", "net.ipv4.ip_default_ttl=34"];
    let output = run(&options, "cd /proc/sys/net/ipv4; cat tcp_retries2 ip_default_ttl");
    assert_eq!(output.stdout, b"12\n34\n", "{}", stderr(&output));
    let output = run(&["--sysctl", "vm.swappiness=1"], "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("vm.swappiness is the machine's"), "{}", stderr(&output));
    let output = run(&["--sysctl", "somaxconn"], "true");
    assert!(stderr(&output).contains("NAME=VALUE"), "{}", stderr(&output));
    let output = run(&["--shm-size", "2m"], "head -c 3000000 /dev/zero > /dev/shm/x");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let output = run(&["--sysfs", "never"], "echo /sys/*");
    assert_eq!(output.stdout, b"/sys/*\n");
}
