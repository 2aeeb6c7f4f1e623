//! What is kept of the output of a command, with a bound: the beginning and the end of each stream.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys::lock::lock;
use crate::wait::Deadline;

/// How much is reserved for the end of a stream before it comes, in bytes.
const MOST_RESERVED: usize = 64 << 20;
/// How much comes at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// How much of a stream is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    /// Of the beginning, in bytes.
    pub(crate) head: usize,
    /// Of the end, in bytes.
    pub(crate) tail: usize,
}

impl Default for Caps {
    /// What a person or a model would read at most.
    fn default() -> Self {
        Self { head: 8 << 20, tail: 8 << 20 }
    }
}

/// A stream that a command writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Its stdout, or its terminal.
    Stdout,
    /// Its stderr.
    Stderr,
}

impl OutputStream {
    const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];
}

/// What the output of a command is given to.
pub(crate) trait TakeOutput {
    /// Takes some; a break ends the command.
    fn take(&mut self, stream: OutputStream, bytes: &[u8]) -> ControlFlow<()>;
}

impl<F: FnMut(OutputStream, &[u8]) -> ControlFlow<()>> TakeOutput for F {
    fn take(&mut self, stream: OutputStream, bytes: &[u8]) -> ControlFlow<()> {
        self(stream, bytes)
    }
}

/// What a command has written to its two streams, as far as it is kept. Others may look at it
/// while it grows.
#[derive(Debug)]
pub(crate) struct Captures {
    streams: [Mutex<Collected>; 2],
    progress: Mutex<Progress>,
    has_grown: Condvar,
}

/// How far a command has come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// The number of bytes of each stream.
    written: [u64; 2],
    is_over: bool,
}

impl Captures {
    pub(crate) fn new(caps: Caps) -> Self {
        Self {
            streams: [caps, caps].map(|caps| Mutex::new(Collected::new(caps))),
            progress: Mutex::default(),
            has_grown: Condvar::new(),
        }
    }

    fn stream(&self, stream: OutputStream) -> MutexGuard<'_, Collected> {
        let [stdout, stderr] = &self.streams;
        lock(if stream == OutputStream::Stdout { stdout } else { stderr })
    }

    /// What was kept of stdout and of stderr from these places on, each with the number of bytes
    /// that were not, and the place where it ends.
    pub(crate) fn since(&self, places: [u64; 2]) -> [Since; 2] {
        let [stdout, stderr] = OutputStream::BOTH.map(|stream| self.stream(stream));
        let [of_stdout, of_stderr] = places;
        [stdout.since(of_stdout), stderr.since(of_stderr)]
    }

    /// Waits until there is more than up to these places, or no more comes; whether there is more.
    pub(crate) fn wait_since(&self, places: [u64; 2], deadline: Deadline) -> bool {
        let has_more = |progress: &Progress| {
            progress.written.iter().zip(places).any(|(written, place)| *written > place)
        };
        let mut progress = lock(&self.progress);
        while !has_more(&progress) && !progress.is_over && !deadline.passed() {
            let left = deadline.left().unwrap_or(Duration::MAX);
            let waited = self.has_grown.wait_timeout(progress, left);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        has_more(&progress)
    }

    /// No more comes.
    pub(crate) fn end(&self) {
        lock(&self.progress).is_over = true;
        self.has_grown.notify_all();
    }

    /// Takes what was kept of stdout and of stderr, each with the number of bytes that were not.
    pub(crate) fn finish(self) -> [(Vec<u8>, u64); 2] {
        self.streams
            .map(|stream| stream.into_inner().unwrap_or_else(PoisonError::into_inner).finish())
    }
}

impl TakeOutput for &Captures {
    fn take(&mut self, stream: OutputStream, bytes: &[u8]) -> ControlFlow<()> {
        self.stream(stream).push(bytes);
        let mut progress = lock(&self.progress);
        let [stdout, stderr] = &mut progress.written;
        let written = if stream == OutputStream::Stdout { stdout } else { stderr };
        *written = written.saturating_add(bytes.len() as u64);
        drop(progress);
        self.has_grown.notify_all();
        ControlFlow::Continue(())
    }
}

