//! Output that is kept in memory, with a bound.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use crate::error::{Error, Result};

/// How much of the beginning is kept, in bytes: what a person or a model would read at most.
const HEAD: usize = 8 << 20;
/// How much of the end is kept, in bytes.
const TAIL: usize = 8 << 20;
/// How much is read at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// The beginning and the end of a stream, and the number of bytes between.
#[derive(Debug)]
pub(crate) struct Collected {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
    limits: (usize, usize),
}

impl Default for Collected {
    fn default() -> Self {
        Self::with_limits(HEAD, TAIL)
    }
}

impl Collected {
    fn with_limits(head: usize, tail: usize) -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), dropped: 0, limits: (head, tail) }
    }

    /// Reads once from a pipe; returns the number of bytes, 0 at its end.
    pub(crate) fn read_from(&mut self, pipe: BorrowedFd<'_>) -> Result<usize> {
        let mut chunk = [0; CHUNK];
        loop {
            match nix::unistd::read(pipe, &mut chunk) {
                Ok(count) => {
                    self.push(chunk.get(..count).unwrap_or_default());
                    return Ok(count);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("read from a pipe")(errno)),
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let (head, tail) = self.limits;
        let room = head.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.head.extend_from_slice(first);
        // Of more than the tail holds, only the end can stay.
        let skipped = rest.len().saturating_sub(tail);
        self.tail.extend(rest.get(skipped..).unwrap_or_default());
        let over = self.tail.len().saturating_sub(tail);
        self.tail.drain(..over);
        self.dropped = self.dropped.saturating_add((skipped + over) as u64);
    }

    /// What was kept, and the number of bytes that were not.
    pub(crate) fn finish(self) -> (Vec<u8>, u64) {
        let mut bytes = self.head;
        let (front, back) = self.tail.as_slices();
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        (bytes, self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::Collected;

    #[test]
    fn keeps_the_head_and_the_tail_and_counts_the_rest() {
        for chunk in 1..12 {
            let bytes: Vec<u8> = (0..100).collect();
            let mut collected = Collected::with_limits(4, 3);
            for part in bytes.chunks(chunk) {
                collected.push(part);
            }
            assert_eq!(collected.finish(), (vec![0, 1, 2, 3, 97, 98, 99], 93), "chunk {chunk}");
        }
    }

    #[test]
    fn keeps_all_that_fits() {
        let mut collected = Collected::with_limits(4, 3);
        collected.push(b"abcde");
        collected.push(b"fg");
        assert_eq!(collected.finish(), (b"abcdefg".to_vec(), 0));
    }
}
