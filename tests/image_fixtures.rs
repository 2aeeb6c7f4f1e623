//! What tests of images stand on: layouts made by umoci, and a registry that serves them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Home, Need, adl_command, stderr, succeeds};

pub(crate) const UMOCI: Need = Need::Program("umoci");
pub(crate) const SKOPEO: Need = Need::Program("skopeo");
pub(crate) const REGISTRY: Need = Need::Program("docker-registry");
pub(crate) const BUSYBOX: Need = Need::Program("busybox");

/// A registry on loopback, ended when it is dropped or this process ends.
pub(crate) struct Registry {
    process: Child,
    pub(crate) address: String,
}

impl Registry {
    pub(crate) fn start(home: &Home) -> Self {
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
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        let name = format!("{}/{name}", self.address);
        succeeds(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"])
                .arg(format!("oci:{}:{tag}", layout.display()))
                .arg(format!("docker://{name}")),
        );
        name
    }

    /// One with a small image, `one`, that says so; the layout that this lies in, too, and its name.
    pub(crate) fn with_one(home: &Home, config: &[&str]) -> (Self, PathBuf, String) {
        let layout = layout_of_one(home, config);
        let registry = Self::start(home);
        let name = registry.push(&layout, "one", "one");
        (registry, layout, name)
    }

    /// A home directory whose owner has it for a registry without certificates.
    pub(crate) fn home(&self, directory: &Path) -> PathBuf {
        let containers = directory.join(".config/containers");
        fs::create_dir_all(&containers).unwrap();
        let text = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", self.address);
        fs::write(containers.join("registries.conf"), text).unwrap();
        directory.to_owned()
    }

    pub(crate) fn stop(mut self) {
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
pub(crate) fn layout(home: &Home, name: &str) -> PathBuf {
    let path = home.path(name);
    succeeds(Command::new("umoci").args(["init", "--layout"]).arg(&path));
    path
}

pub(crate) fn umoci(command: &[&str], layout: &Path, tag: &str, rest: &[&str]) {
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
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:998:\nstaff:x:50:app\nwheel:x:10:root\n")
        .unwrap();
}

/// An image of that, under a tag.
pub(crate) fn base(home: &Home, layout: &Path, tag: &str, config: &[&str]) {
    let root = home.path("root");
    if !root.exists() {
        small(&root);
    }
    umoci(&["new"], layout, tag, &[]);
    umoci(&["insert"], layout, tag, &[root.to_str().unwrap(), "/"]);
    umoci(&["config"], layout, tag, config);
}

/// A layout with one image, `one`, of a small root.
pub(crate) fn layout_of_one(home: &Home, config: &[&str]) -> PathBuf {
    let layout = layout(home, "layout");
    base(home, &layout, "one", config);
    layout
}

/// The names of the layers that are unpacked in a state directory.
pub(crate) fn layers(state: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(state.join("images")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("layer-")).collect();
    names.sort();
    names
}

/// Runs an `adl` that must succeed; what it wrote to stdout.
#[track_caller]
pub(crate) fn run_adl(home: &Home, arguments: &[&str]) -> String {
    succeeds(adl_command(&home.state()).args(arguments))
}

pub(crate) fn pull(home: &Home, name: &str) -> String {
    let mut adl = adl_command(&home.state());
    let output = adl.args(["image", "pull", "--insecure", name]).output().unwrap();
    assert!(output.status.success(), "{name}: {}", stderr(&output));
    stderr(&output)
}

/// A layer as zstd:chunked has it: a frame for what leads to each file and one for its content, and
/// behind them, in frames to skip, what is in the layer and where. With what its descriptor says.
pub(crate) fn chunked(archive: &[u8]) -> (Vec<u8>, Value) {
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
        "io.github.containers.zstd-chunked.manifest-checksum": digest(&packed),
        "io.github.containers.zstd-chunked.manifest-position":
            format!("{at}:{}:{}:1", packed.len(), toc.len()),
    });
    (layer, annotations)
}

/// The digest of bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let sum = succeeds(Command::new("sha256sum").arg(file.path()));
    format!("sha256:{}", sum.split(' ').next().unwrap())
}

/// The file of a blob.
pub(crate) fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replacen(':', "/", 1))
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Writes a document to a layout, by its digest, and what leads to it.
pub(crate) fn put(layout: &Path, document: &Value, media_type: &str) -> Value {
    let text = document.to_string();
    let digest = digest(text.as_bytes());
    fs::write(blob(layout, &digest), &text).unwrap();
    json!({ "mediaType": media_type, "digest": digest, "size": text.len() })
}

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The children of a process, by what the kernel says.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

pub(crate) fn is_skopeo(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "skopeo")
}
