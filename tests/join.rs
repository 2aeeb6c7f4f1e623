//! A sandbox in a network namespace that was there before: what is in there is shared, the
//! namespace stays as it is, and each life of the sandbox is in the one that was named.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use adl_runtime::{
    Access, Capabilities, Config, Error, Mount, Network, Publish, Sandbox, Seccomp, Sysfs,
    keep_blanks, metrics,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::census::{self, Census};
use crate::harness::{
    Home, NOBODY, Need, OrdinaryUser, adl_command, copy_program, needs, shell, stderr, succeeds,
    within,
};
use crate::helper::{self, AS_A_USER, Helper};
use crate::own_namespaces::give_to_nobody;
use crate::ports::{any, connect, read};

const NEEDS: &[Need] = &[Need::Userns, Need::Program("unshare"), Need::Program("python3")];
/// How long a spare or a blank may take to be made.
const READY: Duration = Duration::from_secs(10);

/// Does, in its network namespace, what it is told by lines, and answers each by one.
const HOLDER: &str = "
import fcntl, os, socket, struct, sys, threading
def device(request, name, flags=0):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return fcntl.ioctl(s, request, struct.pack('16sH22x', name, flags))
def state():
    flags, = struct.unpack_from('H', device(0x8913, b'lo'), 16)
    with open('/proc/net/fib_trie') as file: own = '198.18.0.1' in file.read()
    with open('/proc/sys/net/ipv4/ip_unprivileged_port_start') as file: first = file.read().strip()
    return f'up={flags & 1} own={own} first={first}'
def serve(listener):
    def run():
        while True:
            c, _ = listener.accept()
            c.sendall(b'from the holder')
            c.close()
    threading.Thread(target=run, daemon=True).start()
stolen, tried = 0, 0
def reads(process, address):
    memory = os.open(f'/proc/{process}/mem', os.O_RDONLY)
    try: return os.pread(memory, 6, address)
    finally: os.close(memory)
def steal(process, address):
    global stolen, tried
    while True:
        for task in os.listdir(f'/proc/{process}/task'):
            try:
                with open(f'/proc/{process}/task/{task}/children') as file: children = file.read()
            except OSError: continue
            for child in map(int, children.split()):
                if child == os.getpid(): continue
                tried += 1
                try: stolen += reads(child, address) == b'secret'
                except OSError: pass
def do(word, *rest):
    if word == 'steal':
        # The control: what is in this user namespace can be read.
        child = os.fork()
        if not child: os.execvp('sleep', ['sleep', 'inf'])
        while reads(child, int(open(f'/proc/{child}/maps').read().split('-')[0], 16))[1:4] != b'ELF': pass
        os.kill(child, 9), os.waitpid(child, 0)
        threading.Thread(target=steal, args=(rest[0], int(rest[1])), daemon=True).start()
    if word == 'stolen': return f'{stolen} {tried}'
    if word == 'up': device(0x8914, b'lo', 0x41)
    elif word == 'state': return state()
    elif word == 'net': return os.readlink('/proc/self/ns/net')
    elif word == 'serve':
        tcp = socket.create_server(('127.0.0.1', 0))
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(b'\\0adl-joined')
        unix.listen()
        serve(tcp), serve(unix)
        return str(tcp.getsockname()[1])
    elif word == 'read':
        with socket.create_connection(('127.0.0.1', int(rest[0])), timeout=20) as c:
            return c.recv(99).decode()
    return 'done'
for line in sys.stdin:
    try: print(do(*line.split()), flush=True)
    except Exception as error: print(repr(error), flush=True)";

/// A process that is alone in a network namespace.
struct Holder {
    process: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    /// Of the calling user.
    fn new() -> Self {
        let user: &[_] = if is_root() { &[] } else { &["--user", "--map-root-user"] };
        let mut command = Command::new("unshare");
        command.args(user);
        Self::by(command)
    }

    /// Of an ordinary user, in a user namespace that is made so.
    fn of_user(user: &OrdinaryUser, how: &[&str]) -> Self {
        let mut command = user.command("unshare");
        command.args(how);
        Self::by(command)
    }

