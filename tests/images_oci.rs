//! Images in layers, as people have them: fetched from a registry, in archives and layouts, run,
//! shared and removed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use adl_runtime::{
    Config, Defaults, Error, Image, Images, Network, PullOptions, Sandbox, Snapshot,
    SnapshotOptions, Upper,
};
use serde_json::{Value, json};

use crate::file_systems::Mounted;
use crate::harness::{
    Home, Need, OrdinaryUser, adl_command, needs, shell, stderr, succeeds, within,
};

const UMOCI: Need = Need::Program("umoci");
const SKOPEO: Need = Need::Program("skopeo");
const REGISTRY: Need = Need::Program("docker-registry");
const BUSYBOX: Need = Need::Program("busybox");

/// A registry on loopback, ended when it is dropped or this process ends.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(home: &Home) -> Self {
        let config = json!({
            "version": "0.1",
            "log": { "level": "info", "formatter": "json" },
            "storage": { "filesystem": { "rootdirectory": home.path("registry") } },
            "http": { "addr": "127.0.0.1:0" },
        });
        let path = home.path("registry.yml");
        fs::write(&path, config.to_string()).unwrap();
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines.by_ref().find_map(|line| {
            let line = line.unwrap();
            let (_, address) = line.split_once("listening on ")?;
            Some(address.split(['"', ',']).next().unwrap().to_owned())
        });
        // Whatever it says is taken, or it would wait for that.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address: address.expect("its address") }
    }

    /// Puts an image of a layout there; its name.
    fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        let name = format!("{}/{name}", self.address);
        succeeds(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"])
                .arg(format!("oci:{}:{tag}", layout.display()))
                .arg(format!("docker://{name}")),
        );
        name
    }

    /// A home directory whose owner has it for a registry without certificates.
    fn home(&self, directory: &Path) -> PathBuf {
        let containers = directory.join(".config/containers");
        fs::create_dir_all(&containers).unwrap();
        let text = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", self.address);
        fs::write(containers.join("registries.conf"), text).unwrap();
        directory.to_owned()
    }

    fn stop(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A layout without an image.
fn layout(home: &Home, name: &str) -> PathBuf {
    let path = home.path(name);
    succeeds(Command::new("umoci").args(["init", "--layout"]).arg(&path));
    path
}

fn umoci(command: &[&str], layout: &Path, tag: &str, rest: &[&str]) {
    let image = format!("{}:{tag}", layout.display());
    succeeds(Command::new("umoci").args(command).args(["--image", &image]).args(rest));
}

/// Fills a directory with a root of busybox alone, which needs no library.
pub(crate) fn small(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.into_iter().find(|path| path.exists()).unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "echo", "id", "ls", "pwd", "stat", "sleep", "env", "touch"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:999:998::/home/app:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:998:\nstaff:x:50:app\n").unwrap();
}

/// An image of that, under a tag.
fn base(home: &Home, layout: &Path, tag: &str, config: &[&str]) {
    let root = home.path("root");
    if !root.exists() {
        small(&root);
    }
    umoci(&["new"], layout, tag, &[]);
    umoci(&["insert"], layout, tag, &[root.to_str().unwrap(), "/"]);
    umoci(&["config"], layout, tag, config);
}

/// The names of the layers that are unpacked in a state directory.
fn layers(state: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(state.join("images")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("layer-")).collect();
    names.sort();
    names
}

fn pull(home: &Home, name: &str) -> String {
    let mut adl = adl_command(&home.state());
    let output = adl.args(["image", "pull", "--insecure", name]).output().unwrap();
    assert!(output.status.success(), "{name}: {}", stderr(&output));
    stderr(&output)
}

#[test]
fn an_image_is_fetched_once_and_runs_then_without_a_network() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(
        &home,
        &layout,
        "one",
        &[
            "--config.env=GREETING=hello",
            "--config.env=PATH=/bin",
            "--config.workingdir=/srv/made/here",
            "--config.entrypoint=/bin/sh",
            "--config.entrypoint=-c",
            "--config.cmd=echo $GREETING $0; pwd; id -u",
            "--config.label=maker=me",
            "--config.stopsignal=SIGQUIT",
            "--config.exposedports=80/tcp",
        ],
    );
    let registry = Registry::start(&home);
    let name = registry.push(&layout, "one", "team/one:v1");
    let user = registry.home(&home.path("user"));
    let run = |arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.env("HOME", &user).arg("run").args(arguments).output().unwrap()
    };
    let first = run(&[&name]);
    assert_eq!(first.stdout, b"hello /bin/sh\n/srv/made/here\n0\n", "{}", stderr(&first));
    assert!(stderr(&first).contains("fetching: 0 of 1 layers"), "{}", stderr(&first));

    // A typo says what was looked for and where.
    let typo = name.replace("one:v1", "noe:v1");
    let told = run(&[&typo, "sh"]);
    assert_eq!(told.status.code(), Some(125));
    for words in ["there is no image", &typo, "state directory", "skopeo", "`adl run -- "] {
        assert!(stderr(&told).contains(words), "{words}: {}", stderr(&told));
    }
    registry.stop();
    for (arguments, expected) in [
        (&[&*name][..], "hello /bin/sh\n/srv/made/here\n0\n"),
        (&[&name, "echo $GREETING"], "hello\n"),
        (&[&name, "--", "echo $GREETING"], "hello\n"),
        (&["--image", &name, "echo 1"], "1\n"),
        (&["--image", &name, "--", "echo 1"], "1\n"),
        (&["--entrypoint", "echo", &name, "2", "--rm"], "2 --rm\n"),
        (&["--entrypoint", "pwd", &name], "/srv/made/here\n"),
        (&["--entrypoint", "", &name, "echo", "3"], "3\n"),
        (&["-e", "GREETING=bye", "-w", "/etc", "-u", "7:8", &name], "bye /bin/sh\n/etc\n7\n"),
    ] {
        let output = run(arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", stderr(&output));
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
    // The library, and what it tells.
    let sandbox = home.sandbox_of(Image::reference(&*name));
    let config = sandbox.image_config().unwrap().clone();
    assert_eq!(config.entrypoint, ["/bin/sh", "-c"]);
    assert_eq!(config.cmd, ["echo $GREETING $0; pwd; id -u"]);
    assert_eq!(config.labels["maker"], "me");
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(shell(&sandbox, "echo $GREETING; pwd"), "hello\n/srv/made/here\n");
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "echo $GREETING > kept; pwd"), "/srv/made/here\n");
    // A snapshot goes on with it, however it is named.
    let named = SnapshotOptions { name: Some("kept".to_owned()), ..SnapshotOptions::default() };
    let snapshot = sandbox.snapshot_with(&named).unwrap();
    sandbox.delete().unwrap();
    let of_config = Sandbox::create(snapshot.config()).unwrap();
    let of_name = home.sandbox_of(Image::snapshot("kept"));
    for fork in [of_config, of_name] {
        assert_eq!(shell(&fork, "cat kept; pwd; echo $GREETING"), "hello\n/srv/made/here\nhello\n");
        assert_eq!(fork.image_config(), Some(&config));
    }
    let entry = run(&["snapshot:kept"]);
    assert_eq!(entry.stdout, b"hello /bin/sh\n/srv/made/here\n0\n", "{}", stderr(&entry));
    snapshot.delete().unwrap();
    // What is said by the caller counts.
    let defaults = Defaults {
        env: vec![("GREETING".into(), "mine".into())],
        current_dir: "/".into(),
        user: Some("0".to_owned()),
        ..Defaults::default()
    };
    let image = Image::reference(&*name);
    let said = Sandbox::create(Config { image, defaults, ..home.config() }).unwrap();
    assert_eq!(shell(&said, "echo $GREETING; pwd"), "mine\n/\n");
}

