//! A terminal: a program that wants one is driven by what is typed, and read from.
//!
//! `cargo run --example terminal`

use std::error::Error;
use std::io::{self, Read, Write};
use std::time::Duration;

use adl_runtime::{Config, Sandbox, Terminal};

fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = Sandbox::create(Config::default())?;

    // A shell as it is on any terminal: with a prompt, an echo of what is typed, and job control.
    let mut command = sandbox.command("sh");
    command.arg("-i").env("PS1", "ready> ").terminal(24, 80);
    // Reads of a terminal wait for the program: its time bounds them.
    let mut child = command.timeout(Duration::from_secs(10)).spawn()?;
    let mut terminal = child.terminal.take().ok_or("the command has a terminal")?;
    // What is read came from inside: show it to a real terminal only with escapes made harmless.
    println!("{:?}", read_until(&mut terminal, "ready> ")?);

    terminal.write_all(b"stty size\n")?;
    println!("{:?}", read_until(&mut terminal, "ready> ")?);

    // The program gets SIGWINCH, as when a window is drawn larger.
    terminal.resize(50, 132)?;
    terminal.write_all(b"stty size\n")?;
    println!("{:?}", read_until(&mut terminal, "ready> ")?);

    // Control-C ends what runs in the foreground, and the shell goes on. It is the program itself
    // that says when it is there.
    terminal.write_all(b"sh -c 'echo started; exec sleep 1000'\n")?;
    read_until(&mut terminal, "\nstarted\r\n")?;
    terminal.write_all(b"\x03")?;
    println!("interrupted: {:?}", read_until(&mut terminal, "ready> ")?);

    terminal.write_all(b"exit 7\n")?;
    println!("{}", child.wait()?);
    // Nothing has the other side open now: there is an end.
    let mut rest = String::new();
    terminal.read_to_string(&mut rest)?;
    println!("the rest: {rest:?}");
    Ok(sandbox.delete()?)
}

/// Reads until the program has written `end`.
fn read_until(terminal: &mut Terminal, end: &str) -> io::Result<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while !text.ends_with(end.as_bytes()) {
        match terminal.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => text.extend(buffer.iter().take(count)),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
