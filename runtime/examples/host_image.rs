//! What a host image has of this machine beside `/usr`, and what it leaves out.
//!
//! `cargo run --example host_image [ROOT]`; with `--rule`, by which rule.

use std::path::Path;

use adl_runtime::HostImage;

fn main() -> adl_runtime::Result<()> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("--rule") {
        print!("{}", HostImage::rule());
        return Ok(());
    }
    let image = HostImage::of(Path::new(argument.as_deref().unwrap_or("/")))?;
    for path in &image.taken {
        println!("{}", path.display());
    }
    for (path, why) in &image.left_out {
        println!("left out: {}: {why}", path.display());
    }
    Ok(())
}
