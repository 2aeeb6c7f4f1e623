//! The end of all that runs in a sandbox, which lives on.

use std::os::fd::AsRawFd;
use std::time::Duration;

use adl_protocol::{Identity, Request, Task};

use crate::error::{Error, Result};
use crate::exit::EndReason;
use crate::job::child::builtin;
use crate::job::life::Lives;
use crate::job::running::Running;
use crate::wait::Deadline;

/// How long all processes may take to end that were killed: a little longer than init waits.
const KILLED: Duration = Duration::from_secs(6);

/// Has init end every process but itself, and waits until they are gone.
pub(crate) fn kill_all(lives: &Lives) -> Result<()> {
    let life = lives.begin(Deadline::after(KILLED))?;
    let control = &life.control;
    // What stands still could not end.
    control.join_files_of_builtins()?;
    let (channel, theirs) = control.take_channel()?;
    let timeout = Some(KILLED);
    let running = Running::new("".into(), channel, control.init(), timeout);
    control.add_waited_for(running.messages());
    let spawn = builtin(Task::KillAll, Identity::ROOT);
    let request = Request::Spawn(spawn);
    match control.request_by(running.overdue(), &request, &[theirs.as_raw_fd()]) {
        Err(Error::SandboxDied) => return Ok(()),
        asked => asked?,
    }
    let status = running.wait()?;
    if status.survivors() && status.reason() != EndReason::SandboxDied {
        let what = "the processes of the sandbox to end, which were killed";
        return Err(Error::TimedOut { what, after: KILLED });
    }
    Ok(())
}
