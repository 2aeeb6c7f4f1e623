//! What the layers of an image show together is what others make of them, on every kind of upper.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adl_runtime::{Config, Defaults, Image, Images, PullOptions, Sandbox, Upper};
use serde_json::Value;

use crate::file_systems::Mounted;
use crate::harness::{Home, Need, needs, shell, succeeds};
use crate::image_fixtures::{BUSYBOX, UMOCI, layout, layout_of_one, small, umoci};

/// Lists a tree: what each path is, with all that an archive says of it.
const WALK: &str = "import hashlib, os, stat, sys
top = sys.argv[1]
seen = {}
for directory, names, files in os.walk(top):
    names.sort()
    for name in sorted(names + files) + ([''] if directory == top else []):
        path = os.path.join(directory, name)
        s = os.lstat(path)
        xattrs = {n: os.getxattr(path, n, follow_symlinks=False)
                  for n in sorted(os.listxattr(path, follow_symlinks=False))
                  if not n.startswith('user.overlay.') and not n.startswith('trusted.')}
        content = ''
        if stat.S_ISREG(s.st_mode): content = hashlib.sha256(open(path, 'rb').read()).hexdigest()
        if stat.S_ISLNK(s.st_mode): content = os.readlink(path)
        time = s.st_mtime_ns if name else 0
        same = seen.setdefault(s.st_ino, os.path.relpath(path, top)) if stat.S_ISREG(s.st_mode) else ''
        print(os.path.relpath(path, top), oct(s.st_mode), s.st_uid, s.st_gid, time,
              s.st_size if content else 0, s.st_rdev, content, xattrs, same)
";

