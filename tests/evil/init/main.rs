//! A PID 1 that breaks every rule of the wire: what the host must be able to live with.
//!
//! It stands where adl-init does, in namespaces of its own, and speaks the same wire. In which way
//! it is evil comes to it as the sandbox's host name; a name that it does not know, as `behaves`,
//! makes it say what a good one would, and do nothing: its jobs end at once, with 0.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "its end is the end of an attack, which the host sees"
)]

mod attached;
mod files;
mod job;
mod ready;
mod sockets;
mod wire;

use adl_protocol::{Origin, Request, codec};
use rustix::mount::{MountFlags, mount};
use rustix::thread::UnshareFlags;

use wire::{Control, forever};

fn main() {
    // Descriptor 0 is the control socket.
    let mut control = Control::new();
    let Some(body) = control.next() else { return };
    match codec::decode(&body).unwrap() {
        Request::Setup(setup) => {
            if setup.origin == Origin::Empty {
                // There is one of no living process.
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                mount("proc", "/proc", "proc", flags, None).unwrap();
                let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
                mount("devpts", "/scratch", "devpts", flags, Some(c"ptmxmode=0666")).unwrap();
            }
        }
        _ => panic!("the first request is no set-up"),
    }
    let Some(body) = control.next() else { return };
    let way = match codec::decode(&body).unwrap() {
        Request::Mounts(mounts) => String::from_utf8(mounts.hostname.to_vec()).unwrap(),
        _ => panic!("the second request is no root file system"),
    };
    // What else comes with it is not needed.
    let given = sockets::take_given(&way, &control);
    control.descriptors.clear();
    if way == "network-left" {
        leave_network();
    }
    ready::answer(&way, &control);
    if way == "never-reads" {
        forever();
    }
    while let Some(body) = control.next() {
        match codec::decode(&body).unwrap() {
            Request::Spawn(spawn) => job::start(&way, &spawn, &mut control, given.as_ref()),
            _ => return,
        }
    }
}

#[expect(deprecated, reason = "its other ways want unsafe code, and this one needs none")]
fn leave_network() {
    rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
}
