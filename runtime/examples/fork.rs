//! Forks of a snapshot: prepare once, begin many times from there, see what each has changed.
//!
//! `cargo run --example fork`

use std::error::Error;

use adl_runtime::{Config, Sandbox, Snapshot};

fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = Sandbox::create(Config::default())?;

    // What takes long is done once.
    let prepare = "mkdir /srv/work && echo base > /srv/work/model && echo old > /srv/work/cache";
    let status = sandbox.shell(prepare).status()?;
    println!("prepared: {status}");

    // It takes as long as a reset, whatever was written. While a process runs inside, it is
    // refused: that could be in the middle of something.
    let snapshot = sandbox.snapshot()?;
    print_changes("snapshot", &snapshot)?;

    // Any number of sandboxes begin with it, none sees what another one writes.
    let first = Sandbox::create(snapshot.config())?;
    let second = Sandbox::create(snapshot.config())?;
    first.shell("echo first >> /srv/work/model; rm /srv/work/cache").status()?;
    second.shell("echo second >> /srv/work/model; touch /srv/work/new").status()?;
    for (name, fork) in [("first", &first), ("second", &second), ("origin", &sandbox)] {
        let model = fork.files().read_file("/srv/work/model")?;
        println!("{name}: model {:?}", String::from_utf8_lossy(&model));
        for change in fork.changes()? {
            println!("{name}: {:?} {}", change.kind, change.path.display());
        }
    }

    // A fork is kept in the same way, and begun with: a tree of attempts.
    let attempt = first.snapshot()?;
    print_changes("attempt", &attempt)?;
    let next = Sandbox::create(attempt.config())?;
    println!("next: cache is there: {}", next.files().exists("/srv/work/cache")?);

    // A reset leads back to what a sandbox began with, and a fork to its snapshot.
    second.reset()?;
    println!("second, reset: {} changes", second.changes()?.len());

    // While something lies on a snapshot, it can't be removed. Without a name, it would go with
    // the last that uses it.
    for fork in [next, first, second, sandbox] {
        fork.delete()?;
    }
    attempt.delete()?;
    snapshot.delete()?;
    println!("removed");
    Ok(())
}

/// Prints what a snapshot holds that its image does not.
fn print_changes(name: &str, snapshot: &Snapshot) -> Result<(), adl_runtime::Error> {
    for change in snapshot.changes()? {
        println!("{name}: {:?} {}", change.kind, change.path.display());
    }
    Ok(())
}
