//! A server inside: started, waited for until it is ready, talked to, its log read, stopped.
//!
//! `cargo run --example server`
//!
//! The server is this program itself, copied in, so that any machine has it. Its network is the
//! sandbox's own: it is reached by commands inside, and no one else can.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use adl_runtime::{Config, Sandbox, Scope};

const PROGRAM: &str = "/srv/server";
const ADDRESS: &str = "127.0.0.1:8080";
const READY: &str = "/tmp/ready";
/// In this time a server is ready, answers, or ends.
const SOON: Duration = Duration::from_secs(10);
const SIGTERM: u8 = 15;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => return Ok(serve()?),
        Some("ask") => return Ok(ask()?),
        _ => {}
    }
    let sandbox = Sandbox::create(Config::default())?;
    sandbox.files().copy_in(std::env::current_exe()?, PROGRAM)?;

    // It runs until it is stopped, and a thread of the library collects what it writes.
    sandbox.command("mkfifo").arg(READY).status()?;
    let server = sandbox.command(PROGRAM).arg("serve").background()?;

    // It says itself that it is ready, by a FIFO: no sleep is too short then, and none too long.
    // One that can't is asked until it answers, in a loop inside that has a timeout.
    let ready = sandbox.command("cat").arg(READY).timeout(SOON).output()?;
    if !ready.status.success() {
        // The log says why, the end of the server if it has ended.
        let log = String::from_utf8_lossy(&server.partial_output().stderr).into_owned();
        return Err(format!("{}: {:?}: {log}", ready.status, server.try_wait()?).into());
    }
    print!("{}", String::from_utf8_lossy(&ready.stdout));

    // Each question is a command inside: the host opens no connection to what a guest runs.
    for question in ["one", "two"] {
        let mut ask = sandbox.command(PROGRAM);
        let answer = ask.arg("ask").input(question).timeout(SOON).output()?;
        println!("asked {question}: {}", String::from_utf8_lossy(&answer.stdout).trim_end());
    }

    // What it has written is read by another thread, a moment later at most.
    let begin = Instant::now();
    let log = loop {
        let log = server.partial_output().stdout;
        if log.ends_with(b"two\n") || begin.elapsed() > SOON {
            break log;
        }
        std::thread::yield_now();
    };
    print!("log so far:\n{}", String::from_utf8_lossy(&log));

    // Asked to end, then made to. Its whole log is there when it has ended.
    server.signal(SIGTERM, Scope::Process)?;
    let ended = match server.wait_timeout(SOON)? {
        Some(ended) => ended,
        None => {
            server.kill()?;
            server.wait()?
        }
    };
    println!("stopped: {}, {} bytes of log", ended.status, ended.stdout.len());
    Ok(sandbox.delete()?)
}

/// The server: it answers each line with the same in capitals.
fn serve() -> io::Result<()> {
    let listener = TcpListener::bind(ADDRESS)?;
    fs::write(READY, format!("ready at {ADDRESS}\n"))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        println!("request: {}", line.trim_end());
        stream.write_all(line.to_uppercase().as_bytes())?;
    }
    Ok(())
}

/// A client: it sends a line from its input, and prints the answer.
fn ask() -> io::Result<()> {
    let question = io::read_to_string(io::stdin())?;
    let mut stream = TcpStream::connect(ADDRESS)?;
    writeln!(stream, "{question}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}