#[test]
fn users_of_images_are_who_docker_takes_them_for() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let user = OrdinaryUser::new();
    let is_root = nix::unistd::geteuid().is_root();
    let place = user.adl().parent().unwrap().join("layout");
    let layout = layout(&home, "layout");
    for (tag, who, by_root, by_other) in [
        ("name", "app", "999 998 998 50 /home/app", "999 998 998 /home/app"),
        ("group", "app:staff", "999 50 50 /home/app", "999 50 50 /home/app"),
        ("number", "999", "999 998 998 /home/app", "999 998 998 /home/app"),
        ("unknown", "1000", "1000 0 0 /", "1000 0 0 /"),
        ("both", "1000:1000", "1000 1000 1000 /", "1000 1000 1000 /"),
    ] {
        base(&home, &layout, tag, &[&format!("--config.user={who}")]);
        let script = "echo $(id -u) $(id -g) $(id -G) $HOME";
        let image = || Image::layers(&layout, Some(tag));
        if is_root {
            let sandbox = home.sandbox_of(image());
            assert_eq!(shell(&sandbox, script).trim(), by_root, "{who}");
            let output = sandbox.command("id").arg("-u").user("0").output().unwrap();
            assert_eq!(output.stdout, b"0\n");
        }
        // The whole layout, for who may not look into the test's place.
        let _ = fs::remove_dir_all(&place);
        succeeds(Command::new("cp").arg("-r").arg(&layout).arg(&place));
        if is_root {
            succeeds(Command::new("chmod").args(["-R", "a+rX"]).arg(&place));
        }
        let mut import = user.command(user.adl());
        import.args(["image", "import", "--which", tag]).arg(&place).arg(format!("local/{tag}"));
        succeeds(&mut import);
        let mut run = user.command(user.adl());
        let output = run.args(["run", &format!("local/{tag}"), "sh", "-c", script]);
        assert_eq!(succeeds(output).trim(), by_other, "{who}");
    }
    if is_root || place.exists() {
        fs::remove_dir_all(&place).unwrap();
    }
    base(&home, &layout, "nobody", &["--config.user=absent"]);
    if is_root {
        let sandbox = home.sandbox_of(Image::layers(&layout, Some("nobody")));
        let refused = sandbox.command("id").output().map(drop).unwrap_err().to_string();
        assert!(refused.contains("absent"), "{refused}");
    }
}

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
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.workingdir=/owned/made/here"]);
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
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.workingdir=/made", "--config.user=app"]);
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
        let script = "cd /; busybox find . -xdev ! -path './etc*' | busybox sort | while read -r name; \
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

/// A layer as zstd:chunked has it: a frame for what leads to each file and one for its content, and
/// behind them, in frames to skip, what is in the layer and where. With what its descriptor says.
fn chunked(archive: &[u8]) -> (Vec<u8>, Value) {
    let skipped = |data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18][..], &length, data].concat()
    };
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let mut layer = Vec::new();
    // Where in an archive they end does not matter to who reads it as one.
    archive.chunks(1000).for_each(|part| layer.extend_from_slice(&frame(part)));
    let toc = json!({ "version": 1, "entries": [] }).to_string();
    let packed = frame(toc.as_bytes());
    let at = layer.len() as u64 + 8;
    layer.extend_from_slice(&skipped(&packed));
    let numbers = [at, packed.len() as u64, toc.len() as u64, 1, 0, 0, 0];
    let mut footer: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    footer.extend_from_slice(b"GNUlInUx");
    layer.extend_from_slice(&skipped(&footer));
    let annotations = json!({
        "io.github.containers.zstd-chunked.manifest-checksum": format!("sha256:{}", sha256(&packed)),
        "io.github.containers.zstd-chunked.manifest-position":
            format!("{at}:{}:{}:1", packed.len(), toc.len()),
    });
    (layer, annotations)
}

/// A digest, in digits.
fn sha256(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    let sum = succeeds(Command::new("sha256sum").arg(file.path()));
    sum.split(' ').next().unwrap().to_owned()
}

