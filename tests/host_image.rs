//! What the host image shows of the host: what any user there may read.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use adl_runtime::{Config, HostImage, Image, LeftOut, Network, Sandbox};

use crate::harness::{Home, Need, OrdinaryUser, needs, repository, shell, succeeds, within};
use crate::{helper, images};

/// Makes the root of a machine of one's own, with few programs, and becomes what is called there.
/// Its processes, devices and ids are those of this one.
const ENTER: &str = r#"
    set -e
    root=$1 tests=$2
    shift 2
    mount --bind "$root" "$root"
    cd "$root"
    for place in dev proc run sys; do
        mkdir $place
        mount --rbind /$place $place
    done
    mkdir -p ".${tests%/*}"
    : > ".$tests"
    mount --bind "$tests" ".$tests"
    mkdir outside
    pivot_root . outside
    cd /
    exec "$@""#;

/// Runs a part of a test where the host is one that it may change, and that is gone with it.
#[track_caller]
fn on_a_host_of_its_own(part: &str) {
    let home = Home::new();
    let root = home.path("host");
    images::small(&root);
    // For parts that need one.
    images::small(&root.join("image"));
    for directory in ["etc/ld.so.conf.d", "tmp", "usr/bin", "usr/local"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("usr/local"), fs::Permissions::from_mode(0o2775)).unwrap();
    let tests = std::env::current_exe().unwrap();
    let by = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"];
    let by = [&by[..], &[root.to_str().unwrap(), tests.to_str().unwrap()]].concat();
    let mut command = helper::command_by(&by, part, Path::new("/state"));
    succeeds(command.stdin(Stdio::null()));
}

/// A part, in a process of its own.
pub(crate) fn part(run: fn(&Path), state: &Path) {
    assert!(Path::new("/outside").is_dir(), "the machine itself is not to be changed");
    run(state);
    adl_runtime::finish_removals();
}

/// The sandbox of a part.
fn sandbox_in(state: &Path) -> Sandbox {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    Sandbox::create(config).unwrap()
}

/// A file of the part's own host.
fn file(path: &str, content: &str, mode: u32) {
    fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_host_image_has_nothing_that_not_everyone_may_read() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("has-private-files");
    }
}

/// The part of it where the host has them.
pub(crate) fn has_private_files(state: &Path) {
    let (public, private) = ("/usr/local/public", "/usr/local/private");
    file(public, "content\n", 0o644);
    file(private, "secret\n", 0o640);
    file("/usr/local/shut/file", "secret\n", 0o644);
    fs::set_permissions("/usr/local/shut", fs::Permissions::from_mode(0o700)).unwrap();

    let sandbox = sandbox_in(state);
    // The control: what everyone may read is there, and root inside may write where it lies.
    assert_eq!(shell(&sandbox, "cat /usr/local/public"), "content\n");
    for hidden in [private, "/usr/local/shut", "/usr/local/shut/file"] {
        let output = sandbox.command("cat").arg(hidden).output().unwrap();
        assert!(output.stdout.is_empty() && !output.status.success(), "{hidden}");
    }
    for directory in ["/usr", "/usr/local", "/usr/bin"] {
        let (inside, outside) =
            (sandbox.files().metadata(directory).unwrap(), fs::metadata(directory).unwrap());
        assert_eq!(inside.mode & 0o7777, outside.mode() & 0o7777, "{directory}");
        assert_eq!((inside.uid, inside.gid), (outside.uid(), outside.gid()), "{directory}");
    }
    shell(&sandbox, "echo new > /usr/local/new && cat /usr/local/new && ls /usr/bin > /dev/null");
    // Nor does a snapshot show it, or a sandbox that is made of one.
    let snapshot = sandbox.snapshot().unwrap();
    let fork = Sandbox::create(snapshot.config()).unwrap();
    for sandbox in [&sandbox, &fork] {
        assert!(!sandbox.files().exists(private).unwrap());
        assert_eq!(shell(sandbox, "cat /usr/local/new"), "new\n");
    }
}

#[test]
fn what_was_private_and_is_gone_is_in_no_ones_way() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("had-private-files");
    }
}

