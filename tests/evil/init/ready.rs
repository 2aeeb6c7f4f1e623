//! Lies in the answer to the set-up.

use adl_protocol::{JobEvent, Reply, SetupFailure, Step, VERSION, limits};
use rustix::net::SendFlags;

use crate::attached;
use crate::wire::{Control, flood, forever, frame, frame_of, send, send_away};

pub(crate) fn answer(way: &str, control: &Control) {
    let socket = &control.socket;
    // That of the host's, in which the control socket was made, where it lies.
    let of_own = attached::pair().0;
    let of = if way.ends_with("-cookie") { socket } else { &of_own };
    let network = adl_init::sys::network_cookie(of).unwrap();
    let ready = Reply::Ready { version: VERSION, network };
    let with = |bytes: &[u8]| send(socket, bytes, attached::make("mount-namespace"));
    let failed = |errno, path: &[u8]| {
        let step = Step::Hostname;
        send(socket, &frame(&Reply::Failed(SetupFailure { step, errno, path })), vec![]);
        forever();
    };
    match way {
        "ready-silent" => forever(),
        "ready-exit" => std::process::exit(0),
        "ready-length-zero" => with(&0_u32.to_le_bytes()),
        "ready-length-max" => with(&u32::MAX.to_le_bytes()),
        "ready-length-over" => {
            let over = u32::try_from(limits::MAX_FRAME + 1).unwrap();
            with(&over.to_le_bytes());
        }
        "ready-truncated-exit" => {
            with(&frame(&ready)[..5]);
            std::process::exit(0);
        }
        "ready-truncated-silent" => with(&frame(&ready)[..5]),
        "ready-trailing" => with(&frame_of(&[&frame(&ready)[4..], b"!"].concat())),
        "ready-unknown" => with(&frame_of(&[77, 1, 2, 3])),
        "ready-wrong-type" => with(&frame(&JobEvent::Started { pid: 1 })),
        "ready-version-0" => with(&frame(&Reply::Ready { version: 0, network })),
        // Of one that the host maps ids for by itself, or not yet.
        "ready-unmapped" => with(&frame(&Reply::Unmapped)),
        "ready-version-max" => with(&frame(&Reply::Ready { version: u32::MAX, network })),
        "ready-failed-0" => failed(0, b"/x"),
        "ready-failed-minus" => failed(-1, b"/x"),
        "ready-failed-million" => failed(1_000_000, b"/x"),
        "ready-failed-path" => failed(2, &[b'/'; limits::MAX_PATH + 100]),
        "ready-failed-too-long" => failed(2, &[b'/'; limits::MAX_PATH * 2]),
        "ready-failed-nul" => failed(2, b"/a\0\x1b[2J\xff"),
        "ready-control" => {
            send(socket, &frame(&ready), vec![rustix::io::dup(socket).unwrap()]);
        }
        "ready-with-lingering-in-pieces" => {
            let path = &[b'/'; 12];
            let failure = SetupFailure { step: Step::Hostname, errno: 2, path };
            for byte in frame(&Reply::Failed(failure)) {
                send(socket, &[byte], attached::make("lingering"));
            }
        }
        "ready-out-of-band" => {
            let flags = SendFlags::NOSIGNAL | SendFlags::OOB;
            let _ = send_away(socket, b"!", attached::make("lingering"), flags);
            with(&frame(&ready));
        }
        "ready-flood" => {
            with(&frame(&ready)[..5]);
            flood(socket, &[0; 65536]);
        }
        "ready-twice" => {
            with(&frame(&ready));
            with(&frame(&ready));
        }
        "ready-then-lingering" => {
            // One that is never read: closing the socket closes it.
            let lingering = attached::make("lingering");
            with(&frame(&ready));
            let _ = send_away(socket, b"x", lingering, SendFlags::NOSIGNAL);
        }
        way => match way.strip_prefix("ready-with-") {
            Some(what) => {
                send(socket, &frame(&ready), attached::make(what));
            }
            None => with(&frame(&ready)),
        },
    }
    if way.starts_with("ready-") && !way.starts_with("ready-t") {
        forever();
    }
}