#[test]
fn a_layer_of_zstd_chunked_is_fetched_and_unpacked_and_damage_in_what_is_skipped_is_seen() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX, Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.cmd=cat", "--config.cmd=/value"]);
    let archive = home.path("part.tar");
    fs::create_dir(home.path("part")).unwrap();
    let script = "echo chunked > value; ln value same; mkdir d; echo x > d/x; ln -s value link";
    succeeds(Command::new("sh").args(["-ec", script]).current_dir(home.path("part")));
    succeeds(
        Command::new("tar").arg("-C").arg(home.path("part")).arg("-cf").arg(&archive).arg("."),
    );
    umoci(&["raw", "add-layer"], &layout, "one", &[archive.to_str().unwrap()]);
    // Its second layer, in place of what umoci has made of it.
    let index = layout.join("index.json");
    let manifest = read_json(&index)["manifests"][0]["digest"].clone();
    let mut manifest = read_json(&blob(&layout, manifest.as_str().unwrap()));
    let (layer, annotations) = chunked(&fs::read(&archive).unwrap());
    let digest = format!("sha256:{}", sha256(&layer));
    fs::write(blob(&layout, &digest), &layer).unwrap();
    manifest["layers"][1] = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
        "digest": digest, "size": layer.len(), "annotations": annotations,
    });
    let mut entry = put(&layout, &manifest, MANIFEST);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "one" });
    let text = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    fs::write(&index, text).unwrap();
    let registry = Registry::start(&home);
    let name = registry.push(&layout, "one", "one");
    pull(&home, &name);
    let run = |arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        succeeds(adl.arg("run").arg(&name).args(arguments))
    };
    assert_eq!(run(&[]), "chunked\n");
    assert_eq!(run(&["sh", "-c", "cat link d/x; stat -c %h same"]), "chunked\nx\n2\n");
    let [fetched, _] = Images::open(Some(&home.state())).unwrap().documents(&name).unwrap();
    let fetched: Value = serde_json::from_slice(&fetched).unwrap();
    assert_eq!(fetched["layers"][1]["digest"], digest, "it was compressed anew");
    // Bytes that no one unpacks are the layer's, too.
    succeeds(adl_command(&home.state()).args(["image", "rm", &name]));
    let mut damaged = layer.clone();
    let last = damaged.len() - 20;
    damaged[last] ^= 1;
    fs::write(blob(&layout, &digest), &damaged).unwrap();
    let output = adl_command(&home.state()).arg("run").arg(&layout).output().unwrap();
    assert!(stderr(&output).contains("its digest is"), "{}", stderr(&output));
    let lower = layers(&home.state());
    assert!(lower.len() <= 1, "{lower:?}");
}

#[test]
fn each_cap_of_an_image_is_an_option() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &[]);
    let zeros = home.path("zeros");
    fs::create_dir_all(zeros.join("a/b/c/d/e/f")).unwrap();
    fs::File::create(zeros.join("zeros")).unwrap().set_len(3 << 20).unwrap();
    fs::write(zeros.join("zeros"), vec![0; 3 << 20]).unwrap();
    umoci(&["insert"], &layout, "one", &[zeros.to_str().unwrap(), "/zeros"]);
    let import = |options: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.args(["image", "import"]).args(options).arg(&layout).arg("mine").output().unwrap()
    };
    for (option, told) in [
        (["--max-size", "1m"], "1048576"),
        (["--max-files", "5"], "number of files"),
        (["--max-depth", "4"], "depth"),
    ] {
        let output = import(&option);
        assert_eq!(output.status.code(), Some(125), "{option:?}: {output:?}");
        assert!(stderr(&output).contains(told), "{option:?}: {}", stderr(&output));
        assert!(layers(&home.state()).len() <= 1);
    }
    // What becomes little is no bomb, whatever the ratio: a quarter of the size.
    let tight = import(&["--max-ratio", "2", "--max-size", "8m"]);
    assert!(stderr(&tight).contains("what a byte of the image becomes"), "{}", stderr(&tight));
    assert!(import(&["--max-size", "64m", "--max-files", "100"]).status.success());
}

#[test]
fn an_image_may_have_many_layers_or_one_program() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    const LAYERS: usize = 60;
    let home = Home::new();
    let many = layout(&home, "many");
    base(&home, &many, "many", &["--config.cmd=cat", "--config.cmd=/value"]);
    let value = home.path("value");
    for number in 1..LAYERS {
        fs::write(&value, format!("{number}\n")).unwrap();
        umoci(&["insert"], &many, "many", &[value.to_str().unwrap(), "/value"]);
        if number % 20 == 0 {
            umoci(&["insert"], &many, "many", &[value.to_str().unwrap(), &format!("/{number}")]);
        }
    }
    let of = |path: &Path, arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        succeeds(adl.arg("run").arg(path).args(arguments))
    };
    assert_eq!(of(&many, &[]), "59\n");
    assert_eq!(of(&many, &["cat", "/20", "/40"]), "20\n40\n");
    assert_eq!(layers(&home.state()).len(), LAYERS + 2);

    let scratch = layout(&home, "scratch");
    let program = home.path("root/bin/busybox");
    umoci(&["new"], &scratch, "scratch", &[]);
    umoci(&["insert"], &scratch, "scratch", &[program.to_str().unwrap(), "/busybox"]);
    let config = ["--config.entrypoint=/busybox", "--config.cmd=echo", "--config.cmd=alone"];
    umoci(&["config"], &scratch, "scratch", &config);
    assert_eq!(of(&scratch, &[]), "alone\n");
    assert_eq!(of(&scratch, &["ls", "/"]).lines().collect::<Vec<_>>()[..2], ["busybox", "dev"]);
    // One that says nothing of commands runs none by itself.
    umoci(&["config"], &scratch, "scratch", &["--clear=config.entrypoint", "--clear=config.cmd"]);
    let mut adl = adl_command(&home.state());
    let told = adl.arg("run").arg(&scratch).output().unwrap();
    assert_eq!(told.status.code(), Some(125));
    assert!(stderr(&told).contains("no command to run"), "{}", stderr(&told));
}

