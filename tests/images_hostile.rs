//! Images that lie: layouts, archives and registries that say of themselves what is not so, made by
//! hand, and programs in the place of those that fetch.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use adl_runtime::{Config, Error, Image, Sandbox};
use serde_json::{Value, json};

use crate::harness::{Home, Need, OrdinaryUser, adl_command, needs, stderr, succeeds, within};
use crate::image_fixtures::{INDEX, MANIFEST, digest};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

const GZIP: Need = Need::Program("gzip");

/// A part of a tar archive: its kind, name, what it links to, and content.
type Part<'a> = (u8, &'a str, &'a str, &'a [u8]);

fn header((kind, name, link, _): Part<'_>, size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut set = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    set(0, name.as_bytes());
    set(100, if kind == b'5' { b"0000755\x00" } else { b"0000644\x00" });
    set(108, b"0000000\x000000000\x00");
    set(124, format!("{size:011o}\x0000000001750\x00").as_bytes());
    set(148, b"        ");
    set(156, &[kind]);
    set(157, link.as_bytes());
    set(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\x00").as_bytes());
    header
}

fn tar(parts: &[Part<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let content = part.3;
        bytes.extend(header(*part, content.len() as u64));
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A layer with a file of a content.
fn with(name: &str, content: &str) -> Vec<u8> {
    tar(&[(b'0', name, "", content.as_bytes())])
}

fn gzip(home: &Home, bytes: &[u8]) -> Vec<u8> {
    let file = home.path("to-gzip");
    fs::write(&file, bytes).unwrap();
    let output = Command::new("gzip").arg("-nc").arg(&file).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// An OCI image layout, in which anything may be said.
struct Layout(PathBuf);

impl Layout {
    fn new(home: &Home, name: &str) -> Self {
        let path = home.path(name);
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(path)
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.0.join("blobs").join(digest.replacen(':', "/", 1))
    }

    /// Writes a blob, and what leads to it.
    fn put(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = digest(bytes);
        fs::write(self.path(&digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn put_json(&self, document: &Value, media_type: &str) -> Value {
        self.put(document.to_string().as_bytes(), media_type)
    }

    /// An image of layers as descriptors say them, which a configuration says to be others.
    fn image_of(&self, layers: &[Value], diff_ids: &[String], config: &Value) -> Value {
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.put_json(&config, CONFIG);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        self.put_json(&manifest, MANIFEST)
    }

    /// An honest one of plain layers.
    fn image(&self, layers: &[&[u8]]) -> Value {
        let described: Vec<Value> = layers.iter().map(|layer| self.put(layer, LAYER)).collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        self.image_of(&described, &diff_ids, &json!({ "Cmd": ["x"] }))
    }

    fn index(&self, entries: &[Value]) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    descriptor
}

/// A state directory, and programs in the place of those of the machine.
struct Machine {
    home: Home,
    programs: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let home = Home::new();
        let programs = home.path("programs");
        fs::create_dir(&programs).unwrap();
        for program in ["cat", "cp", "sh", "sleep", "head"] {
            let path = ["/usr/bin", "/bin"].map(|bin| Path::new(bin).join(program));
            symlink(path.iter().find(|path| path.exists()).unwrap(), programs.join(program))
                .unwrap();
        }
        Self { home, programs }
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.programs.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A `skopeo` that brings an image of a layout, whatever it is asked for; before it brings the
    /// blobs that are not there, it runs `first`.
    fn skopeo(&self, layout: &Layout, image: &Value, first: &str) {
        let manifest = layout.path(image["digest"].as_str().unwrap());
        let script = format!(
            "case \"$*\" in *inspect*) exec cat {0};; esac
            {first}
            for blob in {1}/blobs/sha256/*; do
                there=image/blobs/sha256/${{blob##*/}}
                [ -e \"$there\" ] || {{ cp \"$blob\" \"$there\"; echo x >> {2}; }}
            done",
            manifest.display(),
            layout.0.display(),
            self.home.path("brought").display(),
        );
        self.program("skopeo", &script);
    }

    /// How many blobs it has brought since this was asked.
    fn brought(&self) -> usize {
        let count = fs::read_to_string(self.home.path("brought")).map_or(0, |x| x.lines().count());
        let _ = fs::remove_file(self.home.path("brought"));
        count
    }

    /// A `docker` that saves an archive, whatever it is asked for.
    fn docker(&self, archive: &Path) {
        let script = format!("[ \"$1\" = pull ] || cp {} \"$3\"", archive.display());
        self.program("docker", &script);
    }

    fn adl(&self) -> Command {
        let mut adl = adl_command(&self.home.state());
        adl.env("PATH", &self.programs);
        adl
    }

    fn image(&self, arguments: &[&str]) -> Output {
        self.adl().arg("image").args(arguments).output().unwrap()
    }

    fn pull(&self, name: &str) -> Output {
        self.image(&["pull", name])
    }

    fn import(&self, layout: &Layout, arguments: &[&str]) -> Output {
        let mut adl = self.adl();
        adl.args(["image", "import"]).arg(&layout.0).args(arguments).output().unwrap()
    }

    /// The names that are known.
    fn names(&self) -> String {
        let output = self.image(&["ls"]);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn told(output: &Output) -> String {
    format!("{:?} {}", output.status.code(), stderr(output))
}

#[track_caller]
fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}", told(output));
}

/// It has failed by an error of adl's own, which has some words.
#[track_caller]
fn assert_refused(output: &Output, words: &str) {
    assert_eq!(output.status.code(), Some(125), "{}", told(output));
    assert!(stderr(output).contains(words), "{words}: {}", told(output));
}

/// Archives it as `docker save` does.
fn archive_of(machine: &Machine, layout: &Layout) -> PathBuf {
    let archive = machine.home.path("saved.tar");
    succeeds(Command::new("tar").arg("-C").arg(&layout.0).arg("-cf").arg(&archive).arg("."));
    archive
}

/// A name with the digest of no image.
const PINNED: &str = "docker.io/library/debian@sha256:\
    0000000000000000000000000000000000000000000000000000000000000001";

#[test]
fn an_archive_gives_its_image_no_name_with_a_digest() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    let image = layout.image(&[&with("evil", "x")]);
    layout.index(&[named(image.clone(), PINNED)]);
    assert_refused(&machine.import(&layout, &[]), "says no name");
    assert_eq!(machine.names(), "");
    // Another name of the same image counts, and one with a digest can't be given either.
    let mut both = named(image, PINNED);
    both["annotations"]["io.containerd.image.name"] = json!("local/it:1");
    layout.index(&[both]);
    let output = machine.import(&layout, &[]);
    assert_eq!(output.stdout, b"docker.io/local/it:1\n", "{}", told(&output));
    assert_refused(&machine.import(&layout, &[PINNED]), "has no digest");
    // As `docker save` has names.
    let list = json!([{
        "Config": "config.json", "RepoTags": [PINNED, "debian:12@sha256:1"], "Layers": ["l.tar"],
    }]);
    let saved = Layout(machine.home.path("saved"));
    fs::create_dir(&saved.0).unwrap();
    let layer = with("evil", "y");
    let config = json!({ "rootfs": { "diff_ids": [digest(&layer)] } });
    fs::write(saved.0.join("l.tar"), layer).unwrap();
    fs::write(saved.0.join("config.json"), config.to_string()).unwrap();
    fs::write(saved.0.join("manifest.json"), list.to_string()).unwrap();
    assert_refused(&machine.import(&saved, &[]), "says no name");
    assert_eq!(machine.names().lines().count(), 1, "{}", machine.names());
}

#[test]
fn what_docker_saves_has_the_digest_that_was_asked_for_or_is_not_taken() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    let image = layout.image(&[&with("it", "x")]);
    layout.index(&[named(image.clone(), "r.example/x:1")]);
    machine.docker(&archive_of(&machine, &layout));
    let zeros = "0".repeat(63);
    assert_refused(&machine.pull(&format!("r.example/x@sha256:{zeros}2")), "install skopeo");
    assert_eq!(machine.names(), "");
    // By its own digest, and that of the index around it, it is the one.
    let inner = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [image] });
    let outer = layout.put_json(&inner, INDEX);
    layout.index(std::slice::from_ref(&outer));
    machine.docker(&archive_of(&machine, &layout));
    for descriptor in [&outer, &image] {
        let name = format!("r.example/x@{}", descriptor["digest"].as_str().unwrap());
        assert_ok(&machine.pull(&name));
        assert!(machine.names().contains(&name), "{}", machine.names());
    }
    // An old archive has no manifest: a tag is what docker says, a digest is not seen.
    for name in ["index.json", "oci-layout"] {
        fs::remove_file(layout.0.join(name)).unwrap();
    }
    let layer = with("it", "y");
    let config = json!({ "rootfs": { "diff_ids": [digest(&layer)] } });
    fs::write(layout.0.join("l.tar"), layer).unwrap();
    fs::write(layout.0.join("config.json"), config.to_string()).unwrap();
    let list = json!([{ "Config": "config.json", "RepoTags": null, "Layers": ["l.tar"] }]);
    fs::write(layout.0.join("manifest.json"), list.to_string()).unwrap();
    machine.docker(&archive_of(&machine, &layout));
    assert_refused(&machine.pull(&format!("r.example/y@sha256:{zeros}2")), "install skopeo");
    assert_ok(&machine.pull("r.example/y:1"));
}

#[test]
fn an_image_that_lies_of_its_layers_is_refused_and_is_in_no_others_way() {
    if !needs(&[GZIP]) {
        return;
    }
    let machine = Machine::new();
    let (base, own) = (with("base", "x"), with("own", "y"));
    let packed = gzip(&machine.home, &own);
    let attacker = Layout::new(&machine.home, "attacker");
    let config = json!({ "Cmd": ["x"] });
    let base_id = digest(&base);
    let base_layer = attacker.put(&base, LAYER);
    let honest = attacker.image_of(
        std::slice::from_ref(&base_layer),
        std::slice::from_ref(&base_id),
        &config,
    );
    attacker.index(std::slice::from_ref(&honest));
    assert_ok(&machine.import(&attacker, &["base"]));
    // The layer that another image has is said to be one that is there.
    let packed_layer = attacker.put(&packed, LAYER);
    let layers = [base_layer.clone(), packed_layer.clone()];
    let lies = attacker.image_of(&layers, &[base_id.clone(), base_id.clone()], &config);
    attacker.index(std::slice::from_ref(&lies));
    machine.skopeo(&attacker, &lies, "");
    assert_refused(&machine.pull("attacker:1"), "diff id");
    assert_refused(&machine.import(&attacker, &["attacker:1"]), "diff id");
    // Not even with the layer left out.
    fs::remove_file(attacker.path(&digest(&packed))).unwrap();
    assert_refused(&machine.import(&attacker, &["attacker:1"]), "lacks the layer");
    let victim = Layout::new(&machine.home, "victim");
    victim.put(&base, LAYER);
    victim.put(&packed, LAYER);
    let diff_ids = [base_id, digest(&own)];
    let image = victim.image_of(&layers, &diff_ids, &config);
    machine.skopeo(&victim, &image, "");
    machine.brought();
    assert_ok(&machine.pull("victim:1"));
    // All but the base, of which it was seen what it is.
    assert_eq!(machine.brought(), 3);
    // And what is known of its own layer is not what another says.
    let lies = attacker.image_of(&layers, &[diff_ids[0].clone(), diff_ids[0].clone()], &config);
    machine.skopeo(&attacker, &lies, "");
    assert_refused(&machine.pull("attacker:2"), "its diff id is");
    assert_eq!(machine.names().lines().count(), 2, "{}", machine.names());
}

/// A base that is there, and a `skopeo` that brings an image with that and a layer of its own.
fn upon_a_base(machine: &Machine, first: &str) -> (Layout, Value) {
    let layout = Layout::new(&machine.home, "layout");
    let (base, own) = (with("base", "x"), with("own", "y"));
    let alone = layout.image(&[&base]);
    layout.index(std::slice::from_ref(&alone));
    assert_ok(&machine.import(&layout, &["base:1"]));
    let both = Layout::new(&machine.home, "both");
    let image = both.image(&[&base, &own]);
    machine.skopeo(&both, &image, first);
    (both, image)
}

#[test]
fn layers_that_are_not_fetched_again_stay_until_the_image_that_has_them_is_there() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    // Meanwhile, who has them is to be removed.
    let first = format!(
        "ADL_STATE_DIR={} {} image rm base:1 2> {}",
        machine.home.state().display(),
        crate::harness::adl().display(),
        machine.home.path("refused").display()
    );
    upon_a_base(&machine, &first);
    machine.brought();
    assert_ok(&machine.pull("victim:1"));
    // The manifest, the configuration and its own layer.
    assert_eq!(machine.brought(), 3);
    let refused = fs::read_to_string(machine.home.path("refused")).unwrap();
    assert!(refused.contains("in use"), "{refused}");
    assert_ok(&machine.image(&["rm", "base:1"]));
    assert_ok(&machine.image(&["rm", "victim:1"]));
}

#[test]
fn a_pull_that_is_killed_leaves_nothing_that_the_next_takes_for_a_layer() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let begun = machine.home.path("begun");
    let (both, image) = upon_a_base(&machine, &format!("echo > {}; sleep 100", begun.display()));
    let mut adl = machine.adl().args(["image", "pull", "victim:1"]).spawn().unwrap();
    let has_begun = within(Duration::from_secs(60), || begun.exists());
    adl.kill().unwrap();
    adl.wait().unwrap();
    assert!(has_begun);
    // What it stood for is gone.
    assert_ok(&machine.image(&["rm", "base:1"]));
    machine.skopeo(&both, &image, "");
    assert_ok(&machine.pull("victim:1"));
    assert!(machine.names().contains("victim:1"), "{}", machine.names());
}

