//! Decompresses on a thread of its own, so that files are made meanwhile.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};

use super::compression::{Plain, late};
use crate::error::{Error, Result};
use crate::wait::Deadline;

/// How much is handed over at once, in bytes, and how often before it is taken.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;

/// Has `work` read what a thread decompresses. Where `work` fails, no more is.
///
/// # Errors
/// Those of `work`, to which those of decompressing come as ones of reading.
pub(super) fn read_ahead<T>(
    plain: &mut Plain<'_>,
    progress: Progress<'_>,
    deadline: Deadline,
    work: impl FnOnce(&mut Ahead<'_>) -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let (to, from) = mpsc::sync_channel(CHUNKS);
        let (used, spare) = mpsc::channel();
        std::thread::Builder::new()
            .name("adl-unpack".to_owned())
            .spawn_scoped(scope, move || produce(plain, &to, &spare))
            .map_err(Error::io("start of a thread"))?;
        let chunk = Vec::new();
        work(&mut Ahead { from, used, chunk, start: 0, has_ended: false, progress, deadline })
    })
}

/// Reads to the end, which is an empty piece, or until no one takes it any more.
fn produce(plain: &mut Plain<'_>, to: &SyncSender<Result<Vec<u8>>>, spare: &Receiver<Vec<u8>>) {
    loop {
        let mut chunk = spare.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let filled = fill(plain, &mut chunk);
        let is_last = !matches!(filled, Ok(1..));
        let message = filled.map(|count| {
            chunk.truncate(count);
            chunk
        });
        if to.send(message).is_err() || is_last {
            return;
        }
    }
}

fn fill(plain: &mut Plain<'_>, chunk: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    loop {
        match plain.read(chunk.get_mut(filled..).unwrap_or_default())? {
            0 => return Ok(filled),
            count => filled += count,
        }
    }
}

/// Who hears of how much of a blob was read, and that.
pub(super) struct Progress<'a> {
    pub(super) hears: Sender<u64>,
    pub(super) read: &'a AtomicU64,
}

/// Plain bytes, as they come from the thread.
pub(super) struct Ahead<'a> {
    from: Receiver<Result<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    /// How much of it was read.
    start: usize,
    has_ended: bool,
    progress: Progress<'a>,
    deadline: Deadline,
}

impl Ahead<'_> {
    /// Waits for more; none at the end.
    fn more(&mut self) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        if self.deadline.passed() {
            return Err(late(self.deadline));
        }
        let gone = || Error::io("unpack")(io::Error::other("the thread that reads has ended"));
        let chunk = match self.deadline.left() {
            None => self.from.recv().map_err(|_| gone()),
            Some(left) => self.from.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => late(self.deadline),
                RecvTimeoutError::Disconnected => gone(),
            }),
        }??;
        self.has_ended = chunk.is_empty();
        self.start = 0;
        // Who has ended needs none.
        let _ = self.used.send(std::mem::replace(&mut self.chunk, chunk));
        let _ = self.progress.hears.send(self.progress.read.load(Ordering::Relaxed));
        Ok(())
    }

    /// What comes next, or the beginning of it; nothing at the end.
    pub(super) fn peek(&mut self) -> Result<&[u8]> {
        if self.start == self.chunk.len() {
            self.more()?;
        }
        Ok(self.chunk.get(self.start..).unwrap_or_default())
    }

    /// Reads what no one needs, to the end: digests are of all of it.
    pub(super) fn drain(&mut self) -> Result<()> {
        while !self.has_ended {
            self.more()?;
        }
        Ok(())
    }
}

impl Read for Ahead<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Looked at here, too: a few bytes may be a lot of work to make files of.
        if self.deadline.passed() {
            return Err(io::Error::other(late(self.deadline)));
        }
        if self.start == self.chunk.len() {
            self.more().map_err(io::Error::other)?;
        }
        let there = self.chunk.get(self.start..).unwrap_or_default();
        let count = there.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..count), there.get(..count)) {
            to.copy_from_slice(from);
        }
        self.start += count;
        Ok(count)
    }
}