#[test]
fn what_images_have_in_common_is_fetched_and_kept_once() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "base", &["--config.cmd=echo", "--config.cmd=base"]);
    let value = home.path("value");
    for tag in ["one", "two"] {
        fs::write(&value, tag).unwrap();
        let image = format!("{}:base", layout.display());
        succeeds(Command::new("umoci").args(["tag", "--image", &image, tag]));
        umoci(&["insert"], &layout, tag, &[value.to_str().unwrap(), "/value"]);
    }
    let registry = Registry::start(&home);
    let [one, two, new] = ["one", "two", "new"]
        .map(|name| registry.push(&layout, if name == "new" { "one" } else { name }, name));
    let told = pull(&home, &one);
    assert!(told.contains("fetching: 0 of 2 layers"), "{told}");
    assert_eq!(layers(&home.state()).len(), 2);
    let told = pull(&home, &two);
    assert!(told.contains("fetching: 1 of 2 layers"), "{told}");
    assert!(told.contains("unpacking: layer 2 of 2") && !told.contains("layer 1 of 2"), "{told}");
    assert_eq!(layers(&home.state()).len(), 3);
    // By another name, it is there.
    assert_eq!(pull(&home, &new), "");
    let list = succeeds(adl_command(&home.state()).args(["image", "ls"]));
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.lines().all(|line| line.contains("MiB")), "{list}");
    // What a name stands for may be another one later.
    registry.push(&layout, "two", "one");
    let cat = |name: &str| {
        let mut adl = adl_command(&home.state());
        succeeds(adl.args(["run", name, "cat", "/value"]))
    };
    assert_eq!(cat(&one), "one");
    pull(&home, &one);
    assert_eq!((cat(&one), cat(&new)), ("two".to_owned(), "one".to_owned()));
    // Of one that has several names, one goes, and the layers with the last.
    let rm = |name: &str| succeeds(adl_command(&home.state()).args(["image", "rm", name]));
    rm(&one);
    assert_eq!(layers(&home.state()).len(), 3);
    rm(&two);
    assert_eq!(layers(&home.state()).len(), 2);
    rm(&new);
    assert_eq!(layers(&home.state()), [""; 0]);
    let none = adl_command(&home.state()).args(["image", "rm", &new]).output().unwrap();
    assert!(stderr(&none).contains("adl image ls"), "{}", stderr(&none));
    assert_eq!(succeeds(adl_command(&home.state()).arg("gc")), "");
}

#[test]
fn of_many_who_need_an_image_at_once_one_fetches_it() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.cmd=echo", "--config.cmd=run"]);
    let registry = Registry::start(&home);
    let name = registry.push(&layout, "one", "one");
    let user = registry.home(&home.path("user"));
    let start = || {
        let mut adl = adl_command(&home.state());
        adl.env("HOME", &user).args(["run", &name]);
        adl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let all: Vec<_> = (0..8).map(|_| start()).collect();
    let outputs: Vec<_> = all.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let told: String = outputs.iter().map(stderr).collect();
    for output in &outputs {
        assert_eq!(output.stdout, b"run\n", "{told}");
    }
    assert_eq!(told.matches("unpacking: layer 1 of 1, 0.0").count(), 1, "{told}");
    assert_eq!(layers(&home.state()).len(), 1);
    assert_eq!(succeeds(adl_command(&home.state()).arg("gc")), "");
}

#[test]
fn archives_and_layouts_are_images_as_they_are() {
    if !needs(&[UMOCI, SKOPEO, BUSYBOX, Need::Program("tar"), Need::Program("gzip")]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.cmd=echo", "--config.cmd=one"]);
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let copy = |tag: &str, to: &str| {
        succeeds(Command::new("skopeo").args([
            "copy",
            "--quiet",
            &format!("oci:{}:{tag}", layout.display()),
            to,
        ]));
    };
    copy("one", &format!("docker-archive:{}:local/saved:1", path("saved.tar")));
    copy("one", &format!("oci-archive:{}:local/oci:1", path("oci.tar")));
    succeeds(Command::new("tar").args(["-cf", &path("layout.tar"), "-C", &path("layout"), "."]));
    fs::create_dir(home.path("saved")).unwrap();
    succeeds(Command::new("tar").args(["-xf", &path("saved.tar"), "-C", &path("saved")]));
    let run = |arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.current_dir(home.path("")).arg("run").args(arguments).output().unwrap()
    };
    for name in ["./saved.tar", "./oci.tar", "./layout.tar", "./layout", &path("layout"), "./saved"]
    {
        let output = run(&[name]);
        assert_eq!(output.stdout, b"one\n", "{name}: {}", stderr(&output));
    }
    // The same layers, however they came.
    assert_eq!(layers(&home.state()).len(), 1);
    // One that is a name is no path.
    let told = stderr(&run(&["saved.tar"]));
    assert!(told.contains("docker.io/library/saved.tar") && told.contains("./saved.tar"), "{told}");

    let import = |arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.current_dir(home.path("")).args(["image", "import"]).args(arguments).output().unwrap()
    };
    let whole = |name: &str| format!("docker.io/local/{name}\n").into_bytes();
    assert_eq!(import(&["saved.tar"]).stdout, whole("saved:1"));
    assert_eq!(import(&["oci.tar"]).stdout, whole("oci:1"));
    assert_eq!(run(&["local/saved:1"]).stdout, b"one\n");
    // A layout names its images by tags alone.
    let told = stderr(&import(&["layout"]));
    assert!(told.contains("says no name"), "{told}");
    let names = String::from_utf8(import(&["layout", "mine:2"]).stdout).unwrap();
    assert!(names.lines().any(|name| name == "docker.io/library/mine:2"), "{names}");
    base(&home, &layout, "two", &["--config.cmd=echo", "--config.cmd=two"]);
    for several in [run(&["./layout"]), import(&["layout", "mine"])] {
        assert_eq!(several.status.code(), Some(125));
        assert!(stderr(&several).contains("one, two"), "{}", stderr(&several));
    }
    assert!(import(&["--which", "two", "layout", "mine:2"]).status.success());
    assert_eq!(run(&["mine:2"]).stdout, b"two\n");
    let told = stderr(&import(&["--which", "three", "layout", "mine"]));
    assert!(told.contains("\"three\"") && told.contains("one, two"), "{told}");
    // Compressed as a whole, and so that it is no archive.
    succeeds(Command::new("gzip").arg("-k").arg(home.path("saved.tar")));
    let of_plain = run(&["./saved.tar"]);
    assert!(of_plain.status.success(), "{of_plain:?}");
    assert_eq!(run(&["./saved.tar.gz"]).stdout, of_plain.stdout);
    let whole = fs::read(home.path("saved.tar.gz")).unwrap();
    fs::write(home.path("cut.tar.gz"), &whole[..whole.len() - 9]).unwrap();
    let told = stderr(&run(&["./cut.tar.gz"]));
    assert!(told.contains("cut.tar.gz"), "{told}");
    assert!(
        !fs::read_dir(home.state())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with(".image-") })
    );
    // What adl wrote of names that are gone does not show.
    let inspect = succeeds(adl_command(&home.state()).args(["image", "inspect", "mine:2"]));
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(inspect["names"], json!(["docker.io/library/mine:2"]));
    assert_eq!(inspect["config"]["config"]["Cmd"], json!(["echo", "two"]));
}

