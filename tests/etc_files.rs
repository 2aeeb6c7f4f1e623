//! A sandbox has files of its own in `/etc`, by which localhost and its own name are known.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use adl_runtime::{Access, Config, EtcFiles, Export, Image, Network, RootAccess, Sandbox, Upper};

use crate::file_systems::Mounted;
use crate::harness::{Home, Need, OrdinaryUser, needs, shell, succeeds};
use crate::image_fixtures::{BUSYBOX, UMOCI, layout_of_one, umoci};
use crate::images;

const HOSTNAME: &str = "box.example";

/// A root file system of a few programs, with these files in its `/etc`.
fn image(home: &Home, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let root = home.path(name);
    images::small(&root);
    fs::create_dir(root.join("etc")).unwrap();
    for (file, content) in files {
        fs::write(root.join("etc").join(file), content).unwrap();
    }
    root
}

fn config(home: &Home, image: &Path) -> Config {
    let hostname = Some(HOSTNAME.to_owned());
    Config { image: Image::directory(image), hostname, ..home.config() }
}

const READ: &str = "cd /etc; cat hostname; while read -r line; do echo \"$line\"; done < hosts";
const EXPECTED: &str = "box.example\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
     127.0.0.1\tbox.example\n";

#[test]
fn localhost_and_its_own_name_resolve_in_a_debian_directory() {
    if !needs(&[Need::Debian]) {
        return;
    }
    let home = Home::new();
    let config = config(&home, &images::debian().unwrap());
    // One that is named by the caller may have some itself.
    let sandbox = Sandbox::create(Config { etc_files: EtcFiles::All, ..config }).unwrap();
    assert_eq!(shell(&sandbox, "hostname -f"), "box.example\n");
    assert_eq!(addresses(&sandbox, "hosts $(hostname)"), ["127.0.0.1"]);
    assert_eq!(addresses(&sandbox, "hosts localhost"), ["::1"]);
    // Who asks for addresses of the kinds that there are beside loopback (AI_ADDRCONFIG) gets those
    // of IPv4, as in docker's default network: 198.18.0.1 is there.
    let found = addresses(&sandbox, "ahosts localhost");
    assert!(found.iter().all(|address| address == "127.0.0.1") && !found.is_empty());
}

/// What `getent` finds, with these arguments.
fn addresses(sandbox: &Sandbox, arguments: &str) -> Vec<String> {
    let text = shell(sandbox, format!("getent {arguments}"));
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn localhost_and_its_own_name_resolve_on_the_host_image() {
    if !needs(&[Need::Program("getent")]) {
        return;
    }
    let home = Home::new();
    let hostname = Some(HOSTNAME.to_owned());
    let sandbox = Sandbox::create(Config { hostname, ..home.config() }).unwrap();
    assert_eq!(addresses(&sandbox, "hosts $(hostname)"), ["127.0.0.1"]);
    assert!(addresses(&sandbox, "ahosts localhost").contains(&"127.0.0.1".to_owned()));
}

#[test]
fn the_files_can_be_written_replaced_and_removed_and_are_no_changes() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let root = image(&home, "root", &[("other", "")]);
    fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o751)).unwrap();
    let sandbox = Sandbox::create(config(&home, &root)).unwrap();
    assert_eq!(shell(&sandbox, READ), EXPECTED);
    assert_eq!(sandbox.changes().unwrap(), []);
    assert_eq!(fs::metadata(root.join("etc")).unwrap().mode() & 0o7777, 0o751);
    let stat = sandbox.files().metadata("/etc").unwrap();
    assert_eq!(stat.mode & 0o7777, 0o751);

    let programs = home.sandbox();
    shell(
        &programs,
        "sed -i s/localhost/other/ /etc/hosts; echo more >> /etc/hosts; rm /etc/hostname",
    );
    let text = shell(&programs, "cat /etc/hosts");
    assert!(text.starts_with("127.0.0.1\tother\n") && text.ends_with("more\n"), "{text}");
    assert_eq!(programs.changes().unwrap(), []);
    drop(programs);

    shell(&sandbox, "cd /etc; echo mine >> hosts; rm hostname; mkdir hostname; echo 1 > new");
    let told: Vec<_> = sandbox.changes().unwrap().into_iter().map(|change| change.path).collect();
    assert_eq!(told, [Path::new("/etc/new")]);
    // As new in each life: after a reset, in what goes on from a snapshot, and in a fork.
    let snapshot = sandbox.snapshot().unwrap();
    assert_eq!(shell(&sandbox, READ), EXPECTED);
    assert_eq!(shell(&sandbox, "cat /etc/new"), "1\n");
    let told: Vec<_> = snapshot.changes().unwrap().into_iter().map(|change| change.path).collect();
    assert_eq!(told, [Path::new("/etc/new")]);
    let fork =
        Config { image: snapshot.image(), hostname: Some("fork".to_owned()), ..home.config() };
    let fork = Sandbox::create(fork).unwrap();
    assert_eq!(shell(&fork, "cat /etc/hostname /etc/new"), "fork\n1\n");
    assert_eq!(fork.changes().unwrap(), []);
    for what in [Export::Layer, Export::Tree] {
        let mut archive = Vec::new();
        snapshot.export(what, &mut archive).unwrap();
        // As names are in a header.
        let has = |name: &str| {
            let name = [name.as_bytes(), &[0; 20]].concat();
            archive.windows(name.len()).any(|part| part == name)
        };
        assert!(has("etc/new") && !has("etc/hosts") && !has("etc/hostname"), "{what:?}");
        assert_eq!(has("etc/other"), what == Export::Tree);
    }
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, READ), EXPECTED);
    drop((sandbox, fork));
    snapshot.delete().unwrap();
}