    fn by(mut unshare: Command) -> Self {
        unshare.args(["--net", "python3", "-c", HOLDER]);
        let mut process = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut this = Self { stdin: process.stdin.take().unwrap(), process, lines };
        assert_ne!(this.ask("net"), own_network());
        this
    }

    #[track_caller]
    fn ask(&mut self, what: &str) -> String {
        writeln!(self.stdin, "{what}").unwrap();
        self.lines.next().unwrap().unwrap()
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.process.id()).into()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn own_network() -> String {
    fs::read_link("/proc/thread-self/ns/net").unwrap().into_os_string().into_string().unwrap()
}

fn network_of(sandbox: &Sandbox) -> String {
    shell(sandbox, "readlink /proc/self/ns/net").trim().to_owned()
}

fn joining(state: &Path, path: impl AsRef<Path>) -> Config {
    let state_directory = Some(state.to_owned());
    Config { network: Network::join(path.as_ref()), state_directory, ..Config::default() }
}

/// Reads from what listens on loopback, and by an abstract name.
fn reads(port: &str) -> String {
    format!(
        "python3 -c \"
import socket
with socket.create_connection(('127.0.0.1', {port}), timeout=20) as c: print(c.recv(99).decode())
with socket.socket(socket.AF_UNIX) as c:
    c.connect(b'\\0adl-joined')
    print(c.recv(99).decode())\""
    )
}

/// Serves one client, once it has said on which port.
const SERVES: &str = "python3 -c \"
import socket
s = socket.create_server(('127.0.0.1', 0))
print(s.getsockname()[1], flush=True)
s.accept()[0].sendall(b'from inside')\"";

/// Makes sure that a sandbox and a holder reach each other, and that nothing of the network has
/// changed.
#[track_caller]
fn are_together(sandbox: &Sandbox, holder: &mut Holder, port: &str) {
    assert_eq!(network_of(sandbox), holder.ask("net"));
    assert_eq!(shell(sandbox, reads(port)), "from the holder\nfrom the holder\n");
    let mut server = sandbox.shell(SERVES).stdout(adl_runtime::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(holder.ask(&format!("read {}", line.trim())), "from inside");
    assert!(server.wait().unwrap().success());
    assert_eq!(holder.ask("state"), "up=1 own=False first=1024");
}

#[test]
fn what_is_in_the_network_and_what_is_inside_reach_each_other() {
    if !needs(NEEDS) {
        return;
    }
    let home = Home::new();
    let mut holder = Holder::new();
    assert_eq!(holder.ask("up"), "done");
    let port = holder.ask("serve");
    let own = own_network();
    // The first of a process is cloned from the caller's mounts, others from the empty namespace,
    // and where there are many descriptors without a copy of them.
    let mut many = Vec::new();
    for round in 0..4 {
        if round == 2 {
            many.extend((0..600).map(|_| fs::File::open("/dev/null").unwrap()));
        }
        let sandbox = Sandbox::create(joining(&home.state(), holder.path())).unwrap();
        are_together(&sandbox, &mut holder, &port);
        sandbox.reset().unwrap();
        are_together(&sandbox, &mut holder, &port);
        let mut stream = sandbox.connect(([127, 0, 0, 1], port.parse().unwrap())).unwrap();
        assert_eq!(std::io::read_to_string(&mut stream).unwrap(), "from the holder");
        // No thread of the caller is elsewhere by now.
        for task in fs::read_dir("/proc/self/task").unwrap() {
            let network = fs::read_link(task.unwrap().path().join("ns/net"));
            assert!(network.is_err() || network.unwrap().to_str() == Some(&own));
        }
        assert_ne!(network_of(&home.sandbox()), own);
    }
    home.assert_settled();
}

#[test]
fn a_loopback_device_that_is_down_stays_down() {
    if !needs(NEEDS) {
        return;
    }
    let home = Home::new();
    let mut holder = Holder::new();
    let before = holder.ask("state");
    assert_eq!(before, "up=0 own=False first=1024");
    for _ in 0..2 {
        let sandbox = Sandbox::create(joining(&home.state(), holder.path())).unwrap();
        let refused = sandbox.connect(([127, 0, 0, 1], 80)).unwrap_err();
        assert!(refused.to_string().contains("unreachable"), "{refused}");
        assert_eq!(holder.ask("state"), before);
    }
    // The control: it is looked at.
    holder.ask("up");
    assert_ne!(holder.ask("state"), before);
}

#[test]
fn each_life_is_in_the_one_that_was_named_whatever_the_path_leads_to() {
    if !needs(NEEDS) {
        return;
    }
    let home = Home::new();
    let mut holders = [Holder::new(), Holder::new()];
    let nets = holders.each_mut().map(|holder| holder.ask("net"));
    assert_ne!(nets[0], nets[1]);
    let link = home.path("link");
    for spare in [false, true] {
        symlink(holders[0].path(), &link).unwrap();
        let config = Config { spare, ..joining(&home.state(), &link) };
        let sandbox = Sandbox::create(config).unwrap();
        assert_eq!(network_of(&sandbox), nets[0]);
        fs::remove_file(&link).unwrap();
        symlink(holders[1].path(), &link).unwrap();
        for _ in 0..3 {
            assert!(within(READY, || sandbox.has_spare() == spare));
            sandbox.reset().unwrap();
            assert_eq!(network_of(&sandbox), nets[0]);
        }
        // The control: who is created now is in the other.
        assert_eq!(network_of(&Sandbox::create(joining(&home.state(), &link)).unwrap()), nets[1]);
        fs::remove_file(&link).unwrap();
    }
    // Where no process is in it any more, too.
    let [first, _other] = holders;
    let sandbox = Sandbox::create(joining(&home.state(), first.path())).unwrap();
    drop(first);
    sandbox.reset().unwrap();
    assert_eq!(network_of(&sandbox), nets[0]);
}

#[test]
fn what_is_no_network_namespace_of_another_is_refused_without_a_wait() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let at = |name: &str| home.path(name);
    fs::write(at("file"), "").unwrap();
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    symlink("/proc/self/ns/net", at("link")).unwrap();
    let refused = |path: &Path| Sandbox::create(joining(&home.state(), path)).unwrap_err();
    for (path, why) in [
        (at("file"), "no namespace"),
        (at("fifo"), "no namespace"),
        (at("socket"), "no namespace"),
        (home.path(""), "no namespace"),
        ("/dev/null".into(), "no namespace"),
        ("/proc/self/net".into(), "no namespace"),
        ("/proc/self/ns/mnt".into(), "another kind"),
        ("/proc/self/ns/user".into(), "another kind"),
        ("/proc/self/ns/net".into(), "the caller's own"),
        ("/proc/thread-self/ns/net".into(), "the caller's own"),
        (at("link"), "the caller's own"),
    ] {
        match refused(&path) {
            Error::Invalid { what: "network namespace", why: told } => {
                assert!(told.contains(why) && told.contains(path.to_str().unwrap()), "{told}");
            }
            other => panic!("{path:?}: {other:?}"),
        }
    }
    for path in [at("missing"), at("file/below"), PathBuf::new()] {
        let error = refused(&path);
        assert!(matches!(error, Error::Io { .. }), "{path:?}: {error:?}");
    }
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn a_network_is_plain_data_and_its_parameters_are_not_the_sandboxs() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let config = joining(&home.state(), "/run/netns/x");
    let text = serde_json::to_string(&config.network).unwrap();
    assert_eq!(text, r#"{"Join":"/run/netns/x"}"#);
    assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), config.network);
    let sysctls = vec![("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned())];
    let refused = Sandbox::create(Config { sysctls, ..config }).unwrap_err();
    assert!(refused.to_string().contains("not the sandbox's own"), "{refused}");
}

#[test]
fn a_sys_shows_no_devices_of_another_network_and_names_are_asked_as_on_the_host() {
    if !needs(NEEDS) {
        return;
    }
    const LOOK: &str = "ls -d /sys/devices/system/cpu/cpu0 /sys/class/net /sys/devices/virtual/net; \
                        cat /etc/hosts; cat /etc/resolv.conf | grep -v 'nameserver 127.'";
    let home = Home::new();
    let holder = Holder::new();
    let looks = |network: Network| {
        let hostname = Some("box".to_owned());
        let config = Config { sysfs: Sysfs::Always, network, hostname, ..home.config() };
        let sandbox = Sandbox::create(config).unwrap();
        let output = sandbox.shell(LOOK).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (sys, names): (Vec<_>, Vec<_>) =
            text.lines().map(str::to_owned).partition(|line| line.starts_with("/sys/"));
        (sys, names)
    };
    let (sys_of_host, names_of_host) = looks(Network::Host);
    let [net, cpu, devices] = &sys_of_host[..] else { panic!("{sys_of_host:?}") };
    assert!(net.contains("net") && devices.contains("net"), "{sys_of_host:?}");
    // In a copy of the caller's mounts, and in what only later ones have.
    for _ in 0..3 {
        let (sys, names) = looks(Network::join(holder.path()));
        assert_eq!(sys, std::slice::from_ref(cpu));
        assert_eq!(names.iter().filter(|line| line.contains("box")).count(), 1, "{names:?}");
        assert_eq!(
            names.iter().filter(|line| !line.contains("nameserver")).collect::<Vec<_>>(),
            names_of_host.iter().filter(|line| !line.contains("nameserver")).collect::<Vec<_>>()
        );
    }
}

/// Tries all that changes a network or sees what is not its own, and prints what succeeds.
const ATTACKS: &str = r#"
import ctypes, fcntl, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def device(request, name, value):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, request, struct.pack('16s16s8x', name, value))
address = lambda *ip: struct.pack('HH4s8x', socket.AF_INET, 0, bytes(ip))
def netlink():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        # RTM_NEWADDR of 192.0.2.9/32 on lo, with an answer.
        body = struct.pack('BBBBIHH4sHH4s', 2, 32, 0, 0, 1, 8, 2, bytes([192, 0, 2, 9]), 8, 1, bytes([192, 0, 2, 9]))
        s.send(struct.pack('IHHII', 16 + len(body), 20, 0x605, 1, 0) + body)
        error, = struct.unpack_from('i', s.recv(999), 16)
        if error: raise OSError(-error, os.strerror(-error))
def listens():
    with socket.socket() as s: s.bind(('0.0.0.0', 80))
def packets():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).close()
def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
def binds():
    with socket.socket() as s: s.setsockopt(socket.SOL_SOCKET, 36, 7)
