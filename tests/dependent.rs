//! A program elsewhere needs to say no more than that it depends on adl-runtime.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::harness::{
    BUILD_LIMIT, Home, Need, cargo, needs, repository, stderr, succeeds, target_directory,
    temporary_directory,
};
use crate::readme;

#[test]
fn a_crate_elsewhere_builds_and_runs_the_example_of_the_readme() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let example = readme::blocks(&readme::readme(), "rust").into_iter().next().expect("an example");
    let home = Home::of_a_test_that_takes(BUILD_LIMIT);
    let elsewhere = temporary_directory();
    let crate_root = elsewhere.path().join("dependent");
    fs::create_dir_all(crate_root.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"dependent\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nadl-runtime = {{ path = {:?}, default-features = false }}\n",
        repository().join("runtime")
    );
    fs::write(crate_root.join("Cargo.toml"), manifest).unwrap();
    fs::write(crate_root.join("src/main.rs"), program(&example)).unwrap();
    // The versions that are on this machine already.
    fs::copy(repository().join("Cargo.lock"), crate_root.join("Cargo.lock")).unwrap();

    let mut output = build_and_run(&crate_root, &home, true);
    if !output.status.success() && stderr(&output).contains("--offline") {
        output = build_and_run(&crate_root, &home, false);
    }
    assert!(output.status.success(), "{example}\n{}", stderr(&output));
    let tree = dependencies(&crate_root, &["--offline"]);
    assert!(tree.contains("adl-protocol") && !tree.contains("\nclap v"), "{tree}");
    // Control: the command line has it.
    let tree = dependencies(&repository(), &["--package", "adl-runtime"]);
    assert!(tree.contains("adl-protocol") && tree.contains("\nclap v"), "{tree}");
    // A program that ends without waiting for the removal of files leaves it to the collector.
    adl_runtime::collect_garbage(Some(&home.state())).unwrap();
}

/// The crates that a program is made of.
fn dependencies(crate_root: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(cargo());
    command.args(["tree", "--edges", "normal", "--prefix", "none"]).args(arguments);
    succeeds(command.current_dir(crate_root))
}

/// A whole program, if the example is only a body.
fn program(example: &str) -> String {
    if example.contains("fn main") {
        return example.to_owned();
    }
    let (uses, body): (Vec<&str>, Vec<&str>) = example
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line))
        .partition(|line| line.starts_with("use "));
    let end = if example.contains("Ok::<") || example.trim_end().ends_with("Ok(())") {
        ""
    } else {
        "Ok(())"
    };
    format!(
        "{}\nfn main() -> Result<(), Box<dyn std::error::Error>> {{\n{}\n{end}\n}}\n",
        uses.join("\n"),
        body.join("\n").replace("Ok::<(), adl_runtime::Error>(())", "Ok(())")
    )
}

fn build_and_run(crate_root: &Path, home: &Home, offline: bool) -> Output {
    let mut command = Command::new(cargo());
    command.arg("run").current_dir(crate_root).stdin(Stdio::null());
    if offline {
        command.arg("--offline");
    }
    // Kept between runs: only the first one builds the dependencies.
    command.env("CARGO_TARGET_DIR", target_directory().join("tmp/dependent"));
    command.env("ADL_STATE_DIR", home.state());
    command.output().unwrap()
}