/// A part of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) bytes: Vec<u8>,
    /// The number of bytes of it that were not kept.
    pub(crate) dropped: u64,
    /// The place in the stream where it ends.
    pub(crate) next: u64,
}

/// The beginning and the end of a stream, and the number of bytes between.
#[derive(Debug)]
struct Collected {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
    caps: Caps,
}

impl Collected {
    fn new(caps: Caps) -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), dropped: 0, caps }
    }

    fn push(&mut self, bytes: &[u8]) {
        let Caps { head, tail } = self.caps;
        let room = head.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.head.extend_from_slice(first);
        if !rest.is_empty() && self.tail.capacity() == 0 {
            // All that it can need, within reason: growing by doubling would take twice of it.
            self.tail.reserve_exact(tail.min(MOST_RESERVED) + CHUNK);
        }
        // Of more than the tail holds, only the end can stay.
        let skipped = rest.len().saturating_sub(tail);
        self.tail.extend(rest.get(skipped..).unwrap_or_default());
        let over = self.tail.len().saturating_sub(tail);
        self.tail.drain(..over);
        self.dropped = self.dropped.saturating_add((skipped + over) as u64);
    }

    /// What was kept from a place in the stream on.
    fn since(&self, place: u64) -> Since {
        let from = |bytes: &[u8], place: u64| {
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            bytes.get(place..).unwrap_or_default().to_vec()
        };
        let head = self.head.len() as u64;
        let tail = head.saturating_add(self.dropped);
        let (front, back) = self.tail.as_slices();
        let of_tail = place.saturating_sub(tail);
        let bytes = [
            from(&self.head, place),
            from(front, of_tail),
            from(back, of_tail.saturating_sub(front.len() as u64)),
        ];
        let dropped = tail.saturating_sub(place.max(head));
        let next = tail.saturating_add(self.tail.len() as u64);
        Since { bytes: bytes.concat(), dropped, next }
    }

    /// Takes it, without a copy of the beginning.
    fn finish(self) -> (Vec<u8>, u64) {
        let mut bytes = self.head;
        bytes.reserve_exact(self.tail.len());
        let (front, back) = self.tail.as_slices();
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        (bytes, self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::{Caps, Collected, Since};

    #[test]
    fn keeps_the_head_and_the_tail_and_counts_the_rest() {
        for chunk in 1..12 {
            let bytes: Vec<u8> = (0..100).collect();
            let mut collected = Collected::new(Caps { head: 4, tail: 3 });
            for part in bytes.chunks(chunk) {
                collected.push(part);
            }
            assert_eq!(collected.finish(), (vec![0, 1, 2, 3, 97, 98, 99], 93), "chunk {chunk}");
        }
    }

    #[test]
    fn what_comes_after_a_place_is_told_with_what_is_missing() {
        let mut collected = Collected::new(Caps { head: 4, tail: 3 });
        let since = |collected: &Collected, place| {
            let Since { bytes, dropped, next } = collected.since(place);
            (bytes, dropped, next)
        };
        assert_eq!(since(&collected, 0), (vec![], 0, 0));
        (0..6).for_each(|byte| collected.push(&[byte]));
        assert_eq!(since(&collected, 0), (vec![0, 1, 2, 3, 4, 5], 0, 6));
        assert_eq!(since(&collected, 2), (vec![2, 3, 4, 5], 0, 6));
        assert_eq!(since(&collected, 5), (vec![5], 0, 6));
        (6..10).for_each(|byte| collected.push(&[byte]));
        for (place, bytes, dropped) in [
            (0, &[0, 1, 2, 3, 7, 8, 9][..], 3),
            (3, &[3, 7, 8, 9], 3),
            (4, &[7, 8, 9], 3),
            (6, &[7, 8, 9], 1),
            (7, &[7, 8, 9], 0),
            (9, &[9], 0),
            (10, &[], 0),
            (u64::MAX, &[], 0),
        ] {
            assert_eq!(since(&collected, place), (bytes.to_vec(), dropped, 10), "{place}");
        }
    }

    #[test]
    fn keeps_all_that_fits() {
        let mut collected = Collected::new(Caps { head: 4, tail: 3 });
        collected.push(b"abcde");
        collected.push(b"fg");
        assert_eq!(collected.finish(), (b"abcdefg".to_vec(), 0));
    }
}
