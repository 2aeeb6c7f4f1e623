//! `adl-init`, PID 1 of a sandbox: builds the sandbox around itself, then starts jobs and reaps.
//!
//! It has no libc, because the start of one costs more than all the rest of creating a sandbox,
//! and one thread, because then nothing in it can wait for anything else in it. The host runs it
//! in fresh namespaces with its control socket as descriptor 0 and no other; see
//! `ARCHITECTURE.md` for the life of a sandbox.
//!
//! * [`sys`]: the system calls that rustix keeps private, and the only unsafe code here
//! * [`receive`]: frames and descriptors from the host
//! * [`setup`]: the steps from a bare process to a sandbox, in one list
//! * [`setup::mounts`]: assembles the file system; [`setup::proc_and_dev`]: `/proc` and `/dev`
//! * [`events`]: the loop, and the one place that waits for children
//! * [`job`]: the steps from a fresh child to the job's program, in one list; [`job::builtin`]:
//!   jobs that are no programs, [`files`] among them
//! * [`socket`]: sockets that are made inside and handed out
//! * [`tracing`]: who may have another stop at its end
//! * [`job::tree`]: all that a job ever started, and the end of it
#![no_std]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("adl-init knows the system call ABI of x86_64 Linux only");

extern crate alloc;

mod events;
mod failure;
mod files;
mod job;
mod path;
mod receive;
mod setup;
mod socket;
pub mod sys;
mod text;
mod tracing;

use alloc::boxed::Box;

use adl_protocol::limits::CONTROL_DESCRIPTOR;
use adl_protocol::{Reply, Request, Step, VERSION};
use rustix::fd::AsFd;

use crate::receive::Receiver;
use crate::setup::Failure;

/// What the process exits with when it was not started as an init (`EX_SOFTWARE`).
const NOT_AN_INIT: i32 = 70;
/// What it exits with when the host broke the protocol (`EX_PROTOCOL`).
const PROTOCOL: i32 = 76;
/// What it exits with when it can't set up the sandbox (`EX_OSERR`).
const SETUP: i32 = 71;

/// Runs PID 1 to its end and returns its exit status, which no one sees: when it ends, the
/// kernel ends every process of its PID namespace.
pub fn run() -> i32 {
    let Some(control) = sys::take_control_socket(CONTROL_DESCRIPTOR) else {
        return NOT_AN_INIT;
    };
    if sys::own_pid() != 1 {
        return NOT_AN_INIT;
    }
    let early = setup::prepare();
    let mut receiver = Receiver::new(control);
    let init = match receiver.next() {
        Ok(Some(body)) => match sys::decode_request(&body) {
            Ok(Request::Setup(request)) => {
                early.and_then(|early| setup::run(&request, &mut receiver, early))
            }
            _ => return PROTOCOL,
        },
        Ok(None) => return 0,
        Err(_) => return PROTOCOL,
    };
    match init {
        Ok((init, mount_namespace)) => {
            // To the end of the process: children refer to it.
            let init = Box::leak(Box::new(init));
            // What can fail, while that can be told.
            let events = match events::begin(&receiver, init) {
                Ok(events) => events,
                Err(errno) => return give_up(&receiver, &Failure::new(Step::Protocol, errno)),
            };
            let ready = Reply::Ready { version: VERSION, network: init.network };
            if receive::send_small(&receiver, &ready, &[mount_namespace.as_fd()]).is_err() {
                return 0;
            }
            drop(mount_namespace);
            events::run(events, receiver)
        }
        Err(failure) => give_up(&receiver, &failure),
    }
}

/// Tells what failed, and returns the exit status.
fn give_up(receiver: &Receiver, failure: &Failure) -> i32 {
    // The host may be gone already; there is no one else to tell.
    let _ = receiver.send(&Reply::Failed(failure.as_message()));
    SETUP
}
