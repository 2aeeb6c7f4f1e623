//! Text put together from words and numbers, and numbers read. What `format!` takes with it is a
//! fiftieth of init.

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
        // Byte by byte: to make sure that digits are text takes half a KiB of code.
        DecInt::new(*self).as_bytes().iter().for_each(|digit| text.push(char::from(*digit)));
    }
}

impl Part for usize {
    fn push_to(&self, text: &mut String) {
        (*self as u64).push_to(text);
    }
}

/// Reads a number, of digits to this base alone.
pub(crate) fn number(digits: &[u8], base: u64) -> Option<u64> {
    let add = |number: u64, digit: &u8| {
        let digit = char::from(*digit).to_digit(u32::try_from(base).ok()?)?;
        number.checked_mul(base)?.checked_add(u64::from(digit))
    };
    let first = digits.first()?;
    digits.iter().skip(1).try_fold(add(0, first)?, add)
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