/// The file of a blob.
fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replacen(':', "/", 1))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Writes a document to a layout, by its digest, and what leads to it.
fn put(layout: &Path, document: &Value, media_type: &str) -> Value {
    let text = document.to_string();
    let sum = {
        fs::write(layout.join("x"), &text).unwrap();
        succeeds(Command::new("sha256sum").arg(layout.join("x")))
    };
    let digest = format!("sha256:{}", sum.split(' ').next().unwrap());
    fs::rename(layout.join("x"), blob(layout, &digest)).unwrap();
    json!({ "mediaType": media_type, "digest": digest, "size": text.len() })
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn of_an_index_the_image_for_this_machine_is_taken() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.cmd=echo", "--config.cmd=mine"]);
    let index = layout.join("index.json");
    let mine = read_json(&index)["manifests"][0].clone();
    let on = |descriptor: &Value, os: &str, architecture: &str| {
        let mut descriptor = descriptor.clone();
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    };
    let absent = json!({
        "mediaType": MANIFEST, "size": 2, "digest": format!("sha256:{}", "a".repeat(64)),
    });
    let others = [
        on(&absent, "linux", "arm64"),
        on(&absent, "windows", "amd64"),
        on(&absent, "unknown", "unknown"),
    ];
    let write = |entries: &[Value]| {
        let inner = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        let outer = json!({ "schemaVersion": 2, "manifests": [put(&layout, &inner, INDEX)] });
        fs::write(
            &index,
            json!({ "schemaVersion": 2, "manifests": [put(&layout, &outer, INDEX)] }).to_string(),
        )
        .unwrap();
        adl_command(&home.state()).arg("run").arg(&layout).output().unwrap()
    };
    let entries = [&others[..], &[on(&mine, "linux", "amd64")]].concat();
    let output = write(&entries);
    assert_eq!(output.stdout, b"mine\n", "{}", stderr(&output));
    let told = stderr(&write(&others));
    assert!(told.contains("linux/arm64, windows/amd64") && told.contains("linux/amd64"), "{told}");
    // What an index leaves unsaid is in the configuration.
    umoci(&["new"], &layout, "other", &[]);
    umoci(&["config"], &layout, "other", &["--architecture=arm64"]);
    let all = read_json(&index)["manifests"].as_array().unwrap().clone();
    let other = all.iter().find(|entry| entry["mediaType"] == MANIFEST).unwrap();
    let output = write(&[other.clone(), mine.clone()]);
    assert_eq!(output.stdout, b"mine\n", "{}", stderr(&output));
    let told = stderr(&write(std::slice::from_ref(other)));
    assert!(told.contains("linux/arm64"), "{told}");
}

#[test]
fn what_differs_from_its_digest_is_no_image_and_leaves_nothing() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.cmd=echo", "--config.cmd=good"]);
    let descriptor = read_json(&layout.join("index.json"))["manifests"][0].clone();
    let manifest_path = blob(&layout, descriptor["digest"].as_str().unwrap());
    let manifest = read_json(&manifest_path);
    let config_path = blob(&layout, manifest["config"]["digest"].as_str().unwrap());
    let layer_path = blob(&layout, manifest["layers"][0]["digest"].as_str().unwrap());
    let run = || adl_command(&home.state()).arg("run").arg(&layout).output().unwrap();
    for path in [&manifest_path, &config_path, &layer_path] {
        let good = fs::read(path).unwrap();
        let (middle, last) = (good.len() / 2, good.len() - 1);
        let mut flipped = good.clone();
        flipped[middle] ^= 1;
        for bad in [flipped, good[..last].to_vec(), [&good[..], b"\n"].concat(), Vec::new()] {
            fs::write(path, &bad).unwrap();
            let output = run();
            assert_eq!(output.status.code(), Some(125), "{path:?}: {output:?}");
            assert!(output.stdout.is_empty());
            assert_eq!(layers(&home.state()), [""; 0], "{path:?}");
        }
        fs::remove_file(path).unwrap();
        assert!(stderr(&run()).contains("lacks"), "{path:?}");
        // Nothing outside of it is looked at.
        symlink("/etc/passwd", path).unwrap();
        assert!(stderr(&run()).contains("link"), "{path:?}");
        fs::remove_file(path).unwrap();
        fs::write(path, &good).unwrap();
    }
    // What would be good by itself, and of the same length.
    for (path, from, to) in
        [(&manifest_path, "v1.tar+gzip", "v1.tar+zstd"), (&config_path, "\"good\"", "\"evil\"")]
    {
        let good = fs::read_to_string(path).unwrap();
        assert!(good.contains(from), "{good}");
        fs::write(path, good.replace(from, to)).unwrap();
        let output = run();
        assert!(stderr(&output).contains("has other bytes"), "{output:?}");
        fs::write(path, good).unwrap();
    }
    assert_eq!(succeeds(adl_command(&home.state()).arg("image").arg("ls")), "");
    assert_eq!(run().stdout, b"good\n");
    // A configuration that promises other layers than there are.
    let mut config = read_json(&config_path);
    config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "b".repeat(64)));
    let mut other = manifest.clone();
    other["config"] = put(&layout, &config, "application/vnd.oci.image.config.v1+json");
    let entry = put(&layout, &other, MANIFEST);
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    assert!(stderr(&run()).contains("diff id"), "{}", stderr(&run()));
    other["layers"] = json!([]);
    let index = json!({ "schemaVersion": 2, "manifests": [put(&layout, &other, MANIFEST)] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    assert!(stderr(&run()).contains("its configuration knows 1"), "{}", stderr(&run()));
}

#[test]
fn an_image_in_use_stays_and_what_no_one_uses_goes() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &[]);
    let images = Images::open(Some(&home.state())).unwrap();
    let info = images.import(&layout, None, Some("mine"), &PullOptions::default()).unwrap();
    assert_eq!(info.names, ["docker.io/library/mine:latest"]);
    assert!(info.last_used.is_some() && info.layers.len() == 1);
    let digits = info.digest.split_once(':').unwrap().1.to_owned();
    assert_eq!(images.get(&digits[..12]).unwrap(), info);
    let sandbox = home.sandbox_of(Image::reference("mine"));
    let assert_in_use = |by: &str| {
        for name in ["mine", "docker.io/library/mine", &digits] {
            let refused = images.remove(name).unwrap_err();
            assert!(
                matches!(&refused, Error::Busy { by: who, .. } if who.contains(by)),
                "{refused}"
            );
        }
        // By another process, too.
        let output = adl_command(&home.state()).args(["image", "rm", "mine"]).output().unwrap();
        assert!(stderr(&output).contains(by), "{}", stderr(&output));
        assert_eq!(images.prune(Duration::ZERO).unwrap(), [""; 0]);
        adl_runtime::collect_garbage(Some(&home.state())).unwrap();
        assert_eq!(layers(&home.state()).len(), 1);
    };
    assert_in_use("sandbox");
    let named = SnapshotOptions { name: Some("kept".to_owned()), ..SnapshotOptions::default() };
    drop(sandbox.snapshot_with(&named).unwrap());
    sandbox.delete().unwrap();
    assert_in_use("kept");
    let fork = home.sandbox_of(Image::snapshot("kept"));
    assert_in_use("kept");
    fork.delete().unwrap();
    Snapshot::remove(Some(&home.state()), "kept").unwrap();
    assert_eq!(images.prune(Duration::from_secs(3600)).unwrap(), [""; 0]);
    assert_eq!(images.prune(Duration::ZERO).unwrap(), ["docker.io/library/mine:latest"]);
    assert_eq!(layers(&home.state()), [""; 0]);
    assert!(images.list().unwrap().is_empty());
    assert!(matches!(images.get("mine"), Err(Error::NoImage { .. })));
    // Layers that no image has, as one leaves that was ended while it unpacked them.
    fs::create_dir(home.state().join("images/layer-sha256-x")).unwrap();
    let collected = adl_runtime::collect_garbage(Some(&home.state())).unwrap();
    assert_eq!(collected, ["layer-sha256-x"]);
}

