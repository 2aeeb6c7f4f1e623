//! Who knows docker finds its words: they do the same here, or are told with what does.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::resource::{Resource, getrlimit};

use crate::harness::{
    Home, Need, OrdinaryUser, adl, adl_command, needs, repository, stderr, succeeds,
};
use crate::images;

/// Runs `adl run` with arguments; what the command wrote to stdout.
#[track_caller]
fn run(home: &Home, arguments: &[&str]) -> String {
    succeeds(adl_command(&home.state()).arg("run").args(arguments))
}

/// Runs adl with arguments that are refused; what it says.
#[track_caller]
fn refused(home: &Home, arguments: &[&str]) -> String {
    told(adl_command(&home.state()).args(arguments).output().unwrap(), arguments)
}

#[track_caller]
fn told(output: Output, arguments: &[&str]) -> String {
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("adl: "), "{arguments:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    stderr
}

#[test]
fn options_of_docker_do_what_they_do_there() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    let source = source.to_str().unwrap();
    let writes = "cat /m/file; touch /m/new && rm /m/new && echo written";
    for (mount, expected) in [
        (format!("-v={source}:/m:ro,z"), "content\n"),
        (format!("-v={source}:/m:Z"), "content\nwritten\n"),
        (format!("-v={source}:/m:ro,cached"), "content\n"),
        (format!("-v={source}:/m:delegated"), "content\nwritten\n"),
        (format!("-v={source}:/m:consistent,rw"), "content\nwritten\n"),
        (format!("--mount=type=bind,src={source},dst=/m,ro,consistency=cached"), "content\n"),
        (format!("--mount=type=bind,source={source},target=/m,readonly"), "content\n"),
        (format!("--mount=type=bind,\"src={source}\",dst=/m"), "content\nwritten\n"),
        (format!("--mount=source={source},destination=/m,ro=false"), "content\nwritten\n"),
    ] {
        let output = adl_command(&home.state())
            .args(["run", &mount, "--", "sh", "-c", writes])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{mount}: {output:?}");
    }
    for tmpfs in [
        "--tmpfs=/t:size=1mb,mode=1777",
        "--tmpfs=/t:rw,exec,nosuid,nodev,size=0.001g",
        "--mount=type=tmpfs,target=/t,tmpfs-size=1MiB",
    ] {
        let shown = run(&home, &[tmpfs, "--", "stat", "-fc", "%T %b", "/t"]);
        let blocks = shown.trim().strip_prefix("tmpfs ").and_then(|blocks| blocks.parse().ok());
        assert!(blocks.is_some_and(|blocks: u64| (256..=263).contains(&blocks)), "{tmpfs} {shown}");
    }
    if nix::unistd::geteuid().is_root() {
        // The example of docker's own manual.
        let tmpfs = "--tmpfs=/run:rw,noexec,nosuid,size=65536k";
        let script =
            "grep ' /run ' /proc/mounts; df --output=size /run; cp /bin/true /run; /run/true";
        let output = adl_command(&home.state())
            .args(["run", tmpfs, "--", "sh", "-c", script])
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        let has = |words: &[&str]| words.iter().all(|word| shown.contains(word));
        assert!(has(&["rw,", "noexec", "nosuid", "nodev", "65536\n"]), "{shown}");
        assert_eq!(output.status.code(), Some(126), "{}", stderr(&output));
        for (option, script, expected) in [
            ("--tmpfs=/t:mode=750,uid=5,gid=6", "stat -c '%a %u %g' /t", "750 5 6\n"),
            ("--mount=type=tmpfs,dst=/t,tmpfs-mode=0700", "stat -c %a /t", "700\n"),
            ("--mount=type=tmpfs,dst=/t,readonly", "touch /t/a || echo no", "no\n"),
            ("--tmpfs=/t:ro,noexec", "touch /t/a || echo no", "no\n"),
        ] {
            assert_eq!(run(&home, &[option, "--", "sh", "-c", script]), expected, "{option}");
        }
    }
    for (arguments, expected) in [
        (&["--rm", "--init", "--", "echo", "a"][..], "a\n"),
        (&["--rm=true", "--init=true", "--", "echo", "a"], "a\n"),
        (&["--entrypoint", "echo", "host", "a", "-n"], "a -n\n"),
        (&["--entrypoint", "echo"], "\n"),
        (&["--entrypoint=echo", "--", "--rm"], "--rm\n"),
        (&["--entrypoint", "", "host", "echo", "a"], "a\n"),
        (&["--pids-limit", "-1", "--", "echo", "a"], "a\n"),
        (&["--net", "none", "--security-opt", "no-new-privileges", "--", "echo", "a"], "a\n"),
        (&["--timeout", "1m30s", "--", "echo", "a"], "a\n"),
        (&["--oom-score-adj", "300", "--", "cat", "/proc/self/oom_score_adj"], "300\n"),
        (&["--hostname", "box.example.org", "--", "uname", "-n"], "box.example.org\n"),
        (
            &["--device", "/dev/null:rwm", "--", "stat", "-c", "%F", "/dev/null"],
            "character special file\n",
        ),
        (&["--device", "/dev/zero:/dev/nought:rwm", "--", "head", "-c0", "/dev/nought"], ""),
    ] {
        assert_eq!(run(&home, arguments), expected, "{arguments:?}");
    }
    // A place in the directory of the caller, as docker has it.
    let from_there = |volume: &str| {
        let mut adl = adl_command(&home.state());
        succeeds(adl.current_dir(source).args(["run", "-v", volume, "--", "ls", "/m"]))
    };
    assert_eq!([from_there(".:/m"), from_there("./file:/m")], ["file\n", "/m\n"]);
}