def writes():
    with open('/proc/sys/net/ipv4/ip_default_ttl', 'w') as file: file.write('65')
def mounts(kind, path):
    os.makedirs('/tmp/m', exist_ok=True)
    if libc.mount(kind, b'/tmp/m', kind, 0, None): raise OSError(ctypes.get_errno(), 'mount')
    with open('/tmp/m/' + path, 'w') as file: file.write('66')
def joins():
    own = os.open('/proc/self/ns/net', os.O_RDONLY)
    if libc.setns(own, 0x40000000): raise OSError(ctypes.get_errno(), 'setns')
for name, attack in [
    ('down', lambda: device(0x8914, b'lo', struct.pack('H14x', 0))),
    ('address', lambda: device(0x8916, b'lo:7', address(192, 0, 2, 8))),
    ('netlink', netlink), ('port', listens), ('packet', packets), ('raw', raw), ('mark', binds),
    ('sysctl', writes), ('proc', lambda: mounts(b'proc', 'sys/net/ipv4/ip_default_ttl')),
    ('sysfs', lambda: mounts(b'sysfs', 'class/net/lo/tx_queue_len')), ('setns', joins),
]:
    try:
        attack()
        print(name)
    except OSError: pass
"#;

#[track_caller]
fn succeed(sandbox: &Sandbox) -> Vec<String> {
    let output = sandbox.command("python3").args(["-c", ATTACKS]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn no_guest_configures_a_network_that_is_not_the_sandboxs() {
    if !needs(NEEDS) {
        return;
    }
    let home = Home::new();
    let mut holder = Holder::new();
    holder.ask("up");
    let before = holder.ask("state");
    let rights = |network| Config {
        network,
        capabilities: Capabilities::ALL,
        seccomp: Seccomp::Unconfined,
        ..home.config()
    };
    // The control: in its own network nearly all of it succeeds.
    let own = Sandbox::create(rights(Network::None)).unwrap();
    let succeeds = succeed(&own);
    for attack in ["down", "address", "netlink", "port", "packet", "raw", "mark", "setns"] {
        assert!(succeeds.contains(&attack.to_owned()), "{attack}: {succeeds:?}");
    }
    for _ in 0..2 {
        let sandbox = Sandbox::create(rights(Network::join(holder.path()))).unwrap();
        assert_eq!(succeed(&sandbox), [""; 0]);
        assert_eq!(holder.ask("state"), before);
    }
}

#[test]
fn blanks_are_in_the_network_that_they_are_taken_for() {
    if needs(&[&[Need::Root], NEEDS].concat()) {
        let home = Home::new();
        Helper::start("join-by-blanks", &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn by_blanks(state: &Path) {
    let mut holders = [Holder::new(), Holder::new()];
    let nets = holders.each_mut().map(|holder| holder.ask("net"));
    let none = Config { network: Network::None, ..joining(state, "") };
    let kinds = [joining(state, holders[0].path()), joining(state, holders[1].path()), none];
    keep_blanks(3);
    let ready = || within(READY, || metrics().blanks.ready == 3);
    for kind in &kinds {
        drop(Sandbox::create(kind.clone()).unwrap());
    }
    for round in 0..3 {
        for (number, kind) in kinds.iter().enumerate() {
            assert!(ready());
            let before = metrics().blanks.taken;
            let sandbox = Sandbox::create(kind.clone()).unwrap();
            if round > 0 {
                assert_eq!(metrics().blanks.taken, before + 1, "{number}");
            }
            match nets.get(number) {
                Some(net) => assert_eq!(&network_of(&sandbox), net),
                None => assert!(!nets.contains(&network_of(&sandbox))),
            }
        }
    }
    keep_blanks(0);
}

#[test]
fn nothing_of_the_network_is_kept() {
    if needs(&[&[Need::Root], NEEDS].concat()) {
        let home = Home::new();
        Helper::start("join-and-leave", &home.state()).finish();
    }
}

/// The helper of the test above, and of that of an ordinary user.
pub(crate) fn and_leave(state: &Path) {
    let take = || {
        adl_runtime::finish_removals();
        Census::take(state, "adl-join-")
    };
    let live = |spare| {
        let holder = Holder::new();
        let config = Config { spare, ..joining(state, holder.path()) };
        let sandbox = Sandbox::create(config.clone()).unwrap();
        sandbox.reset().unwrap();
        sandbox.delete().unwrap();
        keep_blanks(1);
        drop(Sandbox::create(config).unwrap());
        keep_blanks(0);
        // What fails leaves nothing either.
        let missing = Mount::volume("/missing", "/data", Access::ReadOnly);
        let wrong = Config { mounts: vec![missing], ..joining(state, holder.path()) };
        Sandbox::create(wrong).unwrap_err();
    };
    live(true);
    let before = take();
    let dumpable = nix::sys::prctl::get_dumpable().unwrap();
    assert!(dumpable);
    for spare in [false, true, true] {
        live(spare);
        assert_eq!(nix::sys::prctl::get_dumpable().unwrap(), dumpable);
    }
    let settled = || take().difference(&before).is_empty();
    assert!(within(READY, settled), "{:?}", take().difference(&before));
}

#[test]
fn an_ordinary_user_joins_a_network_of_a_user_namespace_of_its_own() {
    if !needs(NEEDS) {
        return;
    }
    let user = OrdinaryUser::new();
    let mut holder = Holder::of_user(&user, &["--user", "--map-root-user"]);
    holder.ask("up");
    let port = holder.ask("serve");
    let before = holder.ask("state");
    let run = |path: &Path, script: &str| {
        let network = format!("ns:{}", path.display());
        let volume = format!("{}:/data", user.state().parent().unwrap().display());
        let mut adl = user.command(user.adl());
        adl.args(["run", "--network", &network, "-v", &volume, "--", "sh", "-c", script]);
        adl.output().unwrap()
    };
    let script = format!("{}; id -u; echo > /data/mine; stat -c %u /data/mine", reads(&port));
    let output = run(&holder.path(), &script);
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(told, "from the holder\nfrom the holder\n0\n0\n", "{}", stderr(&output));
    let mine = user.state().with_file_name("mine");
    let owner = if is_root() { NOBODY } else { nix::unistd::geteuid().as_raw() };
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(mine).unwrap()), owner);
    assert_eq!(holder.ask("state"), before);

    // One in which it has no numbers, and root's, which it may not name or may.
    let is_refused = |path: &Path, why: &str| {
        let output = run(path, "true");
        let told = stderr(&output);
        assert!(!output.status.success() && told.contains(why), "{told}");
    };
    let unmapped = Holder::of_user(&user, &["--user"]);
    is_refused(&unmapped.path(), "--map-root-user");
    if is_root() {
        let of_root = Holder::new();
        is_refused(&of_root.path(), "Permission denied");
        let place = user.state().with_file_name("mounted");
        fs::write(&place, "").unwrap();
        let (bind, none) = (nix::mount::MsFlags::MS_BIND, None::<&str>);
        nix::mount::mount(Some(&of_root.path()), &place, none, bind, none).unwrap();
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            is_refused(&place, "--map-root-user");
        }));
        nix::mount::umount(&place).unwrap();
        refused.unwrap();
    }
}