/// What is said of a layer of so many bytes.
fn described(digest: &str, size: usize) -> Value {
    json!({ "mediaType": LAYER, "digest": digest, "size": size })
}

/// What `docker save` wrote once, with the same layer so many times.
fn saved_of(machine: &Machine, name: &str, times: usize) -> PathBuf {
    let path = machine.home.path(name);
    fs::create_dir(&path).unwrap();
    let layer = with("it", "x");
    let config = json!({ "rootfs": { "diff_ids": vec![digest(&layer); times] } });
    let list = json!([{
        "Config": "config.json", "RepoTags": ["many:1"], "Layers": vec!["l.tar"; times],
    }]);
    fs::write(path.join("l.tar"), layer).unwrap();
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    fs::write(path.join("manifest.json"), list.to_string()).unwrap();
    path
}

#[test]
fn an_image_with_too_many_layers_is_refused_and_leaves_no_record() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let import = |path: &Path| machine.image(&["import", path.to_str().unwrap()]);
    assert_refused(&import(&saved_of(&machine, "many", 1001)), "more than 1000 layers");
    assert_ok(&import(&saved_of(&machine, "most", 1000)));
    assert_eq!(machine.names().lines().count(), 1);
    for command in [&["prune", "--unused-for", "1h"][..], &["rm", "many:1"]] {
        assert_ok(&machine.image(command));
    }
    assert_eq!(machine.names(), "");
    // Different ones are as many as a sandbox takes, and that is said before any is fetched.
    let layout = Layout::new(&machine.home, "layout");
    let of = |number: usize| digest(number.to_string().as_bytes());
    let layers: Vec<Value> = (0..128).map(|number| described(&of(number), 100)).collect();
    let diff_ids: Vec<String> = (0..128).map(of).collect();
    let image = layout.image_of(&layers, &diff_ids, &json!({}));
    machine.skopeo(&layout, &image, "");
    machine.brought();
    assert_refused(&machine.pull("many:2"), "128 layers");
    assert_eq!(machine.brought(), 0);
}