#[test]
fn the_tree_of_an_image_is_the_one_that_umoci_unpacks() {
    if !needs(&[Need::Root, UMOCI, BUSYBOX, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    let bundle = home.path("bundle");
    umoci(&["new"], &layout, "tree", &[]);
    umoci(&["unpack"], &layout, "tree", &[bundle.to_str().unwrap()]);
    let root = bundle.join("rootfs");
    let repack =
        || umoci(&["repack", "--refresh-bundle"], &layout, "tree", &[bundle.to_str().unwrap()]);
    let script = |script: &str| {
        succeeds(Command::new("sh").args(["-ec", script]).current_dir(&root));
    };
    small(&root);
    script(
        "mkdir -p a/b/c gone opaque/below swapped sticky linked; chmod 1777 sticky
        echo one > a/one; echo two > a/b/two; echo x > gone/x; echo y > opaque/y
        echo z > opaque/below/z; echo s > swapped/s; echo f > becomes-directory
        ln a/one linked/same; ln -s ../a/b linked/link; ln -s /absolute dangling
        mkfifo a/fifo; chmod 4755 bin/busybox; chmod 0 a/b/two; chown 123:456 a/b a/one
        python3 -c 'import os
os.setxattr(\"a/one\", \"user.note\", b\"value\"); os.setxattr(\"a/b\", \"user.dir\", b\"v\")'
        touch -d '2001-02-03 04:05:06.123456789' a/b/two; touch -hd 2002-02-02 dangling
        printf 'n' > \"$(printf 'odd\\377name\\nx')\"; touch -d 2003-03-03 a a/b",
    );
    repack();
    script(
        "rm -r gone opaque swapped becomes-directory; mkdir opaque becomes-directory
        echo new > opaque/new; echo file > swapped; echo in > becomes-directory/in
        echo changed > a/one; rm a/fifo; chmod 700 a; chown 7:8 sticky",
    );
    repack();
    script(
        "mkdir gone; echo again > gone/y; rm -r a/b; rm linked/link; ln -s c a/b; touch -d 2004-04-04 a linked",
    );
    repack();
    let own = home.path("own");
    umoci(&["unpack"], &layout, "tree", &[own.to_str().unwrap()]);
    let walk = |top: &Path| {
        succeeds(
            Command::new("python3")
                .args(["-c", WALK])
                .arg(top)
                .env("PYTHONIOENCODING", "ascii:backslashreplace"),
        )
    };
    let expected = walk(&own.join("rootfs"));
    assert!(expected.lines().count() > 25 && expected.contains("user.note"), "{expected}");

    let images = Images::open(Some(&home.state())).unwrap();
    let info = images.import(&layout, None, Some("tree"), &PullOptions::default()).unwrap();
    let [_, config] = images.documents(&info.names[0]).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let mut lower: Vec<_> = config["rootfs"]["diff_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| format!("layer-{}", id.as_str().unwrap().replace(':', "-")))
        .collect();
    assert_eq!(lower.len(), 3);
    lower.reverse();
    // As the kernel shows them, by the marks that adl's overlays look at.
    let merged = home.path("merged");
    fs::create_dir(&merged).unwrap();
    let options = format!("ro,userxattr,lowerdir={}", lower.join(":"));
    let walk = format!(
        "mount -t overlay overlay -o {options} {0} && exec python3 -c '{1}' {0}",
        merged.display(),
        WALK.replace('\'', "\"")
    );
    let shown = succeeds(
        Command::new("unshare")
            .args(["--mount", "sh", "-ec", &walk])
            .current_dir(home.state().join("images"))
            .env("PYTHONIOENCODING", "ascii:backslashreplace"),
    );
    let (shown, expected): (Vec<_>, Vec<_>) = (shown.lines().collect(), expected.lines().collect());
    for (shown, expected) in shown.iter().zip(&expected) {
        assert_eq!(shown, expected);
    }
    assert_eq!(shown.len(), expected.len());
    // A layer that hides all that is below it.
    let bare = home.path("bare");
    small(&bare);
    fs::remove_file(bare.join("etc/group")).unwrap();
    umoci(&["insert", "--opaque"], &layout, "tree", &[bare.to_str().unwrap(), "/"]);
    let hides = home.sandbox_of(Image::layers(&layout, Some("tree")));
    assert_eq!(
        shell(&hides, "ls /a /etc/group 2> /dev/null || echo none; ls /etc/passwd"),
        "none\n/etc/passwd\n"
    );
    // And a sandbox.
    let sandbox = home.sandbox_of(Image::reference("tree"));
    let listed = shell(&sandbox, "ls -a /opaque /gone /a /linked; cat /a/one /swapped");
    let expected =
        "/a:\n.\n..\nb\none\n\n/gone:\n.\n..\ny\n\n/linked:\n.\n..\nsame\n\n/opaque:\n.\n..\nnew\n";
    assert_eq!(listed, format!("{expected}changed\nfile\n"));
}

#[test]
fn a_directory_that_a_layer_does_not_name_stays_as_the_one_below_has_it() {
    if !needs(&[Need::Root, UMOCI, BUSYBOX, Need::Program("tar"), Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &["--config.workingdir=/owned/made/here"]);
    let part = home.path("part");
    let layer = |script: &str, names: &[&str]| {
        fs::create_dir(&part).unwrap();
        succeeds(Command::new("sh").args(["-ec", script]).current_dir(&part));
        let archive = home.path("part.tar");
        let mut tar = Command::new("tar");
        tar.args(["--no-recursion", "--xattrs", "-C"]).arg(&part).arg("-cf").arg(&archive);
        succeeds(tar.args(names));
        umoci(&["raw", "add-layer"], &layout, "one", &[archive.to_str().unwrap()]);
        fs::remove_dir_all(&part).unwrap();
    };
    let owned = "mkdir -p owned/deep hidden; echo 1 > owned/1; chown 5:6 owned; chmod 3750 owned
        chown 7:8 owned/deep; chmod 700 owned/deep; chmod 700 hidden; chmod 711 .
        python3 -c 'import os; os.setxattr(\"owned/deep\", \"user.note\", b\"v\")'
        touch -d '2001-02-03 04:05:06' owned/deep; touch -d 2002-02-02 owned";
    layer(owned, &["./", "./owned", "./owned/1", "./owned/deep", "./hidden"]);
    let uses = "mkdir -p owned/deep new/dir hidden; echo 2 > owned/deep/2; echo 3 > new/dir/3
        echo 4 > hidden/4; touch hidden/.wh..wh..opq";
    layer(uses, &["owned/deep/2", "new/dir/3", "hidden/.wh..wh..opq", "hidden/4"]);
    layer("mkdir -p owned; echo 5 > owned/5", &["owned/5"]);
    let bundle = home.path("bundle");
    umoci(&["unpack"], &layout, "one", &[bundle.to_str().unwrap()]);
    let sandbox = home.sandbox_of(Image::layers(&layout, Some("one")));
    let look = "stat -c '%n %a %u %g %Y' . owned owned/deep owned/deep/2 new new/dir owned/1 owned/5 hidden";
    let inside = shell(&sandbox, format!("cd / && {look}; cd /owned/made/here && pwd"));
    // What umoci makes of it, which unpacks one layer upon the other.
    let mut stat = Command::new("sh");
    let outside = succeeds(stat.args(["-ec", look]).current_dir(bundle.join("rootfs")));
    let lines = |text: &str| -> Vec<String> {
        // Mounts are made at the top, and directories that are new are of no time.
        let new = |line: &str| match line.starts_with("new") || line.starts_with(". ") {
            true => line.rsplit_once(' ').unwrap().0.to_owned(),
            false => line.to_owned(),
        };
        text.lines().map(new).collect()
    };
    assert_eq!(lines(&inside), [lines(&outside), vec!["/owned/made/here".to_owned()]].concat());
    assert!(
        inside.contains("owned 3750 5 6 ") && inside.contains("owned/deep 700 7 8 98"),
        "{inside}"
    );
    // What is in a directory may be hidden, and what that is like is not.
    assert_eq!(shell(&sandbox, "stat -c '%a %u' /hidden; ls /hidden"), "700 0\n4\n");
    let names = "import os; print(os.listxattr('/owned/deep'), os.listxattr('/new'))";
    let to = home.path("to");
    sandbox.files().copy_out("/owned/deep", &to).unwrap();
    let show =
        names.replace("/owned/deep", to.to_str().unwrap()).replace(", os.listxattr('/new')", "");
    assert_eq!(succeeds(Command::new("python3").args(["-c", &show])), "['user.note']\n");
    // In a snapshot, too, and the mark shows to no one.
    let fork = Sandbox::create(sandbox.snapshot().unwrap().config()).unwrap();
    assert_eq!(shell(&fork, "stat -c '%a %u' /owned"), "3750 5\n");
}

#[test]
fn on_btrfs_the_layers_of_an_image_are_made_one_once() {
    if !needs(&[Need::Root, Need::Btrfs, UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &["--config.workingdir=/made", "--config.user=app"]);
    let part = home.path("part");
    let insert_at = |at: &str, script: &str, arguments: &[&str]| {
        fs::create_dir(&part).unwrap();
        succeeds(Command::new("sh").args(["-ec", script]).current_dir(&part));
        let paths = [part.to_str().unwrap(), at];
        umoci(&["insert"], &layout, "one", &[arguments, &paths].concat());
        fs::remove_dir_all(&part).unwrap();
    };
    let insert = |script: &str, arguments: &[&str]| insert_at("/part", script, arguments);
    // What has no content is there, too.
    insert_at("/special", SPECIAL, &[]);
    insert("mkdir a b; echo 1 > a/1; echo 2 > b/2; ln a/1 same; chown 5:6 b; chmod 1750 b", &[]);
    insert("mkdir a; echo 3 > a/3; ln -s b link; touch -d 2001-02-03 a/3", &[]);
    umoci(&["insert"], &layout, "one", &["--whiteout", "/part/b/2"]);
    umoci(&["insert"], &layout, "one", &["--whiteout", "/special/gone"]);
    insert("mkdir a; echo 4 > a/4; chmod 4711 a/4", &["--opaque"]);
    let disk = Mounted::btrfs(&home);
    let look = |upper| {
        let defaults = Defaults { user: Some("0:0".to_owned()), ..Defaults::default() };
        let image = Image::layers(&layout, Some("one"));
        let config = Config { image, upper, defaults, ..disk.config() };
        let sandbox = Sandbox::create(config).unwrap();
        // What is the image's: the top, and what is mounted on it, are as old as the sandbox.
        let script = "cd /; ls; stat -c '%n %f %u %g' .
            busybox find bin made part special | busybox sort | while read -r name
            do stat -c '%n %f %u %g %h %Y %t:%T %N' \"$name\"; done; cat part/a/4; pwd; cd /made";
        let shown = shell(&sandbox, script);
        shell(&sandbox, "echo changed > /part/a/4");
        sandbox.reset().unwrap();
        assert_eq!(shell(&sandbox, "cat /part/a/4"), "4\n");
        shown
    };
    let (merged, flat) = (look(Upper::default()), look(Upper::Btrfs { size: None }));
    // Directories have as many names as a file system gives them.
    let lines = |text: &str| -> Vec<String> {
        let is_directory =
            |line: &str| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with('4'));
        let line = |line: &str| match is_directory(line) {
            true => line
                .split(' ')
                .enumerate()
                .filter(|(at, _)| *at != 4)
                .map(|(_, word)| word)
                .collect(),
            false => line.to_owned(),
        };
        text.lines().map(line).collect()
    };
    assert!(merged.contains("part/a/4") && merged.lines().count() > 15, "{merged}");
    assert!(!merged.contains("part/a/3") && !merged.contains("part/b"), "{merged}");
    assert!(merged.contains("special/closed/fifo") && merged.contains(" 1:3 "), "{merged}");
    assert!(!merged.contains("special/gone"), "{merged}");
    assert_eq!(lines(&merged), lines(&flat));
    // Once, and it goes when no one uses it.
    look(Upper::Btrfs { size: None });
    let images = Images::open(disk.config().state_directory.as_deref()).unwrap();
    let made = images.made().unwrap();
    assert!(matches!(&made[..], [one] if one.name.starts_with("flat-")), "{made:?}");
    assert!(images.prune(Duration::ZERO).unwrap().contains(&made[0].name));
    assert_eq!(images.made().unwrap(), []);
    look(Upper::Btrfs { size: None });
}

/// Makes what copies have no content of.
const SPECIAL: &str = "mkfifo -m 640 fifo gone; chown 5:6 fifo; touch -d 2001-02-03 fifo
    mknod -m 620 null c 1 3; mkdir closed; mkfifo closed/fifo; mknod closed/disk b 8 1
    touch -d 2002-02-02 closed; chmod 500 closed";

#[test]
fn the_copy_of_a_directory_that_btrfs_needs_has_its_fifos_and_devices() {
    if !needs(&[Need::Root, Need::Btrfs, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let root = home.path("root");
    small(&root);
    fs::create_dir(root.join("special")).unwrap();
    let script = format!("{SPECIAL}; mknod mark c 0 0");
    succeeds(Command::new("sh").args(["-ec", &script]).current_dir(root.join("special")));
    let disk = Mounted::btrfs(&home);
    let image = Image::directory(&root);
    let upper = Upper::Btrfs { size: None };
    let sandbox = Sandbox::create(Config { image, upper, ..disk.config() }).unwrap();
    let look = "busybox find . ! -name mark | busybox sort | while read -r name
        do stat -c '%n %f %u %g %Y %t:%T' \"$name\"; done";
    let shown = shell(&sandbox, format!("cd /special; {look}"));
    let expected = succeeds(
        Command::new("sh")
            .args(["-ec", &look.replace("busybox ", "")])
            .current_dir(root.join("special")),
    );
    let but_top = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(but_top(&shown), but_top(&expected));
    assert_eq!(shown.lines().count(), 7, "{shown}");
    // What an overlay takes for a mark is none of an image's.
    assert_eq!(shell(&sandbox, "ls /special"), "closed\nfifo\ngone\nnull\n");
    // They are what they seem to be.
    assert_eq!(shell(&sandbox, "echo through > /special/fifo & cat /special/fifo"), "through\n");
}
