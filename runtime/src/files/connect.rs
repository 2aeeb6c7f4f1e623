//! Connections to Unix sockets, as a user inside.

use std::os::unix::net::UnixStream;
use std::path::Path;

use adl_protocol::{EndedBy, FileAction, FileTask, Spawn, Stage, Task};

use super::Files;
use super::call::Purpose;
use crate::error::traced::traced;
use crate::error::{Error, Result, error_of};
use crate::job::child::builtin;
use crate::job::watch::file_span;
use crate::network::{self, Answer};

impl Files {
    /// Connects to a Unix stream socket, as its user would: with the right to write to it. The path
    /// may be longer than the 107 bytes that a program could name. A server that has no room for
    /// one more connection is waited for. It sees a process that has ended as the other side's.
    ///
    /// The stream is an ordinary one. What a guest sends over it may bring descriptors along:
    /// from Linux 6.16 on they are refused; before, a read closes them, and may wait for that.
    ///
    /// # Errors
    /// As [`Files::read_file`]: [`Error::File`] is `ECONNREFUSED` where nothing listens, or what is
    /// there is no socket.
    pub fn connect_unix(&self, path: impl AsRef<Path>) -> Result<UnixStream> {
        let purpose = self.purpose("connect to", path.as_ref(), 0);
        let span = file_span(purpose.operation, &purpose.path);
        traced(&span, || self.connect_in(&span, &purpose))
    }

    fn connect_in(&self, span: &tracing::Span, purpose: &Purpose) -> Result<UnixStream> {
        let deadline = purpose.deadline();
        let action = FileAction::Connect;
        let (life, actor, path) = self.settle(span, purpose, &action)?;
        let task = Task::File(FileTask { path: super::string(&path)?, action });
        let join_files = life.control.join_files_of_builtins()?;
        let left = deadline.left();
        let spawn = Spawn {
            cgroups: join_files.count(),
            timeout_us: left.and_then(|left| u64::try_from(left.as_micros()).ok()),
            umask: actor.umask,
            ..builtin(task, actor.identity)
        };
        let failed = |source| Error::File {
            operation: purpose.operation,
            path: purpose.path.clone(),
            source,
        };
        match network::connect_unix(&life.control, spawn, &join_files, deadline) {
            Ok(Answer::Socket(socket)) => Ok(socket.into()),
            Ok(Answer::Failed(Stage::File | Stage::Socket, errno)) => Err(failed(error_of(errno))),
            Ok(Answer::Failed(stage, errno)) => Err(Error::Start {
                program: purpose.path.clone(),
                stage: crate::error::Stage::from_wire(stage),
                source: error_of(errno),
            }),
            Ok(Answer::Ended(Some(EndedBy::Timeout))) | Err(Error::TimedOut { .. }) => {
                Err(purpose.timed_out())
            }
            // Something inside has killed it.
            Ok(Answer::Ended(_)) => Err(failed(std::io::Error::other("its process was killed"))),
            Err(error) => Err(error),
        }
    }
}