#[test]
fn what_the_image_has_stays_unless_all_are_asked_for() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let root = image(&home, "root", &[("hosts", "mine\n"), ("hostname", "")]);
    let read = |config| {
        let sandbox = Sandbox::create(config).unwrap();
        let text = shell(&sandbox, "cd /etc; cat hosts hostname");
        assert_eq!(sandbox.changes().unwrap(), []);
        shell(&sandbox, "echo more >> /etc/hosts");
        (text, sandbox.changes().unwrap().len())
    };
    let usual = config(&home, &root);
    assert_eq!(read(usual.clone()), ("mine\nbox.example\n".to_owned(), 1));
    let all = Config { etc_files: EtcFiles::All, ..usual.clone() };
    let (text, changes) = read(all);
    assert!(text.starts_with("127.0.0.1\tlocalhost") && changes == 0, "{text}");
    let none = Config { etc_files: EtcFiles::None, ..usual.clone() };
    assert_eq!(read(none), ("mine\n".to_owned(), 1));

    // A link of the image's is its own if it leads to something.
    fs::remove_file(root.join("etc/hosts")).unwrap();
    fs::create_dir(root.join("run")).unwrap();
    fs::write(root.join("run/hosts"), "linked\n").unwrap();
    symlink("/run/hosts", root.join("etc/hosts")).unwrap();
    assert_eq!(read(usual.clone()).0, "linked\nbox.example\n");
    fs::remove_file(root.join("run/hosts")).unwrap();
    let (text, _) = read(usual);
    assert!(text.starts_with("127.0.0.1\tlocalhost"), "{text}");
    assert!(root.join("etc/hosts").is_symlink() && !root.join("run/hosts").exists());
}

#[test]
fn what_an_upper_layer_of_an_image_hides_is_not_the_images() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &[]);
    let root = image(&home, "etc", &[("hosts", "mine\n"), ("hostname", "theirs\n")]);
    let insert = |arguments: &[&str]| umoci(&["insert"], &layout, "one", arguments);
    let read = || {
        let image = Image::layers(&layout, Some("one"));
        let sandbox = Sandbox::create(Config { image, ..config(&home, &root) }).unwrap();
        shell(&sandbox, READ)
    };
    let shown = || insert(&[root.join("etc").to_str().unwrap(), "/etc"]);
    shown();
    assert_eq!(read(), "theirs\nmine\n");
    insert(&["--whiteout", "/etc"]);
    assert_eq!(read(), EXPECTED);
    shown();
    let empty = home.path("empty");
    fs::create_dir(&empty).unwrap();
    insert(&["--opaque", empty.to_str().unwrap(), "/etc"]);
    assert_eq!(read(), EXPECTED);
    shown();
    insert(&["--whiteout", "/etc/hosts"]);
    assert_eq!(read(), EXPECTED.replacen(HOSTNAME, "theirs", 1));
}

#[test]
fn a_root_without_an_etc_has_them_too() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let root = home.path("root");
    images::small(&root);
    for upper in [Upper::default(), Upper::Memory { size: 1 << 20 }] {
        for access in [RootAccess::ReadWrite, RootAccess::ReadOnly] {
            let config = Config { upper, root: access, ..config(&home, &root) };
            let sandbox = Sandbox::create(config).unwrap();
            assert_eq!(shell(&sandbox, READ), EXPECTED, "{upper:?} {access:?}");
            if upper == Upper::default() {
                assert_eq!(sandbox.changes().unwrap(), []);
            }
        }
    }
    assert!(!root.join("etc").exists());
}

