//! Builds `adl-init`, the static PID 1, so that the library can embed it.
//!
//! A cargo of its own, since nothing about that binary is as the caller's program is built: no
//! libc, no unwinding, small rather than fast. `ADL_INIT` names a binary to embed instead, for
//! distributions that build it themselves.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

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
    let target_dir = PathBuf::from(variable("OUT_DIR")?).join("init");
    let manifest = here.join("../init/Cargo.toml");
    for source in
        ["../init/src", "../init/build.rs", "../init/link.ld", "../init/Cargo.toml", "../protocol"]
    {
        println!("cargo::rerun-if-changed={}", here.join(source).display());
    }

    let mut cargo = Command::new(variable("CARGO")?);
    cargo.args(["build", "--quiet", "--release", "--locked", "--features", "executable"]);
    cargo.args(["--target", TARGET, "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(&target_dir);
    // What the caller set for the program around this must not reach the program inside it.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_TARGET_")
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
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    for (key, value) in [
        ("PANIC", "abort"),
        ("OPT_LEVEL", "s"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("DEBUG", "false"),
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