#[test]
fn sizes_that_no_image_has_are_refused_before_anything_is_fetched() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    let layers = [with("one", "x"), with("two", "y")];
    let honest = layout.image(&[&layers[0], &layers[1]]);
    layout.index(std::slice::from_ref(&honest));
    assert_ok(&machine.import(&layout, &["honest"]));
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let sizes = [[u64::MAX, u64::MAX], [1 << 35, (1 << 35) + 1], [1024, 1 << 36]];
    for sizes in sizes {
        let said = diff_ids
            .iter()
            .zip(sizes)
            .map(|(digest, size)| json!({ "mediaType": LAYER, "digest": digest, "size": size }));
        let image = layout.image_of(&said.collect::<Vec<_>>(), &diff_ids, &json!({}));
        machine.skopeo(&layout, &image, "");
        machine.brought();
        // With layers that are there, and with one that is not.
        assert_refused(&machine.pull("sizes:1"), "the layers of an image");
        layout.index(std::slice::from_ref(&image));
        assert_refused(&machine.import(&layout, &["sizes:1"]), "the layers of an image");
        assert_eq!(machine.brought(), 0);
        assert_eq!(machine.names().lines().count(), 1, "{}", machine.names());
    }
    // Of a layer that is there, the size is known.
    let said = diff_ids.iter().map(|digest| described(digest, 2049));
    let image = layout.image_of(&said.collect::<Vec<_>>(), &diff_ids, &json!({}));
    layout.index(std::slice::from_ref(&image));
    assert_refused(&machine.import(&layout, &["sizes:1"]), "its size");
}