#[test]
fn a_record_that_cannot_be_read_holds_up_no_other_image() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &[]);
    umoci(&["config"], &layout, "one", &["--tag", "two", "--config.env", "A=B"]);
    let images = Images::open(Some(&home.state())).unwrap();
    let import = |which: &str| {
        images.import(&layout, Some(which), Some(which), &PullOptions::default()).unwrap()
    };
    let (one, two) = (import("one"), import("two"));
    let catalog = home.state().join("catalog");
    let record = catalog.join(format!("image-{}.json", one.digest.replace(':', "-")));
    fs::write(&record, "{").unwrap();
    fs::write(catalog.join("name-sha256-0.json"), "{").unwrap();
    let adl = |arguments: &[&str]| {
        let output = adl_command(&home.state()).arg("image").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let told = stderr(&output);
        assert!(told.contains(record.to_str().unwrap()), "{told}");
        assert!(told.contains("name-sha256-0.json"), "{told}");
        String::from_utf8(output.stdout).unwrap()
    };
    // It is told, and the rest is shown; who removes what no one uses for long leaves it.
    assert!(adl(&["ls"]).starts_with("docker.io/library/two:latest "));
    assert_eq!(adl(&["prune", "--unused-for", "1h"]), "");
    let sandbox = home.sandbox_of(Image::reference("two"));
    images.remove("two").unwrap_err();
    sandbox.delete().unwrap();
    assert_eq!(images.remove("two").unwrap(), ["docker.io/library/two:latest"]);
    // Which layers are those of what can't be read is not known: they stay as long as it does.
    assert_eq!(layers(&home.state()).len(), 1);
    let removed = images.prune(Duration::ZERO).unwrap();
    assert!(removed.contains(&"name-sha256-0".to_owned()), "{removed:?}");
    assert!(removed.contains(&format!("image-{}", one.digest.replace(':', "-"))), "{removed:?}");
    assert_eq!(layers(&home.state()), [""; 0]);
    assert!(images.list().unwrap().is_empty());
    assert_eq!(import("two").digest, two.digest);
}

