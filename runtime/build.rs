//! Builds `adl-init`, the static PID 1, so that the library can embed it.
//!
//! A cargo of its own, since nothing about that binary is as the caller's program is built: no
//! libc, no unwinding, small rather than fast. `ADL_INIT` names a binary to embed instead, for
//! distributions that build it themselves.
//!
//! `embedded/` leads to the sources of init, by links in the repository, as files in a package.
//! Its manifests have other names: of a directory with a `Cargo.toml`, cargo packages nothing. So
//! the workspace that init is built in is put together in `OUT_DIR`.

use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, io};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=ADL_INIT");
    match init() {
        Ok(path) => {
            println!("cargo::rustc-env=ADL_INIT_PATH={}", path.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("cargo::error={why}");
            ExitCode::FAILURE
        }
    }
}

fn init() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("ADL_INIT") {
        let path = Path::new(&path)
            .canonicalize()
            .map_err(|error| format!("ADL_INIT={}: {error}", Path::new(&path).display()))?;
        println!("cargo::rerun-if-changed={}", path.display());
        return Ok(path);
    }
    let variable = |name| env::var_os(name).ok_or_else(|| format!("{name} is not set by cargo"));
    if variable("CARGO_CFG_TARGET_ARCH")? != "x86_64" || variable("CARGO_CFG_TARGET_OS")? != "linux"
    {
        return Err("adl runs on x86_64 Linux only".to_owned());
    }
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let (workspace, target_dir) = (out.join("workspace"), out.join("init"));
    let called_from = where_cargo_was_called().unwrap_or_else(|| here.clone());
    put_together(&here.join("embedded"), &workspace)?;
    lock_as_around([&out, &called_from, &here], &workspace)?;

    let mut cargo = Command::new(variable("CARGO")?);
    cargo.args(["build", "--quiet", "--release", "--package", "adl-init"]);
    cargo.args(["--features", "executable", "--target", TARGET, "--manifest-path"]);
    cargo.arg(workspace.join("Cargo.toml")).arg("--target-dir").arg(&target_dir);
    cargo.current_dir(&called_from);
    // What the caller set for the program around this must not reach the program inside it.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_TARGET_") && !name.ends_with("_LINKER")
            || matches!(&*name, "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER")
        {
            cargo.env_remove(&*name);
        }
    }
    let flags = [
        "-Crelocation-model=static",
        "-Ctarget-feature=+crt-static",
        // A program that aborts on panic never reads them.
        "-Cforce-unwind-tables=no",
        // Of the sizes at which a function is still inlined, the one that makes init the smallest;
        // and what several functions have alike is there once.
        "-Cllvm-args=-inline-threshold=10 -enable-machine-outliner=always",
        // A later compiler may find more.
        "--cap-lints=warn",
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo.env("CARGO_BUILD_BUILD_DIR", &target_dir).env("CARGO_INCREMENTAL", "0");
    for (key, value) in [
        ("PANIC", "abort"),
        ("OPT_LEVEL", "z"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("DEBUG", "false"),
        ("DEBUG_ASSERTIONS", "false"),
        ("OVERFLOW_CHECKS", "false"),
        ("STRIP", "symbols"),
    ] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    let status = cargo.status().map_err(|error| format!("cargo for adl-init: {error}"))?;
    if !status.success() {
        return Err(format!("adl-init could not be built: {status}"));
    }
    Ok(target_dir.join(TARGET).join("release/adl-init"))
}

/// The directory in which cargo was called. It reads its configuration from there, such as where
/// packages come from; init's cargo, called there, reads that, too.
fn where_cargo_was_called() -> Option<PathBuf> {
    let directory = fs::read_link(format!("/proc/{}/cwd", parent_id())).ok()?;
    directory.is_dir().then_some(directory)
}

/// Makes the workspace of init and protocol, of what is in `embedded/`.
fn put_together(sources: &Path, workspace: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed={}", sources.display());
    let put = |from: &str, to: &str, how: fn(&Path, &Path) -> io::Result<()>| {
        let (from, to) = (sources.join(from), workspace.join(to));
        fs::create_dir_all(to.parent().unwrap_or(workspace))
            .and_then(|()| how(&from, &to))
            .map_err(|error| format!("{} as {}: {error}", from.display(), to.display()))
    };
    put("workspace.toml", "Cargo.toml", put_manifest)?;
    put("init/manifest.toml", "init/Cargo.toml", put_manifest)?;
    put("protocol/manifest.toml", "protocol/Cargo.toml", put_manifest)?;
    for path in ["init/src", "init/build.rs", "init/link.ld", "protocol/src"] {
        put(path, path, put_link)?;
    }
    Ok(())
}

/// Writes a manifest of the repository as it has to be here: with two members, and without what
/// only tests need, which whoever builds the package has not got.
fn put_manifest(from: &Path, to: &Path) -> io::Result<()> {
    let mut text = String::new();
    let mut is_for_tests = false;
    for line in fs::read_to_string(from)?.lines() {
        if line.starts_with('[') {
            is_for_tests = line == "[dev-dependencies]";
        }
        if line.starts_with("members = ") {
            text.push_str("members = [\"init\", \"protocol\"]\n");
        } else if !is_for_tests {
            text.push_str(line);
            text.push('\n');
        }
    }
    fs::write(to, text)
}

fn put_link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(from, to),
    }
}

/// Makes init of the versions that the program around it is made of: cargo takes them from its lock
/// file, and leaves out what init does without. That file lies above what is built, above where
/// cargo was called, or, if both are elsewhere, in the package.
fn lock_as_around(places: [&Path; 3], workspace: &Path) -> Result<(), String> {
    let owner = |path: &Path| fs::metadata(path).map(|meta| meta.uid()).ok();
    let owners = [Some(0), owner(workspace), owner(places[1]), owner(places[2])];
    // In a directory for all, as /tmp, it may be anyone's: it decides nothing.
    let is_trusted = |above: &&Path| {
        let is_lock = fs::metadata(above.join("Cargo.lock")).is_ok_and(|meta| meta.is_file());
        let is_closed = |meta: &fs::Metadata| {
            meta.mode() & 0o1002 != 0o1002 && owners.contains(&Some(meta.uid()))
        };
        is_lock && fs::metadata(above).as_ref().is_ok_and(is_closed)
    };
    let places_above = places.into_iter().flat_map(Path::ancestors).filter(is_trusted);
    let mut candidates = places_above.map(|above| above.join("Cargo.lock"));
    let names_this = |lock: &PathBuf| {
        let text = fs::read_to_string(lock).unwrap_or_default();
        text.lines().any(|line| line == "name = \"adl-runtime\"")
    };
    let lock = candidates.find(names_this).ok_or_else(|| {
        format!(
            "no Cargo.lock above {places:?} names adl-runtime: run `cargo generate-lockfile`, or \
             name an adl-init that is built already by ADL_INIT"
        )
    })?;
    println!("cargo::rerun-if-changed={}", lock.display());
    // No copy of the file, which may be read-only.
    let text = fs::read(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
    let ours = workspace.join("Cargo.lock");
    fs::write(&ours, text).map_err(|error| format!("{}: {error}", ours.display()))
}
