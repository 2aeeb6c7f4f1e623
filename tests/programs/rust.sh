check version sh -c 'cargo --version; rustc --version'
export USER=root
check new sh -c 'cargo new --quiet --vcs none app --offline && cd app && ls'
cd app || exit
mkdir -p dep/src && printf '[package]\nname = "dep"\nversion = "0.1.0"\nedition = "2021"\n' > dep/Cargo.toml
echo 'pub fn answer() -> i32 { 42 }
#[test] fn it_is() { assert_eq!(answer(), 42); }' > dep/src/lib.rs
echo 'dep = { path = "dep" }' >> Cargo.toml
cat > src/main.rs <<'END'
use std::io::{Read, Write};
fn main() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || { let mut text = String::new(); listener.accept().unwrap().0.read_to_string(&mut text).unwrap(); text });
    std::net::TcpStream::connect(address).unwrap().write_all(b"sent").unwrap();
    println!("{} {}", thread.join().unwrap(), dep::answer());
    let output = std::process::Command::new("sh").args(["-c", "exit 3"]).status().unwrap();
    println!("{output}");
}
#[cfg(test)] mod tests { #[test] fn passes() {} #[test] #[should_panic] fn panics() { panic!() } }
END
echo 'fn main() { println!("cargo:rustc-env=MADE=1"); }' > build.rs
without_times() { "$@" 2>&1 | sed 's/ target(s) in .*//; s/finished in .*//; s/-[0-9a-f]\{16\}//' | sort; }
check build without_times cargo build --offline
check run without_times cargo run --offline --quiet
check release without_times cargo build --offline --release
check test sh -c 'cargo test --offline --workspace --quiet -- --test-threads 1 2>&1 | grep "^test result" | sed "s/; finished.*//"'
check incremental sh -c 'touch src/main.rs && cargo build --offline 2>&1 | grep -c Compiling'
check doc sh -c 'cargo doc --offline --quiet --no-deps && ls target/doc/app/index.html'
check package sh -c 'cargo package --offline --list --allow-dirty 2>&1 | sort'