#[test]
fn what_was_made_of_the_host_and_of_archives_is_shown_and_goes_unless_it_is_used() {
    if !needs(&[Need::Userns, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    small(&home.path("root"));
    let archive = home.path("root.tar");
    succeeds(
        Command::new("tar").arg("-C").arg(home.path("root")).arg("-cf").arg(&archive).arg("."),
    );
    let images = Images::open(Some(&home.state())).unwrap();
    let kinds = || {
        let made = images.made().unwrap();
        let kinds = made.iter().map(|made| made.name.split('-').next().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(kinds(), [""; 0]);
    let of_archive = home.sandbox_of(Image::archive(&archive));
    let of_host = home.sandbox_of(Image::host());
    let all = kinds();
    assert!(all.contains(&"tar".to_owned()) && all.contains(&"host".to_owned()), "{all:?}");
    let tar = images.made().unwrap().pop().unwrap();
    assert!(tar.name.starts_with("tar-") && tar.size > 100_000, "{tar:?}");
    assert!(tar.last_used.unwrap().elapsed().unwrap() < Duration::from_secs(3600));
    let shown = succeeds(adl_command(&home.state()).args(["image", "ls"]));
    assert!(shown.contains(&format!("{} - ", tar.name)) && shown.contains("MiB now"), "{shown}");
    // What is used stays, whoever asks.
    let prune = || {
        let mut adl = adl_command(&home.state());
        succeeds(adl.args(["image", "prune", "--unused-for", "0"]))
    };
    assert_eq!(prune(), "");
    assert_eq!(images.prune(Duration::ZERO).unwrap(), [""; 0]);
    assert!(matches!(images.remove(&tar.name), Err(Error::Busy { .. })));
    let named = SnapshotOptions { name: Some("kept".to_owned()), ..SnapshotOptions::default() };
    drop(of_archive.snapshot_with(&named).unwrap());
    of_archive.delete().unwrap();
    of_host.delete().unwrap();
    let removed = prune();
    assert!(removed.contains("host-") && !removed.contains("tar-"), "{removed}");
    assert!(
        matches!(&images.remove(&tar.name), Err(Error::Busy { by, .. }) if by.contains("kept"))
    );
    assert_eq!(kinds(), ["tar"]);
    home.sandbox_of(Image::snapshot("kept")).delete().unwrap();
    Snapshot::remove(Some(&home.state()), "kept").unwrap();
    // Used a moment ago.
    assert_eq!(images.prune(Duration::from_secs(3600)).unwrap(), [""; 0]);
    assert_eq!(images.remove(&tar.name).unwrap(), [tar.name.as_str()]);
    // Made anew, and nothing is left of what told who used it.
    home.sandbox_of(Image::archive(&archive)).delete().unwrap();
    assert_eq!(prune().trim_end(), tar.name);
    assert_eq!(fs::read_dir(home.state().join("images")).unwrap().count(), 0);
    fs::write(home.state().join(format!("images/.used-{}", tar.name)), "").unwrap();
    adl_runtime::collect_garbage(Some(&home.state())).unwrap();
    assert_eq!(fs::read_dir(home.state().join("images")).unwrap().count(), 0);
}

#[test]
fn records_that_adl_did_not_write_are_refused() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &[]);
    let images = Images::open(Some(&home.state())).unwrap();
    images.import(&layout, None, Some("mine"), &PullOptions::default()).unwrap();
    let catalog = home.state().join("catalog");
    let of = |kind: &str| {
        let entries = fs::read_dir(&catalog).unwrap().map(|entry| entry.unwrap().path());
        let is_it = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(kind);
        entries.into_iter().find(is_it).unwrap()
    };
    let create = || Sandbox::create(Config { image: Image::reference("mine"), ..home.config() });
    create().unwrap().delete().unwrap();
    for kind in ["image-", "name-"] {
        let path = of(kind);
        let good = fs::read_to_string(&path).unwrap();
        let outward = good.replace("sha256:", "sha256:../");
        for bad in [
            "",
            "{}",
            "[]",
            &good.replace("\"form\":1", "\"form\":2"),
            &outward,
            &good[..good.len() - 1],
        ] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(create(), Err(Error::Io { .. })), "{kind}: {bad}");
        }
        let elsewhere = home.path("elsewhere");
        fs::write(&elsewhere, &good).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(matches!(create(), Err(Error::Io { .. })), "{kind}: a link");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(create(), Err(Error::Io { .. })), "{kind}: a FIFO");
        fs::remove_file(&path).unwrap();
        fs::write(&path, &good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(create(), Err(Error::Io { .. })), "{kind}: others may write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        create().unwrap().delete().unwrap();
    }
    // Who imports it again mends it.
    for kind in ["image-", "name-"] {
        fs::write(of(kind), "{}").unwrap();
        assert!(create().is_err());
        images.import(&layout, None, Some("mine"), &PullOptions::default()).unwrap();
        create().unwrap().delete().unwrap();
    }
    // A layer that is not its own.
    let path = of("image-");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"above\":null", "\"above\":\"../sandboxes\"")).unwrap();
    assert!(matches!(create(), Err(Error::Io { .. })));
}

#[test]
fn a_pull_that_is_killed_anywhere_is_completed_by_the_next_or_collected() {
    kill_pulls(6, Home::new);
}

#[test]
#[ignore = "takes minutes"]
fn a_pull_that_is_killed_at_fifty_moments_is_completed_by_the_next_or_collected() {
    kill_pulls(50, || Home::of_a_test_that_takes(Duration::from_secs(1800)));
}

/// Kills pulls at moments all over what one takes, and looks what the next makes of what they left.
fn kill_pulls(kills: u64, home: impl FnOnce() -> Home) {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = home();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.workingdir=/made", "--config.cmd=pwd"]);
    let value = home.path("value");
    fs::write(&value, vec![b'x'; 8 << 20]).unwrap();
    umoci(&["insert"], &layout, "one", &[value.to_str().unwrap(), "/value"]);
    let registry = Registry::start(&home);
    let name = registry.push(&layout, "one", "one");
    let fetch = || {
        let mut adl = adl_command(&home.state());
        adl.args(["image", "pull", "--insecure", &name]);
        adl.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // How long one takes that is not killed.
    let begin = std::time::Instant::now();
    assert!(fetch().wait().unwrap().success());
    // On a busy machine it may take long: most of that is waiting.
    let whole = begin.elapsed().min(Duration::from_secs(2));
    let mut killed = 0;
    let mut random = 0x9e37_79b9_u64;
    for number in 0..kills {
        let gone = adl_command(&home.state()).args(["image", "rm", &name]).output().unwrap();
        assert!(gone.status.success() || stderr(&gone).contains("no image"), "{gone:?}");
        let mut adl = fetch();
        // At any moment: what it does then is its own affair. One in each part of the whole.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let part = number as f64 + (random >> 40) as f64 / (1_u64 << 24) as f64;
        std::thread::sleep(whole.mul_f64(part / kills as f64));
        adl.kill().unwrap();
        killed += u64::from(!adl.wait().unwrap().success());
        if number % 5 == 0 {
            succeeds(adl_command(&home.state()).arg("gc"));
        }
    }
    assert!(killed > kills / 4, "{killed}");
    pull(&home, &name);
    assert_eq!(succeeds(adl_command(&home.state()).args(["run", &name])), "/made\n");
    succeeds(adl_command(&home.state()).arg("gc"));
    assert_eq!(layers(&home.state()).len(), 3, "{:?}", layers(&home.state()));
    for directory in ["catalog", "images"] {
        for entry in fs::read_dir(home.state().join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.') && !name.starts_with("fetch-"), "{directory}/{name}");
        }
    }
    succeeds(adl_command(&home.state()).args(["image", "rm", &name]));
    assert_eq!(layers(&home.state()), [""; 0]);
}

/// The children of a process, by what the kernel says.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn is_skopeo(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "skopeo")
}

