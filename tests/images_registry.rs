//! Images of registries, fetched by what people have for that: once, whole, and whatever a registry
//! or a kill does meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use adl_runtime::{Config, Defaults, Error, Image, Images, Network, Sandbox, SnapshotOptions};
use serde_json::{Value, json};

use crate::harness::{
    Home, Need, OrdinaryUser, adl_command, needs, shell, stderr, succeeds, within,
};
use crate::image_fixtures::{
    BUSYBOX, MANIFEST, REGISTRY, Registry, SKOPEO, UMOCI, base, blob, children, chunked, digest,
    is_skopeo, layers, layout, layout_of_one, pull, put, read_json, run_adl, umoci,
};
use crate::images;

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
#[ignore = "takes minutes"]
fn a_debian_of_a_registry_is_whole_by_its_own_word() {
    if !needs(&[Need::Root, Need::Debian, UMOCI, SKOPEO, REGISTRY]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(1800));
    let layout = layout(&home, "layout");
    let debian = images::debian().unwrap();
    umoci(&["new"], &layout, "debian", &[]);
    umoci(&["insert"], &layout, "debian", &[debian.to_str().unwrap(), "/"]);
    let config = ["--config.cmd=dpkg", "--config.cmd=--verify", "--config.env=STAGE=test"];
    umoci(&["config"], &layout, "debian", &config);
    let registry = Registry::start(&home);
    let name = registry.push(&layout, "debian", "debian:bookworm");
    // As root, as a user with ids of its own, and as one with one id.
    let root = || adl_command(&home.state());
    let with_ids = OrdinaryUser::with_subordinate_ids();
    let alone = OrdinaryUser::new();
    let users: [(&dyn Fn() -> Command, &[&str]); 3] = [
        (&root, &[]),
        (&|| with_ids.command(with_ids.adl()), &["--ids", "65536"]),
        (&|| alone.command(alone.adl()), &[]),
    ];
    for (adl, ids) in users {
        let told = adl().args(["image", "pull", "--insecure"]).args(ids).arg(&name).output();
        let told = told.unwrap();
        assert!(told.status.success(), "{ids:?}: {}", stderr(&told));
        let run = |command: &[&str]| {
            let output = adl().arg("run").args(ids).arg(&name).args(command).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output)
        };
        assert_eq!(run(&[]), "", "{ids:?}");
        // It sees what is not as it was packed.
        let spoilt = run(&["sh", "-c", "echo $STAGE; echo >> /usr/bin/base64; dpkg --verify"]);
        assert_eq!(spoilt, "test\n??5??????   /usr/bin/base64\n", "{ids:?}");
        let packages = run(&["sh", "-c", "dpkg-query -W | wc -l"]);
        assert!(packages.trim().parse::<u32>().unwrap() > 50, "{packages}");
    }
}

#[test]
fn a_layer_of_zstd_chunked_is_fetched_and_unpacked_and_damage_in_what_is_skipped_is_seen() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX, Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &["--config.cmd=cat", "--config.cmd=/value"]);
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
    let digest = digest(&layer);
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
    run_adl(&home, &["image", "rm", &name]);
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
    let list = run_adl(&home, &["image", "ls"]);
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
    let rm = |name: &str| run_adl(&home, &["image", "rm", name]);
    rm(&one);
    assert_eq!(layers(&home.state()).len(), 3);
    rm(&two);
    assert_eq!(layers(&home.state()).len(), 2);
    rm(&new);
    assert_eq!(layers(&home.state()), [""; 0]);
    let none = adl_command(&home.state()).args(["image", "rm", &new]).output().unwrap();
    assert!(stderr(&none).contains("adl image ls"), "{}", stderr(&none));
    assert_eq!(run_adl(&home, &["gc"]), "");
}

#[test]
fn of_many_who_need_an_image_at_once_one_fetches_it() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let config = ["--config.cmd=echo", "--config.cmd=run"];
    let (registry, _, name) = Registry::with_one(&home, &config);
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
    assert_eq!(run_adl(&home, &["gc"]), "");
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
    let layout = layout_of_one(&home, &["--config.workingdir=/made", "--config.cmd=pwd"]);
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
            run_adl(&home, &["gc"]);
        }
    }
    assert!(killed > kills / 4, "{killed}");
    pull(&home, &name);
    assert_eq!(run_adl(&home, &["run", &name]), "/made\n");
    run_adl(&home, &["gc"]);
    assert_eq!(layers(&home.state()).len(), 3, "{:?}", layers(&home.state()));
    for directory in ["catalog", "images"] {
        for entry in fs::read_dir(home.state().join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.') && !name.starts_with("fetch-"), "{directory}/{name}");
        }
    }
    run_adl(&home, &["image", "rm", &name]);
    assert_eq!(layers(&home.state()), [""; 0]);
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
    let left = run_adl(&home, &["gc"]);
    assert_eq!(left.lines().filter(|line| line.starts_with("fetch-")).count(), 1, "{left}");
    let entries = fs::read_dir(home.state().join("catalog")).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "lock"), "{names:?}");
}

#[test]
fn a_run_waits_for_its_image_as_long_as_is_said() {
    if !needs(&[SKOPEO]) {
        return;
    }
    let home = Home::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/x", silent.local_addr().unwrap());
    for pull in ["missing", "always"] {
        // The command's own time does not count: it has not begun.
        let mut adl = adl_command(&home.state());
        adl.args(["run", "--pull-timeout", "1s", "--timeout", "1h", "--pull", pull, &name, "true"]);
        // The kernel takes the connection, and no one answers.
        let output = adl.output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        for words in ["waited 1s", "--pull-timeout"] {
            assert!(stderr(&output).contains(words), "{words}: {}", stderr(&output));
        }
    }
}

/// Answers each connection in turn with what a registry may say, until this process ends.
fn registry_that_says(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            // One that asks for encryption is answered likewise, and takes that for none.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn why_an_image_cannot_be_fetched_is_one_sentence_with_what_to_do() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let (registry, _, name) = Registry::with_one(&home, &[]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let asks = registry_that_says(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let address = &registry.address;
    for (name, insecure, what, cause) in [
        (format!("{address}/noe"), true, "has no image of this name", "(manifest unknown)"),
        (format!("{name}:v9"), true, "look at the spelling", "(manifest unknown"),
        (format!("{asks}/team/x"), true, "skopeo login", "(unauthorized"),
        (format!("{closed}/x"), true, "does not answer", "connection refused)"),
        (name.clone(), false, "--insecure", "(http: server gave HTTP response to HTTPS client)"),
    ] {
        let mut adl = adl_command(&home.state());
        adl.args(["image", "pull"]).args(insecure.then_some("--insecure"));
        let output = adl.arg(&name).output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{told}");
        let (registry, _) = name.split_once('/').unwrap();
        for words in [what, cause, &name, &format!("can't fetch it: {registry} ")] {
            assert!(told.contains(words), "{words}: {told}");
        }
        for noise in ["level=", "msg=", "docker://", "parsing image", "reading manifest", "Get "] {
            assert!(!told.contains(noise), "{noise}: {told}");
        }
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn a_registry_that_lies_is_not_believed() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let config = ["--config.cmd=echo", "--config.cmd=run"];
    let (_registry, layout, name) = Registry::with_one(&home, &config);
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
        run_adl(&home, &["gc"]);
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
    let layout = layout_of_one(&home, &["--config.cmd=echo", "--config.cmd=saved"]);
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
