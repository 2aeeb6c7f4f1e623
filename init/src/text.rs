//! Text put together from words and numbers. What `format!` takes with it is a fiftieth of init.

use alloc::string::String;

use rustix::path::DecInt;

/// What text is put together from.
pub(crate) trait Part {
    fn push_to(&self, text: &mut String);
}

impl Part for &str {
    fn push_to(&self, text: &mut String) {
        text.push_str(self);
    }
}

impl Part for u64 {
    fn push_to(&self, text: &mut String) {
        text.push_str(core::str::from_utf8(DecInt::new(*self).as_bytes()).unwrap_or_default());
    }
}

impl Part for usize {
    fn push_to(&self, text: &mut String) {
        (*self as u64).push_to(text);
    }
}

/// One text of several parts.
macro_rules! text {
    ($($part:expr),+) => {{
        let mut text = alloc::string::String::new();
        $($crate::text::Part::push_to(&$part, &mut text);)+
        text
    }};
}
pub(crate) use text;