#[test]
fn with_subordinate_ids_another_user_namespace_is_refused() {
    if !needs(&[&[Need::Root, Need::Program("newuidmap")], NEEDS].concat()) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let holder = Holder::of_user(&user, &["--user", "--map-root-user"]);
    let run = |more: &[&str]| {
        let mut adl = user.command(user.adl());
        let network = format!("ns:{}", holder.path().display());
        adl.args(["run", "--network", &network]).args(more).args(["--", "id", "-u"]);
        adl.output().unwrap()
    };
    let refused = run(&["--ids", "65536"]);
    assert!(stderr(&refused).contains("leave the number of ids out"), "{refused:?}");
    // The control.
    assert_eq!(run(&[]).stdout, b"0\n", "{:?}", run(&[]));
}

/// This program, as the user, as the helper of that role.
fn as_user(user: &OrdinaryUser, role: &str) -> Command {
    let tests = user.adl().with_file_name("tests");
    copy_program(&std::env::current_exe().unwrap(), &tests);
    let mut command = user.command(tests);
    command.args(["--exact", "helper::entry", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(helper::ROLE, role).env(helper::STATE, user.state());
    command
}

#[test]
fn an_ordinary_users_resets_join_again_and_nothing_is_kept() {
    if !needs(NEEDS) {
        return;
    }
    let user = OrdinaryUser::new();
    for role in ["join-and-leave", "join-as-a-user"] {
        Helper::start_as(as_user(&user, role)).finish();
    }
}

/// The helper of the test above.
pub(crate) fn as_a_user(state: &Path) {
    let mut holder = Holder::new();
    holder.ask("up");
    let port = holder.ask("serve");
    for spare in [false, true] {
        let config = Config { spare, ..joining(state, holder.path()) };
        let sandbox = Sandbox::create(config).unwrap();
        for _ in 0..2 {
            are_together(&sandbox, &mut holder, &port);
            assert!(within(READY, || sandbox.has_spare() == spare));
            sandbox.reset().unwrap();
        }
    }
    // No one in that user namespace reads the caller's memory, by a process that shares it.
    let secret = "secret".to_owned();
    let (own, address) = (std::process::id(), secret.as_ptr().addr());
    assert_eq!(holder.ask(&format!("steal {own} {address}")), "done");
    for _ in 0..100 {
        drop(Sandbox::create(joining(state, holder.path())).unwrap());
    }
    let told = holder.ask("stolen");
    let (stolen, tried) = told.split_once(' ').unwrap();
    assert_eq!(stolen, "0", "of {tried}");
    assert!(tried.parse::<u64>().unwrap() > 100, "{tried}");
    drop(secret);
    drop(holder);
    let holder = Holder::new();
    // Threads at a time, and sandboxes of another kind beside.
    let before = census::descriptors(std::process::id().cast_signed()).len();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let network = match number % 2 {
                0 => Network::join(holder.path()),
                _ => Network::None,
            };
            scope.spawn(move || {
                for _ in 0..5 {
                    let network = network.clone();
                    let sandbox = Sandbox::create(Config { network, ..joining(state, "") });
                    assert_eq!(shell(&sandbox.unwrap(), "id -u"), "0\n");
                }
            });
        }
    });
    assert!(nix::sys::prctl::get_dumpable().unwrap());
    adl_runtime::finish_removals();
    assert!(within(READY, || {
        census::descriptors(std::process::id().cast_signed()).len() <= before
    }));
}