/// The part of it where the host loses them.
pub(crate) fn had_private_files(state: &Path) {
    let (below, shut) = ("/usr/local/some/below", "/usr/local/some/below/shut");
    file(shut, "secret\n", 0o600);
    let sandbox = sandbox_in(state);
    assert!(sandbox.files().exists(below).unwrap() && !sandbox.files().exists(shut).unwrap());
    // Of what changes so deep nothing is seen from above.
    fs::remove_dir_all(below).unwrap();
    assert_eq!(shell(&sandbox_in(Path::new("/other")), "echo made"), "made\n");
}

/// The links in `/usr` that lead nowhere, through `/etc` or not.
const DANGLING: &str = "find /usr -xdev -xtype l 2>/dev/null | sort";

#[test]
fn what_programs_link_to_is_inside_or_the_image_says_why_not() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let outside = Command::new("sh").args(["-c", DANGLING]).output().unwrap().stdout;
    let outside = String::from_utf8(outside).unwrap();
    let image = HostImage::of(Path::new("/")).unwrap();
    for link in shell(&sandbox, DANGLING).lines() {
        if outside.lines().any(|other| other == link) {
            continue;
        }
        // What leads to /var and the like is no part of the promise.
        let target = fs::canonicalize(link).unwrap();
        let is_said = image.left_out.iter().any(|(path, _)| target.starts_with(path));
        assert!(is_said || !target.starts_with("/etc"), "{link} leads to {target:?}");
    }
    for (path, why) in &image.left_out {
        let is_there = format!("test -e {0:?} || test -L {0:?}", path);
        let own = ["/etc/os-release", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
        let is_own = own.iter().any(|own| path.starts_with(own));
        let status = sandbox.command("sh").args(["-c", &is_there]).status().unwrap();
        assert!(is_own || !status.success(), "{path:?} is inside, and left out: {why}");
    }
    // What is listed is what is there, with the content that it has outside.
    let is_file = |path: &&PathBuf| fs::symlink_metadata(path).unwrap().is_file();
    let files: Vec<_> = image.taken.iter().filter(is_file).collect();
    assert!(!files.is_empty(), "{:?}", image.taken);
    for path in files {
        let content = sandbox.files().read_file(path).unwrap();
        assert_eq!(content, fs::read(path).unwrap(), "{path:?}");
    }
}

#[test]
fn programs_find_what_they_read_in_etc() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let python = |script: &str| {
        let output = sandbox.command("python3").args(["-c", script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let here = |path: &str| Path::new(path).exists();
    if here("/etc/services") && here("/etc/protocols") {
        let script =
            "import socket; print(socket.getservbyname('https'), socket.getprotobyname('udp'))";
        assert_eq!(python(script), "443 17\n");
    }
    let count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))";
    let outside = Command::new("python3").args(["-c", count]).output().unwrap();
    assert_eq!(python(count).as_bytes(), outside.stdout);
    if here("/etc/login.defs") {
        assert!(shell(&sandbox, "grep UID_MIN /etc/login.defs").contains("UID_MIN"));
    }
    // The programs that a name stands for.
    if here("/etc/alternatives/awk") {
        assert_eq!(shell(&sandbox, "awk 'BEGIN { print 6 * 7 }'"), "42\n");
    }
}

#[test]
fn no_secret_of_etc_is_inside_though_a_link_leads_to_it() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("has-secrets");
    }
}

/// The part of it where the host has them.
pub(crate) fn has_secrets(state: &Path) {
    file("/etc/linked/public", "public\n", 0o644);
    symlink("/etc/linked", "/usr/local/linked").unwrap();
    file("/etc/linked/closed", "secret\n", 0o640);
    file("/etc/linked/key", "-----BEGIN PRIVATE KEY-----\nsecret\n", 0o644);
    file("/etc/linked/token", "export CI_TOKEN=secret\n", 0o644);
    file("/etc/linked/csh", "setenv CI_TOKEN secret\n", 0o644);
    file("/etc/linked/fish", "set -gx CI_TOKEN secret\n", 0o644);
    file("/etc/linked/lower", "db_pass=secret\n", 0o644);
    file("/etc/linked/speaks-of-one", "# set PASSWORD=foo\n", 0o644);
    let fifo = Path::new("/etc/linked/fifo");
    nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    file("/root/file", "secret\n", 0o644);
    file("/etc/shadow", "secret\n", 0o644);
    symlink("/root", "/etc/linked/root").unwrap();
    symlink("/etc/shadow", "/etc/linked/shadow").unwrap();
    let sandbox = sandbox_in(state);
    let seen = shell(&sandbox, "cd /usr/local/linked && ls && cat public");
    assert_eq!(seen, "public\nspeaks-of-one\npublic\n");
    assert!(!sandbox.files().exists("/etc/shadow").unwrap());
    assert!(!sandbox.files().exists("/root/file").unwrap());
}

