//! Link arguments for a program without libc.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,noseparate-code",
        "-Wl,--no-eh-frame-hdr",
        // What only a debugger reads: half a KiB.
        "-Wl,-z,nosectionheader",
        // The driver's own options: in those above, a comma in the path would end it.
        "-T",
        concat!(env!("CARGO_MANIFEST_DIR"), "/link.ld"),
        // The prebuilt alloc mentions these, and a program that aborts on panic never calls them.
        "-Wl,--defsym=rust_eh_personality=0",
        "-Wl,--defsym=_Unwind_Resume=0",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
