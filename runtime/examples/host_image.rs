//! What a host image has of this machine beside `/usr`, and what it leaves out.
//!
//! `cargo run --example host_image`. Behind it may come `--` and a directory with the root of
//! another machine; or `--rule`, for what is taken and what never, as in `docs/host-image.md`.

use std::path::{Path, PathBuf};

use adl_runtime::HostImage;

fn main() -> adl_runtime::Result<()> {
    let argument = std::env::args_os().nth(1).map(PathBuf::from);
    let root = argument.as_deref().unwrap_or(Path::new("/"));
    if root == Path::new("--rule") {
        print!("{}", HostImage::rule());
        return Ok(());
    }

    // By the rule that `Image::host()` goes by; nothing is made.
    let image = HostImage::of(root)?;
    for path in &image.taken {
        println!("{}", path.display());
    }

    // What the rule names or a link of /usr leads to, and is not for guests.
    for (path, why) in &image.left_out {
        println!("left out: {}: {why}", path.display());
    }
    println!("{} taken, {} left out", image.taken.len(), image.left_out.len());
    Ok(())
}
