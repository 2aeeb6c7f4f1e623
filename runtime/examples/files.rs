//! Files of a sandbox: written, read, listed, copied in and out, as one of its users.
//!
//! `cargo run --example files`

use std::error::Error;
use std::fs;
use std::io::{Read, Write};

use adl_runtime::{Config, Error as SandboxError, HostPath, Sandbox, WriteMode, WriteOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = Sandbox::create(Config::default())?;
    let mut files = sandbox.files();
    files.current_dir("/tmp");

    // All at once: whoever reads it meanwhile finds the old file or the new one.
    files.write_file("notes", "one\n")?;
    files.append_file("notes", "two\n")?;
    print!("notes: {}", String::from_utf8_lossy(&files.read_file("notes")?).replace('\n', " "));
    println!("({} bytes)", files.metadata("notes")?.size);

    // What may be large goes through in pieces.
    let options = WriteOptions::new().how(WriteMode::CreateNew).mode(0o600);
    let mut writer = files.open_write("large", options)?;
    for _ in 0..1024 {
        writer.write_all(&[b'x'; 1024])?;
    }
    // Without this, there is no file.
    writer.finish()?;
    let mut start = [0; 4];
    files.open_read("large")?.read_exact(&mut start)?;
    println!("large: {}... {} bytes", start.escape_ascii(), files.metadata("large")?.size);

    // Trees go in, and come out, where nothing that is inside leads out of the directory.
    let host = std::env::temp_dir().join(format!("adl-example-{}", std::process::id()));
    fs::create_dir(&host)?;
    let copied = copy(&sandbox, &host);
    fs::remove_dir_all(&host)?;
    copied?;

    // As someone else, with the rights of that user inside. An ordinary user's sandbox has root
    // alone.
    if sandbox.id_range().is_some() {
        let mut guest = sandbox.files();
        guest.user("1000").current_dir("/tmp");
        guest.write_file("mine", "")?;
        println!("mine: owner {}", guest.metadata("mine")?.uid);
        match guest.read_file("large") {
            Err(SandboxError::File { source, .. }) => println!("large, for 1000: {source}"),
            other => println!("large, for 1000: {} bytes", other?.len()),
        }
    } else {
        println!("mine: this sandbox has one user, 0");
    }
    Ok(sandbox.delete()?)
}

/// Copies a project in, has it built there, and copies the result out.
fn copy(sandbox: &Sandbox, host: &std::path::Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir(host.join("project"))?;
    fs::write(host.join("project/input"), "b\na\n")?;
    let files = sandbox.files();
    let report = files.copy_in(host.join("project"), "/tmp/project")?;
    println!("copied in: {} files, {} directories", report.files, report.directories);

    sandbox.command("sort").args(["-o", "output", "input"]).current_dir("/tmp/project").status()?;
    for entry in files.list_dir("/tmp/project")? {
        println!("project: {} ({:?})", entry.name.display(), entry.kind);
    }
    // Beneath a directory of ours, through no link: what is there may be a guest's already.
    files.copy_out("/tmp/project", HostPath::beneath(host, "result"))?;
    println!("copied out: {:?}", fs::read_to_string(host.join("result/output"))?);
    Ok(())
}