#[test]
fn no_form_of_a_secret_in_etc_is_inside() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("has-forms-of-secrets");
    }
}

/// What stands for a secret.
const MARKER: &str = "7c1c93cd5dmarker";

/// Files of `/etc` as administrators have them, with `MARKER` in the place of the secret.
const SECRETS: [(&str, &str); 52] = [
    ("app/config.yaml", "db:\n  user: me\n  password: MARKER\n"),
    ("app/block.yml", "token: |\n  MARKER\n"),
    ("app/list.yaml", "- name: a\n  api_key: \"MARKER\"\n"),
    ("app/config.json", "{\"user\": \"me\", \"password\": \"MARKER\"}\n"),
    ("app/pretty.json", "{\n  \"clientSecret\": \"MARKER\"\n}\n"),
    ("app/config.toml", "[db]\npassword = \"MARKER\"\n"),
    ("app/config.ini", "[db]\napi_key = MARKER\n"),
    ("app/app.properties", "javax.net.ssl.keyStorePassword=MARKER\n"),
    ("app/settings.xml", "<a><dbPassword type='x'>MARKER</dbPassword></a>"),
    ("app/web.config", "<add password=\"MARKER\" user=\"me\"/>"),
    ("app/env", "export CI_TOKEN=MARKER\n"),
    ("app/url.conf", "upstream = postgres://me:MARKER@db.example/app\n"),
    ("app/credentials.conf", "aws_secret_access_key = MARKER\n"),
    ("app/credentials", "anything MARKER\n"),
    ("app/key.txt", "-----BEGIN OPENSSH PRIVATE KEY-----\nMARKER\n"),
    ("app/rsa", "-----BEGIN RSA PRIVATE KEY-----\nMARKER\n"),
    ("app/pgp.asc", "-----BEGIN PGP PRIVATE KEY BLOCK-----\nMARKER\n"),
    ("app/putty.ppk", "PuTTY-User-Key-File-3: ssh-rsa\nMARKER\n"),
    ("app/host.key", "MARKER"),
    ("app/netrc.conf", "machine host login me password MARKER\n"),
    ("app/.netrc", "MARKER"),
    ("app/pgpass.conf", "localhost:5432:db:me:MARKER\n"),
    ("app/.pgpass", "MARKER"),
    ("app/users", "me:$apr1$abcdefgh$MARKERMARKER\n"),
    ("app/bcrypt", "me:$2y$10$MARKERMARKERMARKERMARKER\n"),
    ("app/.htpasswd", "me:MARKER\n"),
    ("app/htpasswd", "me:MARKER\n"),
    ("app/ldap.ldif", "userPassword: {SSHA}MARKERMARKER\n"),
    ("app/slapd.conf", "rootpw MARKER\n"),
    ("app/nslcd.conf", "bindpw MARKER\n"),
    ("app/wg0.conf", "[Interface]\nPrivateKey = MARKER\n"),
    ("app/wg1.conf", "[Peer]\nPresharedKey = MARKER\n"),
    ("app/krb5.keytab", "MARKER"),
    ("app/keys-of-kerberos", "\u{5}\u{2}\0\0\0\u{8}MARKER"),
    ("app/user-data", "#cloud-config\nchpasswd:\n  list: root:MARKER\n"),
    ("app/auth.conf", "machine packages.example\n  login me\n  password MARKER\n"),
    ("app/pip.conf", "[global]\nindex-url = https://MARKER@packages.example/simple\n"),
    ("app/npmrc", "//registry.example/:_authToken=MARKER\n"),
    ("app/npm-auth", "_auth=MARKER\n"),
    ("app/docker.json", "{\"auths\": {\"r\": {\"auth\": \"MARKER==\"}}}"),
    ("app/kube", "users:\n- user:\n    client-key-data: MARKER\n"),
    ("app/kube-token", "users:\n- user:\n    token: MARKER\n"),
    ("app/snmpd.conf", "rocommunity MARKER 10.0.0.0/8\n"),
    ("app/snmp-user.conf", "createUser me SHA MARKER AES MARKER\n"),
    ("app/wpa.conf", "network={\n\tssid=\"x\"\n\tpsk=\"MARKER\"\n}\n"),
    ("app/interfaces", "iface wlan0 inet dhcp\n  wpa-psk MARKER\n"),
    ("app/rndc.conf", "key \"rndc\" {\n\tsecret \"MARKER\";\n};\n"),
    ("app/ipsec.conf", "192.0.2.1 %any : PSK \"MARKER\"\n"),
    ("app/nginx.conf", "proxy_set_header Authorization \"Bearer MARKER\";\n"),
    ("app/redis.conf", "requirepass MARKER\n"),
    ("app/ntp.txt", "1 SHA1 MARKER\n"),
    ("ssl/private/site.pem", "MARKER"),
];

