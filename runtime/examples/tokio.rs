//! Commands from an async program, with tokio: what a command does is told by descriptors.
//!
//! The library has no async runtime and needs none. A child is readable when it has ended, a
//! background job when all that it wrote is collected, [`Sandbox::pidfd`] when the sandbox has
//! died, and the ends of pipes are what tokio's own pipes are made of. Calls that make something
//! block the calling thread: create, reset, snapshot and spawn for about a millisecond, file calls
//! for as long as the file takes: use `spawn_blocking` for those.
//!
//! `cargo run --example tokio`

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use adl_runtime::{Config, ExitStatus, Handle, Sandbox, Stdio};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe::{Receiver, Sender};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let sandbox = Sandbox::create(Config::default())?;

    // Talk to a command while others run.
    let mut child =
        sandbox.command("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdin: OwnedFd = child.stdin.take().ok_or("stdin is piped")?.into();
    let stdout: OwnedFd = child.stdout.take().ok_or("stdout is piped")?.into();
    let (mut stdin, mut stdout) = (Sender::from_owned_fd(stdin)?, Receiver::from_owned_fd(stdout)?);
    let write = async move { stdin.write_all(b"through the sandbox\n").await };
    let mut text = String::new();
    let (written, read) = tokio::join!(write, stdout.read_to_string(&mut text));
    written?;
    read?;
    print!("{text}");
    println!("cat: {}", ended(&child.handle()).await?);

    // Cancel one that takes too long: its end wakes up whoever waits for it.
    let child = sandbox.command("sleep").arg("1000").spawn()?;
    let handle = child.handle();
    if tokio::time::timeout(Duration::from_millis(50), ended(&handle)).await.is_err() {
        handle.kill()?;
    }
    println!("sleep: {}", ended(&handle).await?);

    // Let the library collect, and be told when it is done.
    let job = sandbox.shell("echo collected; echo and more >&2").background()?;
    readable(&job).await?;
    print!("{}", String::from_utf8(job.wait()?.stdout)?);
    sandbox.delete()?;
    Ok(())
}

/// Waits for the end of a command.
async fn ended(handle: &Handle) -> Result<ExitStatus> {
    loop {
        if let Some(status) = handle.try_wait()? {
            return Ok(status);
        }
        readable(handle).await?;
    }
}

/// Waits until a descriptor is readable.
#[allow(
    deprecated,
    reason = "its fault is with descriptors that are closed meanwhile; this owns it"
)]
async fn readable(what: &impl AsFd) -> Result<()> {
    let fd = what.as_fd().try_clone_to_owned()?;
    AsyncFd::try_with_interest(fd, Interest::READABLE)?.readable().await?.retain_ready();
    Ok(())
}
