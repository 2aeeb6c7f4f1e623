pub(crate) struct Filters(pub(crate) Vec<Vec<u8>>);
pub(crate) fn default_filters(_c: u64) -> Result<Filters, std::io::Error> { Ok(Filters(vec![])) }