#[test]
fn a_registry_that_does_not_answer_is_not_waited_for_for_ever() {
    if !needs(&[SKOPEO]) {
        return;
    }
    let home = Home::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/x", silent.local_addr().unwrap());
    let start = |timeout: &str| {
        let mut adl = adl_command(&home.state());
        adl.args(["image", "pull", "--insecure", "--timeout", timeout, &name]);
        adl.stderr(Stdio::piped()).spawn().unwrap()
    };
    let adl = start("1s");
    let (_open, _) = silent.accept().unwrap();
    let output = adl.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("waited 1s"), "{}", stderr(&output));
    // Where adl is killed, what it has started ends with it.
    let mut adl = start("1h");
    let (_open, _) = silent.accept().unwrap();
    let skopeo: Vec<u32> = children(adl.id()).into_iter().filter(|pid| is_skopeo(*pid)).collect();
    assert_eq!(skopeo.len(), 1);
    adl.kill().unwrap();
    adl.wait().unwrap();
    assert!(within(Duration::from_secs(5), || !is_skopeo(skopeo[0])));
    // What it leaves is collected.
    let left = succeeds(adl_command(&home.state()).arg("gc"));
    assert_eq!(left.lines().filter(|line| line.starts_with("fetch-")).count(), 1, "{left}");
    let entries = fs::read_dir(home.state().join("catalog")).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "lock"), "{names:?}");
}

#[test]
fn a_registry_that_lies_is_not_believed() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.cmd=echo", "--config.cmd=run"]);
    let registry = Registry::start(&home);
    let name = registry.push(&layout, "one", "one");
    let digest = read_json(&layout.join("index.json"))["manifests"][0]["digest"].clone();
    let digest = digest.as_str().unwrap();
    let fetch = |name: &str| {
        let mut adl = adl_command(&home.state());
        adl.args(["image", "pull", "--insecure", name]).output().unwrap()
    };
    // Each blob in its storage, in turn, is another.
    let blobs = home.path("registry/docker/registry/v2/blobs/sha256");
    let mut data = Vec::new();
    for two in fs::read_dir(&blobs).unwrap() {
        for blob in fs::read_dir(two.unwrap().path()).unwrap() {
            data.push(blob.unwrap().path().join("data"));
        }
    }
    assert_eq!(data.len(), 3);
    for path in data {
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = good.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, bad).unwrap();
        let by_digest = format!("{}@{digest}", name.split(":latest").next().unwrap());
        for name in [&name, &by_digest] {
            let output = fetch(name);
            assert_eq!(output.status.code(), Some(125), "{path:?}: {output:?}");
        }
        assert_eq!(layers(&home.state()), [""; 0], "{path:?}");
        // What was whole of it would serve the next attempt.
        succeeds(adl_command(&home.state()).arg("gc"));
        fs::write(&path, good).unwrap();
    }
    let output = fetch(&format!("{name}@{digest}"));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn without_a_program_that_fetches_it_is_said_which_to_install() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let mut adl = adl_command(&home.state());
    let output =
        adl.env("PATH", home.path("")).args(["run", "debian:12", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    for words in ["docker.io/library/debian:12", "apt-get install skopeo"] {
        assert!(stderr(&output).contains(words), "{words}: {}", stderr(&output));
    }
    // The library as well.
    let image = Image::reference("not/A/name");
    let refused = Sandbox::create(Config { image, network: Network::None, ..home.config() });
    assert!(matches!(refused, Err(Error::Invalid { what: "image", .. })));
}

#[test]
fn podman_or_docker_fetch_where_skopeo_is_missing() {
    if !needs(&[UMOCI, SKOPEO, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    base(&home, &layout, "one", &["--config.cmd=echo", "--config.cmd=saved"]);
    let archive = home.path("saved.tar");
    let to = format!("docker-archive:{}:docker.io/team/one:1", archive.display());
    succeeds(Command::new("skopeo").args([
        "copy",
        "--quiet",
        &format!("oci:{}:one", layout.display()),
        &to,
    ]));
    // In its place a script that does what docker does, and writes down what it was asked for.
    let programs = home.path("programs");
    fs::create_dir(&programs).unwrap();
    for program in ["cp", "echo", "sh"] {
        let path = ["/usr/bin", "/bin"].map(|bin| Path::new(bin).join(program));
        symlink(path.iter().find(|path| path.exists()).unwrap(), programs.join(program)).unwrap();
    }
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {0}/asked\n[ \"$1\" = pull ] || cp {1} \"$3\"\n",
        programs.display(),
        archive.display()
    );
    fs::write(programs.join("docker"), script).unwrap();
    fs::set_permissions(programs.join("docker"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut adl = adl_command(&home.state());
    let output = adl.env("PATH", &programs).args(["run", "team/one:1"]).output().unwrap();
    assert_eq!(output.stdout, b"saved\n", "{}", stderr(&output));
    let mut asked = String::new();
    File::open(programs.join("asked")).unwrap().read_to_string(&mut asked).unwrap();
    assert_eq!(asked, "pull docker.io/team/one:1\nsave -o image.tar docker.io/team/one:1\n");
    assert!(fs::metadata(home.state().join("catalog")).unwrap().mode() & 0o077 == 0);
}

#[test]
fn who_is_asked_to_end_is_asked_by_the_signal_that_the_image_says() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    let script = "trap 'echo quit; exit 3' QUIT; trap 'echo term; exit 4' TERM; echo ready
        while :; do sleep 1; done";
    for (said, expected, code) in
        [("SIGQUIT", "quit\n", 3), ("SIGTERM", "term\n", 4), ("none", "term\n", 4)]
    {
        base(&home, &layout, said, &[&format!("--config.stopsignal={said}")]);
        let images = Images::open(Some(&home.state())).unwrap();
        let name = said.to_ascii_lowercase();
        images.import(&layout, Some(said), Some(&name), &PullOptions::default()).unwrap();
        let mut adl = adl_command(&home.state());
        adl.args(["run", &name, "sh", "-c", script]).stdout(Stdio::piped());
        let mut adl = adl.spawn().unwrap();
        let mut lines = BufReader::new(adl.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let pid = nix::unistd::Pid::from_raw(adl.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        assert_eq!((&*rest, adl.wait().unwrap().code()), (expected, Some(code)), "{said}");
    }
}