#[test]
fn a_registry_that_sends_more_than_an_image_has_is_stopped() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    let image = layout.image(&[&with("it", "x")]);
    // Of a blob it has brought much, and goes on.
    let piece = "head -c 134217728 /dev/zero > image/";
    for to in ["oci-put-blob1", "blobs/sha256/oci-put-blob1"] {
        machine.skopeo(&layout, &image, &format!("{piece}{to}; sleep 1000"));
        assert_refused(&machine.pull("much:1"), "more than it says of itself");
        let left = fs::read_dir(machine.home.state().join("catalog")).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name == "lock"), "{names:?}");
    }
    // As much as there may be is no harm.
    machine.skopeo(&layout, &image, "");
    assert_ok(&machine.pull("much:1"));
    // Nor is what an earlier attempt has begun, which goes.
    let late = "head -c 60000000 /dev/zero > image/oci-put-blob$$; exit 1";
    machine.skopeo(&layout, &image, late);
    assert_ok(&machine.image(&["rm", "much:1"]));
    for _ in 0..3 {
        assert_refused(&machine.pull("much:1"), "skopeo");
    }
    machine.skopeo(&layout, &image, "");
    assert_ok(&machine.pull("much:1"));
    fs::remove_file(machine.programs.join("skopeo")).unwrap();
    machine.program(
        "docker",
        "[ \"$1\" = pull ] || { head -c 134217728 /dev/zero > \"$3\"; sleep 1000; }",
    );
    let caps = ["pull", "--max-size", "1m", "much:2"];
    assert_refused(&machine.image(&caps), "more than it says of itself");
}

