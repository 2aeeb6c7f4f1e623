//! What documents say otherwise than most, and readers take all the same.

use std::path::Path;

use crate::image::manifest::{Configuration, Document};

fn config(text: &str) -> Configuration {
    let whole = format!(r#"{{"config":{{{text}}},"rootfs":{{}}}}"#);
    Configuration::parse(whole.as_bytes(), "x").unwrap()
}

#[test]
fn what_docker_reads_of_a_configuration_is_read() {
    let entry = |text: &str| config(text).run.entrypoint;
    assert_eq!(entry(r#""Entrypoint":[""]"#), [""; 0]);
    assert_eq!(entry(r#""Entrypoint":["","x"]"#), ["", "x"]);
    assert_eq!(entry(r#""Entrypoint":"/bin/x""#), ["/bin/x"]);
    assert_eq!(config(r#""Cmd":"echo hi""#).run.cmd, ["echo hi"]);
    let labels = config(r#""Labels":{"a":null,"b":"c"}"#).run.labels;
    assert_eq!((&*labels["a"], &*labels["b"]), ("", "c"));
    for (said, plain) in [("/a/../b", "/b"), ("/../x/./y/", "/x/y"), ("/..", "/"), ("srv", "srv")] {
        let directory = config(&format!(r#""WorkingDir":"{said}""#)).run.working_dir;
        assert_eq!(directory.as_deref(), Some(Path::new(plain)), "{said}");
    }
    let other = r#"{"architecture":"x86_64","os":"linux","rootfs":{}}"#;
    assert!(Configuration::parse(other.as_bytes(), "x").is_ok());
}

#[test]
fn no_directory_is_longer_than_a_path() {
    let of = |length: usize| {
        let path = format!("/{}", "a/".repeat(length / 2));
        let text = format!(r#"{{"config":{{"WorkingDir":"{path}"}},"rootfs":{{}}}}"#);
        Configuration::parse(text.as_bytes(), "x")
    };
    assert!(of(4000).is_ok());
    assert!(of(4200).unwrap_err().to_string().contains("longer than any path"));
}

#[test]
fn annotations_may_be_null() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"annotations":{{"a":null}}}}]}}"#
    );
    assert!(Document::parse(index.as_bytes(), "").is_ok());
}