#[test]
fn where_docker_would_mean_something_else_nothing_runs() {
    let home = Home::new();
    // A host name by -h, which is help here.
    for arguments in [
        &["run", "-h", "box", "--", "true"][..],
        &["run", "-hbox", "--", "true"],
        &["run", "-ith", "box"],
    ] {
        assert!(refused(&home, arguments).contains("`--hostname NAME`"), "{arguments:?}");
    }
    for arguments in [&["run", "-h"][..], &["run", "-h", "--rm"], &["run", "--help", "box"]] {
        let help = succeeds(adl_command(&home.state()).args(arguments));
        assert!(help.contains("Usage: adl run"), "{arguments:?}: {help}");
    }
    // A volume that it keeps, and not a directory of that name here.
    fs::create_dir(home.path("data")).unwrap();
    for option in [
        "-v=data:/d",
        "-v=data:/d:ro",
        "--mount=type=volume,source=data,target=/d",
        "--mount=source=data,target=/d",
        "--mount=type=bind,source=data,target=/d",
    ] {
        let mut adl = adl_command(&home.state());
        let output =
            adl.current_dir(home.path("")).args(["run", option, "--", "true"]).output().unwrap();
        assert!(told(output, &[option]).contains("write \"./data\""), "{option}");
    }
    // A protection is not to be switched off for want of a profile.
    for (option, words) in [
        ("seccomp=x.json", "no profile"),
        ("seccomp=builtin", "no profile"),
        ("apparmor=docker-default", "aa-exec"),
        ("apparmor:unconfined", "aa-exec"),
        ("label=disable", "SELinux"),
        ("label:type:x", "SELinux"),
        ("systempaths=unconfined", "/proc"),
        ("no-new-privileges=false", "in any case"),
    ] {
        let told = refused(&home, &["run", "--security-opt", option, "--", "true"]);
        assert!(told.contains(words) && told.contains(option), "{option}: {told}");
        assert!(!told.contains("unconfined'") && !told.contains("similar"), "{option}: {told}");
    }
}