#[test]
fn indexes_in_one_another_are_tried_up_to_a_number() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    // Each leads to the one below it 64 times, and the last to nothing.
    let mut entry = described(&digest(b"absent"), 2);
    entry["mediaType"] = json!(MANIFEST);
    for _ in 0..4 {
        let inner = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": vec![entry; 64],
            "annotations": { "x": "x".repeat(1 << 20) },
        });
        entry = layout.put_json(&inner, INDEX);
    }
    layout.index(std::slice::from_ref(&entry));
    let mut adl = machine.adl();
    adl.args(["image", "import"]).arg(&layout.0).arg("nest");
    let mut adl = adl.stderr(Stdio::piped()).spawn().unwrap();
    // Millions would take days.
    let has_ended = within(Duration::from_secs(60), || adl.try_wait().unwrap().is_some());
    adl.kill().unwrap();
    let output = adl.wait_with_output().unwrap();
    assert!(has_ended);
    assert_refused(&output, "lacks");
}

#[test]
fn what_reads_an_image_ends_by_its_deadline() {
    if !needs(&[GZIP]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    let image = layout.image(&[&with("it", "x")]);
    layout.index(std::slice::from_ref(&image));
    assert_refused(&machine.import(&layout, &["it", "--timeout", "0.000001s"]), "waited");
    let archive = archive_of(&machine, &layout);
    let import = |archive: &Path, timeout: &str| {
        machine.image(&["import", archive.to_str().unwrap(), "it", "--timeout", timeout])
    };
    assert_refused(&import(&archive, "0.000001s"), "waited");
    assert_ok(&import(&archive, "60s"));
}

/// An archive whose first part is another's.
fn owned(mut archive: Vec<u8>, id: u8) -> Vec<u8> {
    for at in [108, 116] {
        archive[at..at + 8].copy_from_slice(format!("{id:07o}\x00").as_bytes());
    }
    archive[148..156].copy_from_slice(b"        ");
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..155].copy_from_slice(format!("{sum:06o}\x00").as_bytes());
    archive
}