#[test]
fn a_link_in_the_place_of_etc_leads_no_one_anywhere() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let outside = home.path("outside");
    fs::create_dir(&outside).unwrap();
    for (number, target) in [outside.to_str().unwrap(), "/etc", "../../../etc", "/proc/1/root/etc"]
        .into_iter()
        .enumerate()
    {
        let root = home.path(format!("root{number}"));
        images::small(&root);
        symlink(target, root.join("etc")).unwrap();
        let sandbox = Sandbox::create(config(&home, &root)).unwrap();
        // Nothing was put in.
        assert_eq!(sandbox.changes().unwrap(), []);
        assert!(root.join("etc").is_symlink());
        // A guest that makes one has none after a snapshot, and its neighbours are as they were.
        let root = image(&home, &format!("good{number}"), &[]);
        let sandbox = Sandbox::create(config(&home, &root)).unwrap();
        shell(&sandbox, "rm -r /etc");
        sandbox.files().symlink(target, "/etc").unwrap();
        let snapshot = sandbox.snapshot().unwrap();
        assert_eq!(sandbox.files().read_link("/etc").unwrap(), Path::new(target));
        sandbox.reset().unwrap();
        assert_eq!(shell(&sandbox, READ), EXPECTED);
        drop(sandbox);
        snapshot.delete().unwrap();
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn with_the_hosts_network_names_resolve_as_on_the_host() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let of_host = || fs::read_to_string("/etc/resolv.conf").ok();
    let before = of_host();
    let root = image(&home, "root", &[]);
    // As images have it of systemd-resolved: what it leads to is not there.
    symlink("../run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).unwrap();
    let usual = Config { network: Network::Host, ..config(&home, &root) };
    let sandbox = Sandbox::create(usual).unwrap();
    let read = sandbox.shell("cat /etc/resolv.conf").output().unwrap();
    // Where the host has none there is none inside.
    assert_eq!(read.status.success(), before.is_some());
    assert_eq!(String::from_utf8(read.stdout).unwrap(), before.clone().unwrap_or_default());
    if before.is_some() {
        shell(&sandbox, "echo > /etc/resolv.conf");
        assert_eq!(sandbox.changes().unwrap(), []);
    }
    drop(sandbox);
    assert_eq!(of_host(), before);
    // Where there is no network, there is nothing to ask.
    let alone = Sandbox::create(config(&home, &root)).unwrap();
    assert!(!alone.shell("cat /etc/resolv.conf").status().unwrap().success());
}

#[test]
fn a_mount_of_the_callers_lies_on_top_of_them() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let root = image(&home, "root", &[]);
    let file = home.path("hosts");
    fs::write(&file, "mounted\n").unwrap();
    let mounts = vec![adl_runtime::Mount::volume(&file, "/etc/hosts", Access::ReadOnly)];
    let sandbox = Sandbox::create(Config { mounts, ..config(&home, &root) }).unwrap();
    assert_eq!(shell(&sandbox, "cat /etc/hosts /etc/hostname"), "mounted\nbox.example\n");
}

#[test]
fn on_btrfs_they_are_files_of_the_subvolume_and_no_changes() {
    if !needs(&[Need::Root, Need::Btrfs]) {
        return;
    }
    let home = Home::new();
    let place = Mounted::btrfs(&home);
    let root = image(&home, "root", &[("hosts", ""), ("other", "")]);
    let config = Config {
        upper: Upper::Btrfs { size: None },
        state_directory: place.config().state_directory,
        ..config(&home, &root)
    };
    let sandbox = Sandbox::create(config).unwrap();
    assert_eq!(shell(&sandbox, READ), EXPECTED);
    assert_eq!(sandbox.changes().unwrap(), []);
    shell(&sandbox, "cd /etc; echo more >> hosts; rm hostname; mkdir hostname; echo 1 > new");
    let snapshot = sandbox.snapshot().unwrap();
    let told: Vec<_> = snapshot.changes().unwrap().into_iter().map(|change| change.path).collect();
    assert_eq!(told, [Path::new("/etc/new")]);
    // Made anew, but for what a guest has made a directory of.
    let text = shell(&sandbox, "cd /etc; ls -d hostname; cat new hosts");
    assert!(text.starts_with("hostname\n1\n127.0.0.1\tlocalhost\n"), "{text}");
    assert!(!text.contains("more"), "{text}");
    drop(sandbox);
    snapshot.delete().unwrap();
    adl_runtime::finish_removals();
}

#[test]
fn an_ordinary_users_sandbox_has_them_and_the_command_line_names_them() {
    if !needs(&[]) {
        return;
    }
    let user = OrdinaryUser::new();
    assert_eq!(
        user.run(&["sh", "-c", "sed -i 1d /etc/hosts; cat /etc/hosts; rm /etc/hosts"])
            .lines()
            .count(),
        2
    );
    let run = |options: &[&str]| {
        let mut adl = user.command(user.adl());
        adl.args(["run", "--hostname", "x"]).args(options);
        succeeds(adl.args([
            "--",
            "sh",
            "-c",
            "test -e /etc/hostname && cat /etc/hostname; echo end",
        ]))
    };
    assert_eq!(run(&[]), "x\nend\n");
    assert_eq!(run(&["--etc-files", "all"]), "x\nend\n");
    assert_eq!(run(&["--etc-files", "none"]), "end\n");
}