/// Files that name no secret, or another's, with `MARKER` in them: for the same links.
const PUBLIC: [(&str, &str); 6] = [
    ("app/public", "MARKER\n"),
    ("app/passwords.txt", "# password = MARKER\nask for the password: MARKER\n"),
    ("app/pam", "password requisite pam_MARKER.so\n"),
    ("app/known.conf", "PublicKey = MARKER\npublic_key: MARKER\n"),
    ("app/cert.pem", "-----BEGIN CERTIFICATE-----\nMARKER\n-----END CERTIFICATE-----\n"),
    ("app/script", "password=$MARKER\ntoken: $MARKER\n"),
];

/// The part of it where the host has them all.
pub(crate) fn has_forms_of_secrets(state: &Path) {
    // As links of administrators open them, a directory as a whole.
    symlink("/etc/app", "/usr/local/app").unwrap();
    symlink("/etc/ssl", "/usr/local/ssl").unwrap();
    for (name, content) in SECRETS.iter().chain(&PUBLIC) {
        file(&format!("/etc/{name}"), &content.replace("MARKER", MARKER), 0o644);
    }
    // Read by a shell, of whose programs there are few.
    let search = "search() {
            for file in \"$1\"/* \"$1\"/.[!.]*; do
                if [ -d \"$file\" ]; then
                    search \"$file\"
                elif [ -f \"$file\" ]; then
                    case $(cat \"$file\") in *7c1c93cd5dmarker*) echo \"$file\" ;; esac
                fi
            done
        }
        search /etc";
    let sandbox = sandbox_in(state);
    let found: Vec<String> = shell(&sandbox, search).lines().map(str::to_owned).collect();
    let mut expected: Vec<String> = PUBLIC.iter().map(|(name, _)| format!("/etc/{name}")).collect();
    expected.sort();
    assert_eq!(found, expected);
    // The control: outside, all of them are found.
    let outside = Command::new("sh").args(["-c", search]).output().unwrap().stdout;
    let outside = String::from_utf8(outside).unwrap();
    assert_eq!(outside.lines().count(), SECRETS.len() + PUBLIC.len(), "{outside}");
}

#[test]
fn what_is_mounted_in_usr_and_etc_is_waited_for_by_no_one() {
    if needs(&[Need::Root, Need::Fuse]) {
        on_a_host_of_its_own("has-mounts-that-hang");
    }
}

/// The part of it where the host has file systems whose server does not answer.
pub(crate) fn has_mounts_that_hang(state: &Path) {
    file("/usr/local/covered/closed", "secret\n", 0o600);
    file("/usr/local/covered/public", "content\n", 0o644);
    file("/etc/linked/public", "content\n", 0o644);
    symlink("/etc/linked", "/usr/local/linked").unwrap();
    let _servers: Vec<_> = [
        "/usr/local/share",
        "/usr/local/covered",
        "/etc/fonts",
        "/etc/linked/below",
        "/etc/pki/tls",
    ]
    .into_iter()
    .map(mount_that_hangs)
    .collect();
    // What a link leads to, too.
    symlink("/etc/pki/tls/certs", "/etc/linked/certs").unwrap();
    let sandbox = sandbox_in(state);
    let seen =
        shell(&sandbox, "ls /usr/local/covered /etc/linked; test -e /etc/fonts || echo none");
    // Of what is covered there is inside what anyone could have read.
    assert_eq!(seen, "/etc/linked:\npublic\n\n/usr/local/covered:\npublic\nnone\n");
    let image = HostImage::of(Path::new("/")).unwrap();
    for place in ["/etc/fonts", "/etc/linked/below", "/etc/pki/tls"] {
        let left_out = (PathBuf::from(place), LeftOut::Mount);
        assert!(image.left_out.contains(&left_out), "{place}: {:?}", image.left_out);
    }
}

/// Mounts a file system of which no one answers for the files.
fn mount_that_hangs(place: &str) -> fs::File {
    fs::create_dir_all(place).unwrap();
    let server = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("fuse"), place, Some("fuse"), flags, Some(&*options)).unwrap();
    server
}

#[test]
fn with_the_hosts_network_its_names_are_known() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("has-hosts");
    }
}

