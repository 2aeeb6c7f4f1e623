//! Builds programs by cargo for the runner and for tests; no tests of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The `adl` program, as arguments of cargo.
pub(crate) const ADL: [&str; 5] = ["build", "--package", "adl-runtime", "--bin", "adl"];

/// The cargo that runs the tests, or the calling user's.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Where cargo put this program, and puts others.
pub(crate) fn target_directory() -> PathBuf {
    // TARGET/PROFILE/deps/adl-HASH, or with the name of a platform after TARGET.
    let this = std::env::current_exe().unwrap();
    let is_target = |path: &&Path| path.join(".rustc_info.json").exists();
    this.ancestors().find(is_target).map_or_else(|| repository().join("target"), Path::to_owned)
}

/// Builds an executable named `name` as this program was built: the same profile, the same place.
/// An error says that it could not be; why, cargo has printed.
pub(crate) fn build(name: &str, arguments: &[&str]) -> Result<PathBuf, String> {
    let mut command = Command::new(cargo());
    command.args(arguments).args(["--message-format", "json-render-diagnostics", "--target-dir"]);
    command.arg(target_directory()).current_dir(repository());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message.pointer("/target/name").is_some_and(|it| it == name))
        .find_map(|message| Some(message.get("executable")?.as_str()?.into()))
        .ok_or_else(|| format!("{command:?}: no executable {name}"))
}