#[test]
fn one_image_is_used_with_ids_and_without_in_either_order() {
    if !needs(&[Need::Root, Need::Userns, Need::Program("busybox"), Need::Program("newuidmap")]) {
        return;
    }
    let home = Home::new();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = fs::read(busybox.into_iter().find(|path| path.exists()).unwrap()).unwrap();
    let layout = Layout::new(&home, "layout");
    let mut program = tar(&[(b'5', "./", "", b""), (b'0', "busybox", "", &busybox)]);
    // The second header's mode: it is run.
    program[512 + 100..512 + 108].copy_from_slice(b"0000755\x00");
    program = owned(program, 5);
    let header = &mut program[512..1024];
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\x00").as_bytes());
    let image = layout.image(&[&program, &with("it", "x")]);
    layout.index(std::slice::from_ref(&image));
    for first_with_ids in [true, false] {
        let user = OrdinaryUser::with_subordinate_ids();
        let there = user.adl().parent().unwrap().join("layout");
        succeeds(Command::new("cp").arg("-r").arg(&layout.0).arg(&there));
        succeeds(Command::new("chmod").args(["-R", "a+rX"]).arg(&there));
        let owner = |with_ids: bool| {
            let mut adl = user.command(user.adl());
            adl.arg("run");
            if with_ids {
                adl.args(["--ids", "65536"]);
            }
            adl.arg(&there).args(["/busybox", "stat", "-c", "%u:%g", "/"]);
            succeeds(&mut adl)
        };
        for with_ids in [first_with_ids, !first_with_ids, true, false] {
            let expected = if with_ids { "5:5\n" } else { "0:0\n" };
            assert_eq!(owner(with_ids), expected, "{with_ids}, {first_with_ids}");
        }
        fs::remove_dir_all(there).unwrap();
    }
}

#[test]
fn what_a_terminal_obeys_does_not_reach_it_from_an_image() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    let image = layout.image(&[&with("it", "x")]);
    let red = "\u{1b}[31m\u{9b}31m\u{1b}]0;title\u{7}";
    let of = |name: &str| named(image.clone(), name);
    layout.index(&[of(&format!("one{red}:1")), of("two:1")]);
    let output = machine.import(&layout, &[]);
    assert_refused(&output, "two:1");
    let mut other = image.clone();
    other["platform"] = json!({ "os": red, "architecture": red });
    layout.index(std::slice::from_ref(&other));
    let inner = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [other] });
    layout.index(&[layout.put_json(&inner, INDEX)]);
    let platform = machine.import(&layout, &["it"]);
    assert_refused(&platform, "this machine is");
    let assert_plain = |text: &str| {
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    };
    assert_plain(&stderr(&output));
    assert_plain(&stderr(&platform));
    let labels = json!({ "Labels": { "l": red, "null": null }, "Cmd": "one word" });
    let layer = with("it", "x");
    let described = layout.put(&layer, LAYER);
    layout.index(&[layout.image_of(&[described], &[digest(&layer)], &labels)]);
    assert_ok(&machine.import(&layout, &["it"]));
    let inspect = machine.image(&["inspect", "it"]);
    assert_ok(&inspect);
    let text = String::from_utf8(inspect.stdout).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["config"]["config"]["Labels"]["l"], red);
    assert_plain(&text);
}