#[test]
fn the_command_line_names_a_namespace_and_follows_no_link_of_a_guests() {
    if !needs(NEEDS) {
        return;
    }
    let home = Home::new();
    let mut holder = Holder::new();
    let net = holder.ask("net");
    let run = |options: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.arg("run").args(options).args(["--", "readlink", "/proc/self/ns/net"]);
        adl
    };
    let named = format!("ns:{}", holder.path().display());
    assert_eq!(succeeds(&mut run(&["--network", &named])).trim(), net);
    let written = home.path("written");
    fs::create_dir(&written).unwrap();
    symlink(holder.path(), written.join("link")).unwrap();
    let by_link = format!("ns:{}/link", written.display());
    // The control.
    assert_eq!(succeeds(&mut run(&["--network", &by_link])).trim(), net);
    let volume = format!("{}:/data", written.display());
    for more in [["--beneath", written.to_str().unwrap()], ["-v", &volume]] {
        let output = run(&[&more[..], &["--network", &by_link]].concat()).output().unwrap();
        assert!(
            !output.status.success() && stderr(&output).contains("symbolic link"),
            "{output:?}"
        );
    }
    let missing = run(&["--network", "ns:/missing"]).output().unwrap();
    assert!(stderr(&missing).contains("/missing"), "{missing:?}");
    let report = succeeds(adl_command(&home.state()).arg("doctor"));
    let is_there = |line: &str| line.contains("a network namespace") && line.contains("joined");
    assert!(report.lines().any(is_there), "{report}");
}