#[test]
fn limits_of_a_process_have_dockers_names_and_units() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let limits = run(
        &home,
        &[
            "--ulimit=nofile=64:128",
            "--ulimit=cpu=10",
            "--ulimit=fsize=4096:8192",
            "--ulimit=stack=1048576",
            "--ulimit=memlock=65536",
            "--ulimit=core=0",
            "--ulimit=sigpending=10",
            "--ulimit=nproc=100",
            "--ulimit=msgqueue=1000",
            "--ulimit=data=1000000000:2000000000",
            "--ulimit=locks=5",
            "--ulimit=rss=6",
            "--ulimit=rttime=7",
            "--ulimit=nice=0",
            "--ulimit=rtprio=0",
            "--",
            "cat",
            "/proc/self/limits",
        ],
    );
    for (name, soft, hard) in [
        ("Max open files", "64", "128"),
        ("Max cpu time", "10", "10"),
        ("Max file size", "4096", "8192"),
        ("Max stack size", "1048576", "1048576"),
        ("Max locked memory", "65536", "65536"),
        // No dump, and no program that gets one either.
        ("Max core file size", "1", "1"),
        ("Max pending signals", "10", "10"),
        ("Max processes", "100", "100"),
        ("Max msgqueue size", "1000", "1000"),
        ("Max data size", "1000000000", "2000000000"),
        ("Max file locks", "5", "5"),
        ("Max resident set", "6", "6"),
        ("Max realtime timeout", "7", "7"),
        ("Max nice priority", "0", "0"),
        ("Max realtime priority", "0", "0"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let found: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
        assert_eq!(found, [soft, hard], "{line}");
    }
    // As much as the caller may have, whatever is given where nothing is said.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limit = format!("--ulimit=nofile={most}");
    let given = run(&home, &[&limit, "--", "sh", "-c", "ulimit -n; ulimit -Hn"]);
    assert_eq!(given, format!("{most}\n{most}\n"));
    let given = run(&home, &["--", "sh", "-c", "ulimit -Hn"]);
    assert_eq!(given, format!("{}\n", most.min(65_536)));
    for (limit, named) in [
        ("nofile=2:1", "soft"),
        ("files=1", "nofile"),
        ("nofile", "NAME=SOFT"),
        ("nofile=1k", "whole number"),
        ("rtprio=1", "no more than 0"),
        ("msgqueue=-1", "819200"),
        ("nofile=18446744073709551614", "no more than"),
    ] {
        let told = refused(&home, &["run", "--ulimit", limit, "--", "true"]);
        assert!(told.contains("--ulimit") && told.contains(named), "{limit}: {told}");
    }
}