#[test]
fn an_image_that_is_not_to_be_fetched_is_not() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let asked = machine.home.path("asked");
    machine.program("skopeo", &format!("echo > {}; exit 1", asked.display()));
    let create = |image: Image| {
        let state_directory = Some(machine.home.state());
        Sandbox::create(Config { image, state_directory, ..Config::default() }).map(drop)
    };
    let absent = create(Image::local("absent:1"));
    let name = "docker.io/library/absent:1";
    assert!(matches!(&absent, Err(Error::NoImage { name: said }) if said == name), "{absent:?}");
    let layout = Layout::new(&machine.home, "layout");
    layout.index(&[layout.image(&[&with("it", "x")])]);
    assert_ok(&machine.import(&layout, &["there:1"]));
    create(Image::local("there:1")).unwrap();
    let never = machine.adl().args(["run", "--pull", "never", "absent:1", "x"]).output().unwrap();
    assert_refused(&never, "--pull never");
    assert!(!asked.exists());
}

#[test]
fn a_layout_of_one_image_for_several_platforms_is_that_image() {
    if !needs(&[]) {
        return;
    }
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    let mine = layout.image(&[&with("it", "x")]);
    let other = described(&digest(b"absent"), 2);
    let on = |descriptor: &Value, architecture: &str| {
        let mut descriptor = descriptor.clone();
        descriptor["mediaType"] = json!(MANIFEST);
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    };
    let entries = [on(&other, "arm64"), on(&mine, "amd64")];
    layout.index(&entries);
    assert_ok(&machine.import(&layout, &["one:1"]));
    layout.index(&entries.clone().map(|entry| named(entry, "two:1")));
    assert_ok(&machine.import(&layout, &[]));
    assert_ok(&machine.import(&layout, &["--which", "two:1", "three:1"]));
    for name in ["one:1", "two:1", "three:1"] {
        assert!(machine.names().contains(name), "{}", machine.names());
    }
    // Two images are two.
    layout.index(&[named(entries[0].clone(), "a:1"), named(entries[1].clone(), "b:1")]);
    assert_refused(&machine.import(&layout, &[]), "a:1, b:1");
    layout.index(&[mine.clone(), mine]);
    assert_refused(&machine.import(&layout, &["it"]), "without a name");
}

#[test]
fn there_may_be_more_images_than_a_process_may_open_files() {
    if !needs(&[Need::Program("prlimit")]) {
        return;
    }
    const MANY: usize = 150;
    let machine = Machine::new();
    let layout = Layout::new(&machine.home, "layout");
    layout.index(&[layout.image(&[&with("it", "x")])]);
    assert_ok(&machine.import(&layout, &["first:1"]));
    // Each as the first, but for its digest.
    let catalog = machine.home.state().join("catalog");
    let record = fs::read_dir(&catalog).unwrap().map(|entry| entry.unwrap().path());
    let is_record = |path: &PathBuf| path.to_str().unwrap().contains("/image-sha256-");
    let record = record.into_iter().find(is_record).unwrap();
    let (name, text) = (record.to_str().unwrap(), fs::read_to_string(&record).unwrap());
    let own = name.rsplit_once('-').unwrap().1.strip_suffix(".json").unwrap();
    for number in 0..MANY {
        let other = format!("{number:064x}");
        let path = name.replace(own, &other);
        fs::write(&path, text.replace(own, &other)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let few = |arguments: &[&str]| {
        let mut adl = Command::new("/usr/bin/prlimit");
        adl.args(["--nofile=64:64", "--"]).arg(crate::harness::adl()).arg("image").args(arguments);
        adl.env("PATH", &machine.programs).env("ADL_STATE_DIR", machine.home.state());
        adl.output().unwrap()
    };
    let list = few(&["ls"]);
    assert_ok(&list);
    assert_eq!(String::from_utf8_lossy(&list.stdout).lines().count(), MANY + 1);
    let other = layout.image(&[&with("it", "x"), &with("other", "y")]);
    machine.skopeo(&layout, &other, "");
    assert_ok(&few(&["pull", "other:1"]));
    assert_ok(&few(&["rm", "other:1"]));
    let removed = few(&["prune", "--unused-for", "0"]);
    assert_ok(&removed);
    assert_eq!(machine.names(), "");
}