#[test]
fn ports_and_connections_lead_into_a_joined_network() {
    if !needs(NEEDS) {
        return;
    }
    let role = "have-ports-in-a-joined-network";
    Helper::start(role, &Home::new().state()).finish();
    if is_root() {
        let home = Home::new();
        give_to_nobody(&home);
        Helper::start(&format!("{AS_A_USER}{role}"), &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn have_ports(state: &Path) {
    let mut holder = Holder::new();
    holder.ask("up");
    let inside: u16 = holder.ask("serve").parse().unwrap();
    let config = Config {
        network: Network::join(holder.path()),
        state_directory: Some(state.to_owned()),
        ..Config::default()
    };
    let sandbox = Sandbox::create(config).unwrap();
    let own = own_network();
    let port = sandbox.publish(&Publish::new(any(), inside)).unwrap();
    for _ in 0..2 {
        let stream = sandbox.connect(([127, 0, 0, 1], inside)).unwrap();
        assert_eq!(read(stream), "from the holder");
        assert_eq!(read(connect(&port)), "from the holder");
        let listener = sandbox.listen(any()).unwrap();
        let asked = format!("read {}", listener.local_addr().unwrap().port());
        let answers = std::thread::spawn(move || {
            listener.accept().unwrap().0.write_all(b"from outside").unwrap();
        });
        assert_eq!(holder.ask(&asked), "from outside");
        answers.join().unwrap();
        sandbox.reset().unwrap();
    }
    assert_eq!(own_network(), own);
}