#[test]
fn what_docker_has_and_adl_has_not_is_told_with_what_there_is() {
    let home = Home::new();
    for (arguments, instead) in [
        (&["run", "-P", "nginx"][..], "-p 0:80"),
        (&["run", "--expose=80", "nginx"], "-p 8080:80"),
        (&["run", "--link", "db", "nginx"], "--forward"),
        (&["run", "-d", "--", "true"], "systemd-run"),
        (&["run", "-itd", "--", "true"], "systemd-run"),
        (&["run", "--privileged", "--", "true"], "--cap-add"),
        (&["run", "--gpus", "all", "--", "true"], "--device"),
        (&["run", "--restart=always", "--", "true"], "systemd"),
        (&["run", "--memory-swap", "1g", "--", "true"], "--swap"),
        (&["run", "--cpu-shares", "512", "--", "true"], "--cpu-weight"),
        (&["run", "--pid=host", "--", "true"], "namespaces"),
        (&["run", "--add-host", "a:b", "--", "true"], "/etc/hosts"),
        (&["run", "--pull=never", "absent:1"], "adl image pull"),
        (&["run", "--domainname", "example.org", "--", "true"], "--hostname"),
        (&["run", "--network", "bridge", "--", "true"], "`host`"),
        (&["run", "-c", "512", "--", "true"], "--cpu-weight"),
        (&["shell", "-c", "true"], "'-- -c'"),
        (&["shell", "--privileged"], "--cap-add"),
        (&["run", "--image", "snapshot:absent", "true"], "adl snapshot ls"),
        (&["exec", "x", "true"], "adl run"),
        (&["ps"], "adl gc"),
        (&["pull", "debian"], "adl image pull"),
        (&["images"], "adl image ls"),
        (&["rmi", "debian"], "`adl image ls`, `inspect` and `rm`"),
        (&["load"], "adl image import"),
        (&["build"], "adl image import"),
        (&["cp", "a", "b"], "--copy-in"),
        (&["commit", "a", "b"], "--snapshot"),
        (&["info"], "adl doctor"),
        (&["run", "Debian"], "capital letters"),
        (&["run", "a:b:c"], "no tag"),
        (&["system", "df"], "du -sh"),
        (&["system", "prune"], "adl gc"),
        (&["container", "ls"], "adl run"),
        (&["volume", "ls"], "--snapshot"),
        (&["network", "ls"], "--network host"),
        (&["run", "--runtime", "runsc", "--", "true"], "is the runtime"),
        (&["run", "--platform", "linux/arm64", "--", "true"], "x86_64"),
        (&["run", "--secret", "id=x", "--", "true"], "/run/secrets"),
        (&["run", "--ro", "--", "true"], "--read-only"),
        (&["run", "--json", "--", "true"], "--result FILE"),
        (&["run", "--cap-add", "ptrace", "--", "true"], "SYS_PTRACE"),
        (&["run", "--cap-add", "CAP_Admin", "--", "true"], "SYS_ADMIN"),
        (&["run", "--rm=false", "--", "true"], "always"),
        (&["run", "--copy-out", "/etc/passwd:-", "--", "true"], "tar -cf -"),
        (&["run", "--mount", "type=volume,source=data,target=/d", "--", "true"], "./data"),
        (&["run", "--mount", "type=bind,source=/,target=/d,sweet=1", "--", "true"], "`sweet`"),
    ] {
        let told = refused(&home, arguments);
        assert!(told.contains(instead), "{arguments:?}: {told}");
    }
    if !needs(&[]) {
        return;
    }
    let output =
        adl_command(&home.state()).args(["run", "-i", "--", "debian", "bash"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(stderr(&output).contains("adl run IMAGE"), "{output:?}");
    // Where it is a path, or an image was named, it was none.
    let image = home.path("image");
    images::small(&image);
    let image = ["--image", image.to_str().unwrap(), "absent"];
    for arguments in [&image[..], &["--", "./absent"], &["--", "/absent"]] {
        let output = adl_command(&home.state()).arg("run").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(127));
        assert!(!stderr(&output).contains("adl run IMAGE"), "{output:?}");
    }
}

#[test]
fn an_image_in_another_form_is_told_what_it_is() {
    if !needs(&[Need::Program("tar"), Need::Program("gzip"), Need::Program("xz")]) {
        return;
    }
    let home = Home::new();
    let layout = home.path("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("blobs/sha256").join("0123456789abcdef".repeat(4)), "a layer").unwrap();
    fs::write(layout.join("index.json"), r#"{"schemaVersion":2}"#).unwrap();
    fs::write(layout.join("oci-layout"), "{}").unwrap();
    let tar = |top: &Path, names: &[&str]| {
        Command::new("tar").args(["-cf", "-", "-C"]).arg(top).args(names).output().unwrap().stdout
    };
    let saved = tar(&layout, &["blobs", "index.json", "oci-layout"]);
    let image = home.path("image");
    images::small(&image);
    fs::write(home.path("saved.tar"), &saved).unwrap();
    fs::write(home.path("dotted.tar"), tar(&layout, &["./oci-layout", "./blobs"])).unwrap();
    fs::write(home.path("plain.tar"), tar(&image, &["."])).unwrap();
    for (program, plain, name) in
        [("gzip", "saved.tar", "saved.tar.gz"), ("xz", "plain.tar", "plain.tar.xz")]
    {
        let compress = Command::new(program).args(["-c1"]).arg(home.path(plain)).output();
        fs::write(home.path(name), compress.unwrap().stdout).unwrap();
    }
    fs::write(home.path("text"), "no archive").unwrap();
    for (name, words) in [
        ("layout", ["neither an index", "layout"]),
        ("saved.tar", ["neither an index", "saved"]),
        ("dotted.tar", ["neither an OCI image layout", "docker save"]),
        ("saved.tar.gz", ["neither an index", "saved"]),
        ("plain.tar.xz", ["xz", "unxz"]),
        ("text", ["not a tar archive", "text"]),
    ] {
        let path = home.path(name);
        let told = refused(&home, &["run", "--image", path.to_str().unwrap(), "true"]);
        assert!(words.iter().all(|word| told.contains(word)), "{name}: {told}");
        assert!(told.contains(name), "{name}: {told}");
    }
    // One that has such names in it is an image all the same.
    fs::write(image.join("index.json"), "{}").unwrap();
    fs::write(image.join("manifest.json"), "{}").unwrap();
    fs::write(home.path("plain.tar"), tar(&image, &["index.json", "manifest.json", "."])).unwrap();
    for name in ["image", "plain.tar"] {
        let image = home.path(name);
        assert!(run(&home, &["--image", image.to_str().unwrap(), "ls", "/"]).contains("bin"));
    }
}

#[test]
fn an_error_says_what_was_wrong_and_what_to_do() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let (file, directory) = (home.path("file"), home.path("directory"));
    fs::write(&file, "").unwrap();
    fs::create_dir(&directory).unwrap();
    let file_on = |target: &str| format!("{}:{target}", file.display());
    let directory_on = |target: &str| format!("{}:{target}", directory.display());
    for (arguments, words) in [
        (&["--timeout", "0"][..], &["above zero", "leave it out"][..]),
        (&["--timeout", "soon"], &["1m30s"]),
        (&["--swap", "1g"], &["--memory 512m"]),
        (&["--upper", "memory:64"], &["--upper memory:64 is too small"]),
        (&["--oom-score-adj", "-5"], &["0 to 1000"]),
        (&["--sysctl", "net.core.no_such_thing=1"], &["\"net.core.no_such_thing\"", "sysctl -a"]),
        (&["--sysctl", "net.core.somaxconn=x"], &["\"net.core.somaxconn\"", "other values"]),
        (&["-w", "/no/such"], &["\"/no/such\"", "mkdir -p"]),
        (&["-w", ""], &["leave it out"]),
        (&["--device", "/dev/null:r"], &["`rwm`"]),
        (&["--memory", "64"], &["less than 1m", "512m"]),
        (&["--memory", "1k"], &["less than 1m", "512m"]),
        (&["--pids-limit", "0"], &["-1 for no limit"]),
        (&["--pids-limit", "-2"], &["-1 for no limit"]),
        (&["-v", &file_on("/etc")], &["\"/etc\"", "directory", "file"]),
        (&["-v", &directory_on("/etc/passwd")], &["\"/etc/passwd\"", "directory", "file"]),
        (&["-v", &directory_on("/proc")], &["/proc"]),
        (&["-v", "/no/such/place:/x"], &["/no/such/place", "make it first"]),
        (&["-v", &directory_on("/x:rslave")], &["rslave", "rprivate", "before"]),
        (&["-v", &directory_on("/x:noexec")], &["noexec", "leave it out"]),
        (&["--tmpfs", "/x:suid"], &["suid", "nosuid", "--device"]),
        (&["--tmpfs", "/x:nr_inodes=5"], &["nr_inodes=5", "mode=MODE"]),
        (&["--tmpfs", "/x:size=50%"], &["50%", "64m"]),
        (&["--user", "nosuch"], &["nosuch", "by number"]),
        (&["--ids", "many"], &["--ids", "whole number"]),
        (&["-p", "80"], &["'80' for '--publish", "[ADDR:]PORT:PORT", "0 for any"]),
        (&["-p", "53:53/udp"], &["\"udp\"", "TCP"]),
        (&["--publish=8000-8010:80"], &["8000-8010", "range"]),
        (&["-p", "localhost:8080:80"], &["localhost", "127.0.0.1"]),
        (&["-p", "::1:8080:80"], &["[::1]"]),
        (&["-p", "192.0.2.1:0:80"], &["--publish", "192.0.2.1", "ip address"]),
        (&["--forward", "5432"], &["'5432' for '--forward", "PORT:HOST:PORT"]),
        (&["--network", "host", "-p", "8080:80"], &["--network host", "already"]),
    ] {
        let told = refused(&home, &[&["run"], arguments, &["--", "true"]].concat());
        assert!(words.iter().all(|word| told.contains(word)), "{arguments:?}: {told}");
    }
    let words = refused(&home, &["run", "--upper", "memory:64", "--", "true"]);
    assert!(!words.contains("ADL_STATE_DIR"), "{words}");
    let words = refused(&home, &["run", "--ids", "10", "--", "true"]);
    assert!(words.contains("fewer than the 65536"), "{words}");
    // One that the kernel has for all of the machine.
    let words = refused(&home, &["run", "--sysctl", "net.core.rmem_max=1", "--", "true"]);
    assert!(words.contains("\"net.core.rmem_max\""), "{words}");
    assert!(words.contains("sysctl -w") || words.contains("sysctl -a"), "{words}");
    if nix::unistd::geteuid().is_root() {
        let told = refused(&home, &["run", "-u", "70000", "--", "true"]);
        assert!(told.contains("65535") && !told.contains("os error"), "{told}");
    }
    let mut adl = adl_command(Path::new("/dev/null/state"));
    let told = told(adl.args(["run", "--", "true"]).output().unwrap(), &[]);
    assert!(told.contains("/dev/null/state") && told.contains("ADL_STATE_DIR"), "{told}");
}

#[test]
fn where_there_is_no_cgroup_what_there_is_without_is_told() {
    if !needs(&[Need::Root, Need::Userns]) {
        return;
    }
    let user = OrdinaryUser::new();
    for limit in [["--memory", "64m"], ["--cpus", "1"], ["--cpu-time", "10"]] {
        let adl = user.adl().as_os_str().to_owned();
        let output = user.command(adl).arg("run").args(limit).args(["--", "true"]).output();
        let told = told(output.unwrap(), &limit);
        assert!(told.contains("--ulimit cpu=, data=, nproc="), "{limit:?}: {told}");
    }
}

#[test]
fn on_the_network_of_the_host_low_ports_are_not_for_the_sandbox() {
    if !needs(&[Need::Root, Need::Program("perl")]) {
        return;
    }
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim() != "1024" {
        return;
    }
    let home = Home::new();
    let listen = "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die;
                  print bind($s, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) ? 'bound' : \"$!\"";
    for (network, port, expected) in
        [("host", "81", "Permission denied"), ("none", "81", "bound"), ("host", "0", "bound")]
    {
        let options = ["--network", network, "--", "perl", "-e", listen, port];
        assert_eq!(run(&home, &options), expected, "{network} {port}");
    }
}

#[test]
fn a_full_disk_is_told_with_what_makes_room() {
    if !needs(&[Need::Root, Need::Program("unshare"), Need::Program("mount")]) {
        return;
    }
    let home = Home::new();
    let full = home.path("full");
    fs::create_dir(&full).unwrap();
    // In a mount namespace of its own, with which it goes.
    let script = "mount -t tmpfs -o size=64k,mode=700 tmpfs \"$0\" && head -c 1m /dev/zero \
                  2>/dev/null >\"$0/file\"; exec \"$1\" --state-dir \"$0\" run -- true";
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", script]).arg(&full).arg(adl());
    let told = told(unshare.output().unwrap(), &[]);
    for words in ["`adl gc`", "`adl snapshot ls`", "--state-dir"] {
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn a_volume_with_a_mount_in_it_that_maps_no_ids_names_that_mount() {
    if !needs(&[Need::Root, Need::Program("unshare"), Need::Program("mount")]) {
        return;
    }
    let home = Home::new();
    let volume = home.path("volume");
    let inner = volume.join("an inner one");
    fs::create_dir_all(&inner).unwrap();
    // In a mount namespace of its own, with which it goes.
    let script = "mount -t proc proc \"$0/an inner one\" && exec \"$1\" run -v \"$0:/x$2\" -- true";
    let try_as = |mode: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "sh", "-c", script]).arg(&volume).arg(adl()).arg(mode);
        unshare.env("ADL_STATE_DIR", home.state()).output().unwrap()
    };
    let told = told(try_as(":ro"), &[]);
    assert!(told.contains(&format!("{inner:?}")), "{told}");
    assert!(told.contains("below the volume") && told.contains("copied on write"), "{told}");
    assert_eq!(try_as(":cow").status.code(), Some(0));
}

#[test]
fn messages_have_no_words_of_the_library_that_the_command_line_lacks() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    visit(&repository().join("runtime/src"), &mut |path, text| {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in (1..).zip(code.lines()) {
            let line = line.trim_start();
            if line.starts_with("//") || line.starts_with("#[") {
                continue;
            }
            for text in line.split('"').skip(1).step_by(2) {
                looked_at += 1;
                // As in `Upper::Memory`.
                let names_a_type =
                    text.split(|c: char| !c.is_alphanumeric() && c != ':').any(|word| {
                        word.split_once("::").is_some_and(|(of, name)| {
                            of.starts_with(char::is_uppercase)
                                && name.starts_with(char::is_alphabetic)
                        })
                    });
                if names_a_type && !path.ends_with("bin/adl/docker.rs") {
                    wrong.push(format!("{}:{number}: {text}", path.display()));
                }
            }
        }
    });
    assert!(looked_at > 1000, "{looked_at}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Calls a function with each source file below a directory.
fn visit(directory: &Path, found: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn doctor_tells_a_cause_once_and_ends_with_a_verdict() {
    if !needs(&[Need::Userns, Need::Program("unshare")]) {
        return;
    }
    let home = Home::new();
    let report = succeeds(adl_command(&home.state()).arg("doctor"));
    let who = if nix::unistd::geteuid().is_root() { "root" } else { "an ordinary user" };
    let verdict = report.lines().last().unwrap();
    assert!(verdict.starts_with(&format!("adl can run here, as {who}")), "{report}");
    for limited in report.lines().filter_map(|line| line.strip_prefix("limited  ")) {
        let what = limited.split(':').next().unwrap();
        assert!(verdict.contains(what), "{report}");
    }

    let no_place = adl_command(Path::new("/dev/null/state")).arg("doctor").output().unwrap();
    let user = OrdinaryUser::new();
    let no_namespaces = user
        .command("unshare")
        .args(["-U", "-r", "sh", "-c"])
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" doctor")
        .arg(user.adl())
        .output()
        .unwrap();
    for (output, cause, remedy) in [
        (no_place, "Not a directory", "ADL_STATE_DIR"),
        (no_namespaces, "No space left on device", "sysctl -w user.max_user_namespaces="),
    ] {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let report = String::from_utf8(output.stdout).unwrap();
        assert_eq!(report.matches(cause).count(), 1, "{report}");
        assert_eq!(report.matches("MISSING").count(), 1, "{report}");
        assert_eq!(report.matches(remedy).count(), 1, "{report}");
        assert!(!report.contains("see above"), "{report}");
        assert!(report.lines().last().unwrap().starts_with("adl can't run here"), "{report}");
    }
}
