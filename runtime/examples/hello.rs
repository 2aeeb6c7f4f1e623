//! A first sandbox: a command, its output, and what to do about errors.
//!
//! `cargo run --example hello`

use std::error::Error as StdError;

use adl_runtime::{Config, Error, ErrorKind, Sandbox};

fn main() -> Result<(), Box<dyn StdError>> {
    // By default: the programs of this machine's /usr, none of its data, no network.
    let sandbox = match Sandbox::create(Config::default()) {
        // The error says what is missing, and what an administrator can do about it.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Err(format!("no sandboxes on this machine: {error}").into());
        }
        created => created?,
    };

    // A program is started without a shell: each argument reaches it as it is.
    let output = sandbox.command("echo").args(["hello,", "$HOME;"]).output()?;
    print!("echo: {}", String::from_utf8_lossy(&output.stdout));

    // A script needs a shell. Nothing of the calling program's environment is in it.
    let script = "echo $GREETING from $(id -un) in $PWD; exit 3";
    let output = sandbox.shell(script).env("GREETING", "hello").current_dir("/tmp").output()?;
    // A command that fails is no error of the call: its status tells.
    print!("shell: {}: {}", output.status, String::from_utf8_lossy(&output.stdout));

    // What can't be done is an error. Its kind says whose turn it is.
    let missing = sandbox.command("no-such-program").output();
    println!("missing: {}", advice(missing.err()));
    let unreadable = sandbox.files().read_file("/no/such/file");
    println!("unreadable: {}", advice(unreadable.err()));
    sandbox.delete()?;
    let late = sandbox.command("true").status();
    println!("late: {}", advice(late.err()));
    Ok(())
}

/// What a program does about an error, by its kind.
fn advice(error: Option<Error>) -> String {
    let Some(error) = error else { return "no error".to_owned() };
    let advice = match error.kind() {
        ErrorKind::Invalid => "change the call",
        ErrorKind::Unsupported => "change the machine, or ask for less",
        ErrorKind::Temporary => "try again later",
        ErrorKind::Died => "try again if the sandbox is alive, else reset it",
        ErrorKind::Inside => "tell whoever asked for it",
        ErrorKind::Violation => "trust nothing that is in it",
        // The host's own failures, and what later versions add.
        _ => "tell an administrator",
    };
    format!("{advice} ({error})")
}
