//! Who may end a sandbox: the process that made it, and no fork of that.

/// The process that owns something. A `fork(2)` of it has a copy of the owner's memory, but when
/// that copy is dropped, nothing may happen to what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    /// The calling process.
    pub(crate) fn this_process() -> Self {
        Self(std::process::id())
    }

    /// Whether the calling process is it.
    pub(crate) fn is_this_process(self) -> bool {
        self == Self::this_process()
    }
}