/// The part of it where the host has names of its own.
pub(crate) fn has_hosts(state: &Path) {
    const NAME: &str = "192.0.2.7\tdb.internal\n";
    let read = |network, image| {
        let state_directory = Some(state.to_owned());
        let hostname = Some("box".to_owned());
        let config = Config { state_directory, network, image, hostname, ..Config::default() };
        shell(&Sandbox::create(config).unwrap(), "cat /etc/hosts")
    };
    file("/etc/hosts", NAME, 0o644);
    let image = Path::new("/image");
    for image in [Image::host(), Image::directory(image)] {
        let hosts = read(Network::Host, image.clone());
        assert!(hosts.contains(NAME) && hosts.ends_with("127.0.0.1\tbox\n"), "{hosts}");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"), "{hosts}");
        // Where that is not so, they are of no use.
        assert!(!read(Network::None, image).contains("db.internal"));
    }
    file("/image/etc/hosts", "own\n", 0o644);
    assert_eq!(read(Network::Host, Image::directory(image)), "own\n");
    file("/etc/hosts", NAME, 0o600);
    assert!(!read(Network::Host, Image::host()).contains("db.internal"));
}

#[test]
fn a_change_of_etc_is_seen_by_the_next_sandbox() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("changes-etc");
    }
}

/// The part of it where the host changes.
pub(crate) fn changes_etc(state: &Path) {
    let new = "/etc/ld.so.conf.d/new.conf";
    assert!(!sandbox_in(state).files().exists(new).unwrap());
    file(new, "# new\n", 0o644);
    assert!(sandbox_in(state).files().exists(new).unwrap());
    fs::remove_file(new).unwrap();
    assert!(!sandbox_in(state).files().exists(new).unwrap());
    // One in place, of a file whose directory stays as it is, is seen a little later.
    file("/etc/profile", "one\n", 0o644);
    assert_eq!(shell(&sandbox_in(state), "cat /etc/profile"), "one\n");
    file("/etc/profile", "other\n", 0o644);
    let is_seen = || shell(&sandbox_in(state), "cat /etc/profile") == "other\n";
    assert!(within(Duration::from_secs(60), is_seen));
}

#[test]
fn root_inside_writes_to_usr_local_whoever_made_the_sandbox() {
    if !needs(&[]) {
        return;
    }
    let user = OrdinaryUser::new();
    let script = "set -e; cd /usr/local; echo new > new; mkdir -p bin share/man/man1
        echo new > share/man/man1/new.1
        printf '#!/bin/sh\necho ran\n' > bin/adl-new; chmod 755 bin/adl-new; adl-new
        mv bin/adl-new bin/adl-other; rm new; ls -d new 2>/dev/null || adl-other";
    assert_eq!(user.run(&["sh", "-c", script]), "ran\nran\n");
    assert!(!Path::new("/usr/local/bin/adl-other").exists());
    // What is there is there still.
    let names = "ls /usr/local /usr/local/bin";
    let outside = Command::new("sh").args(["-c", names]).output().unwrap();
    assert_eq!(user.run(&["sh", "-c", names]).as_bytes(), outside.stdout);
}

#[test]
fn a_dangling_resolv_conf_is_none() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = Sandbox::create(Config { network: Network::Host, ..home.config() }).unwrap();
    // The host's may be a link, as that of systemd-resolved.
    if let Ok(content) = fs::read("/etc/resolv.conf") {
        assert_eq!(sandbox.files().read_file("/etc/resolv.conf").unwrap(), content);
    }
    assert_eq!(shell(&sandbox, "test -L /etc/resolv.conf && echo link || echo none"), "none\n");
}

#[test]
fn the_documents_have_the_rule_that_the_image_is_made_by() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let text = fs::read_to_string(repository().join("docs/host-image.md")).unwrap();
    let rule = HostImage::rule();
    let how = "cargo run --example host_image -- --rule";
    assert!(text.contains(&rule), "docs/host-image.md is without what this prints: {how}\n{rule}");
}
