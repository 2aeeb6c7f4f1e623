//! Images in layers, as people have them: in archives and layouts, run, shared and removed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adl_runtime::{Config, Error, Image, Images, PullOptions, Sandbox, Snapshot, SnapshotOptions};
use serde_json::{Value, json};

use crate::harness::{
    Home, Need, OrdinaryUser, adl_command, at_most, needs, shell, stderr, succeeds,
};
use crate::image_fixtures::{
    BUSYBOX, INDEX, MANIFEST, SKOPEO, UMOCI, base, blob, layers, layout, layout_of_one, put,
    read_json, run_adl, small, umoci,
};

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
        ("number", "999", "999 998 998 50 /home/app", "999 998 998 /home/app"),
        ("numbers", "999:7", "999 7 7 /home/app", "999 7 7 /home/app"),
        ("mixed", "1000:staff", "1000 50 50 /", "1000 50 50 /"),
        ("group-alone", ":staff", "0 50 50 /root", "0 50 50 /root"),
        ("none", "", "0 0 0 10 /root", "0 0 0 /root"),
        ("unknown", "1000", "1000 0 0 /", "1000 0 0 /"),
        ("both", "1000:1000", "1000 1000 1000 /", "1000 1000 1000 /"),
    ] {
        base(&home, &layout, tag, &[&format!("--config.user={who}")]);
        let script = "echo $(id -u) $(id -g) $(id -G) $HOME";
        let image = || Image::layers(&layout, Some(tag));
        if is_root {
            let sandbox = home.sandbox_of(image());
            assert_eq!(shell(&sandbox, script).trim(), by_root, "{who}");
            // The user's own group is among the supplementary ones, as docker has it.
            let said: Vec<&str> = by_root.split(' ').filter(|word| !word.contains('/')).collect();
            let listed = shell(&sandbox, "sed -n 's/^Groups:[[:space:]]*//p' /proc/self/status");
            let listed: BTreeSet<&str> = listed.split_whitespace().collect();
            assert_eq!(listed, said[2..].iter().copied().collect(), "{who}");
            // Who says another user has nothing of the image's.
            let output = sandbox.command("id").arg("-G").user("0").output().unwrap();
            assert_eq!(output.stdout, b"0\n", "{who}");
            let output = sandbox.command("id").arg("-G").gid(7).output().unwrap();
            assert_eq!(output.stdout, b"7\n", "{who}");
            let output = sandbox.command("id").arg("-G").groups([8, 9]).output().unwrap();
            assert!(output.stdout.ends_with(b" 8 9\n"), "{who}: {output:?}");
            let fork = Sandbox::create(sandbox.snapshot().unwrap().config()).unwrap();
            assert_eq!(shell(&fork, script).trim(), by_root, "{who}");
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

#[test]
fn each_cap_of_an_image_is_an_option() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &[]);
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
fn an_import_waits_for_others_as_long_as_is_said_or_for_ever() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &[]);
    let import = |timeout: &str| {
        let mut adl = adl_command(&home.state());
        adl.args(["image", "import", "--timeout", timeout]).arg(&layout).arg("mine");
        adl
    };
    // More than there is time.
    succeeds(&mut import("3000000000000000h"));
    let removes = fs::File::open(home.state().join("catalog/lock")).unwrap();
    removes.lock().unwrap();
    let begin = Instant::now();
    let late = import("1s").output().unwrap();
    assert_eq!(late.status.code(), Some(125), "{late:?}");
    assert!(stderr(&late).contains("waited 1s for who removes images"), "{}", stderr(&late));
    assert!(begin.elapsed() < at_most(Duration::from_secs(5)), "{:?}", begin.elapsed());
    removes.unlock().unwrap();
    succeeds(&mut import("60s"));
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
fn archives_and_layouts_are_images_as_they_are() {
    if !needs(&[UMOCI, SKOPEO, BUSYBOX, Need::Program("tar"), Need::Program("gzip")]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &["--config.cmd=echo", "--config.cmd=one"]);
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
    let inspect = run_adl(&home, &["image", "inspect", "mine:2"]);
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(inspect["names"], json!(["docker.io/library/mine:2"]));
    assert_eq!(inspect["config"]["config"]["Cmd"], json!(["echo", "two"]));
}

#[test]
fn of_an_index_the_image_for_this_machine_is_taken() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &["--config.cmd=echo", "--config.cmd=mine"]);
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

/// The level of this machine's processor, by what the kernel says of it.
fn level() -> usize {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap();
    let has = |flag: &&str| flags.split_whitespace().any(|other| other == *flag);
    let levels = [
        &["cx16", "popcnt", "ssse3", "sse4_1", "sse4_2"][..],
        &["avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"],
        &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
    ];
    1 + levels.iter().take_while(|flags| flags.iter().all(&has)).count()
}

#[test]
fn of_the_levels_of_a_processor_the_highest_that_this_machine_has_is_taken() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout(&home, "layout");
    let index = layout.join("index.json");
    let of = |variant: &str, architecture: &str| {
        let cmd = format!("--config.cmd={architecture}{variant}");
        base(&home, &layout, "one", &["--config.cmd=echo", &cmd]);
        let mut entry = read_json(&index)["manifests"][0].clone();
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        if !variant.is_empty() {
            entry["platform"]["variant"] = json!(variant);
        }
        umoci(&["remove"], &layout, "one", &[]);
        entry
    };
    let run = |entries: &[&Value]| {
        let inner = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        let outer = json!({ "schemaVersion": 2, "manifests": [put(&layout, &inner, INDEX)] });
        fs::write(&index, outer.to_string()).unwrap();
        adl_command(&home.state()).arg("run").arg(&layout).output().unwrap()
    };
    let [plain, arm] = [of("", "amd64"), of("v7", "arm")];
    let levels = ["v2", "v3", "v4", "v9"].map(|variant| of(variant, "amd64"));
    let [two, three, four, nine] = levels.each_ref();
    let all = run(&[&arm, nine, two, &plain, four, three]);
    let expected = ["amd64\n", "amd64v2\n", "amd64v3\n", "amd64v4\n"][level() - 1];
    assert_eq!(String::from_utf8_lossy(&all.stdout), expected, "{}", stderr(&all));
    // Where no level fits, the plain one.
    let output = run(&[nine, &arm, &plain]);
    assert_eq!(output.stdout, b"amd64\n", "{}", stderr(&output));
    let none = run(&[nine, &arm]);
    assert_eq!(none.status.code(), Some(125));
    for words in ["linux/amd64/v9, linux/arm/v7", &format!("has the level v{}", level())] {
        assert!(stderr(&none).contains(words), "{words}: {}", stderr(&none));
    }
}

#[test]
fn what_differs_from_its_digest_is_no_image_and_leaves_nothing() {
    if !needs(&[UMOCI, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let layout = layout_of_one(&home, &["--config.cmd=echo", "--config.cmd=good"]);
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
    assert_eq!(run_adl(&home, &["image", "ls"]), "");
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
    let layout = layout_of_one(&home, &[]);
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
    let layout = layout_of_one(&home, &[]);
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
    let shown = run_adl(&home, &["image", "ls"]);
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
    let layout = layout_of_one(&home, &[]);
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
