//! Volumes, tmpfs and devices on the command line, as docker writes them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use adl_runtime::{Access, Mount, TmpfsOptions};
use clap::{Args, ValueHint};

use crate::values::{of_bytes, size};

#[derive(Args)]
pub(crate) struct MountOptions {
    /// Mount a directory or file of this machine at TARGET inside; MODE is `rw` (default), `ro`, or
    /// `cow`: writes go to a copy that is gone afterwards. A SOURCE has a `/` in it or begins with a
    /// dot. Owners are the same numbers inside and outside, or, where an ordinary user runs adl, that
    /// user; what root inside writes with `rw` is root's, set-user-id bits and all. After a comma,
    /// docker's `z`, `Z`, `cached`, `delegated` and `consistent` are taken, and change nothing
    #[arg(short, long, value_name = "SOURCE:TARGET[:MODE]", value_hint = ValueHint::AnyPath)]
    #[arg(value_parser = of_bytes(volume))]
    volume: Vec<Mount>,

    /// Mount an empty file system in memory. OPTIONS, with commas between them: size=SIZE (by default
    /// 64m), mode=MODE (1777), uid=N, gid=N, `noexec`, `ro`; without them anyone inside may write
    /// there, and execute what is there. It is always `nosuid` and `nodev`
    #[arg(long, value_name = "TARGET[:OPTIONS]", value_parser = of_bytes(tmpfs))]
    tmpfs: Vec<Mount>,

    /// Mount as --volume or --tmpfs, in docker's long form: type=bind,source=PATH,target=PATH with
    /// `readonly` or `cow`, or type=tmpfs,target=PATH with tmpfs-size=SIZE, tmpfs-mode=MODE and
    /// `readonly`. `consistency` is taken, and changes nothing
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = of_bytes(mount))]
    mount: Vec<Mount>,

    /// Have a device of this machine inside, to read and to write, as docker's `rwm` has it
    #[arg(long, value_name = "PATH[:TARGET]", value_hint = ValueHint::FilePath)]
    #[arg(value_parser = of_bytes(device))]
    device: Vec<Mount>,
}

/// The size of a tmpfs of which none is said.
const TMPFS: u64 = 64 << 20;

/// Reads `SOURCE:TARGET` or `SOURCE:TARGET:MODE`.
fn volume(text: &OsStr) -> Result<Mount, String> {
    let parts = split(text, b':');
    let access = match parts.get(2) {
        None => Access::ReadWrite,
        Some(mode) => access(mode)?,
    };
    match &*parts {
        [source, target] | [source, target, _] if !source.is_empty() && !target.is_empty() => {
            check_source(source)?;
            Ok(Mount::volume(source, target, access))
        }
        [_] => {
            Err("takes SOURCE:TARGET or SOURCE:TARGET:MODE, with the path inside as TARGET"
                .to_owned())
        }
        _ => Err("takes SOURCE:TARGET or SOURCE:TARGET:MODE".to_owned()),
    }
}

/// Refuses what docker takes for the name of a volume that it keeps.
fn check_source(source: &OsStr) -> Result<(), String> {
    let bytes = source.as_bytes();
    if bytes.contains(&b'/') || bytes.starts_with(b".") {
        return Ok(());
    }
    Err(format!(
        "{source:?} would be a volume that docker keeps, and adl keeps none: for what has that name \
         here, write {:?}",
        std::path::Path::new(".").join(source)
    ))
}

/// What docker says of caches on other systems, and changes nothing on Linux.
const CONSISTENCIES: [&[u8]; 4] = [b"cached", b"delegated", b"consistent", b"default"];

/// What is said of mounts that would come and go with those of the other side.
const PROPAGATION: &str = "what is mounted later on one side is not seen on the other (rprivate): \
                           mount it before, or name it as a volume of its own";

/// Reads the mode of a volume, with what docker allows beside it.
fn access(mode: &OsStr) -> Result<Access, String> {
    let mut access = None;
    for word in split(mode, b',') {
        let said = match word.as_bytes() {
            b"rw" => Access::ReadWrite,
            b"ro" => Access::ReadOnly,
            b"cow" => Access::CopyOnWrite,
            // What SELinux would be told.
            b"z" | b"Z" => continue,
            // As it is.
            b"private" | b"rprivate" | b"nocopy" => continue,
            word if CONSISTENCIES.contains(&word) => continue,
            b"shared" | b"rshared" | b"slave" | b"rslave" => {
                return Err(format!("{word:?}: {PROPAGATION}"));
            }
            b"noexec" | b"nosuid" | b"nodev" => {
                return Err(format!(
                    "{word:?}: a volume is nosuid and nodev in any case, and executable as its own \
                     mount is: leave it out"
                ));
            }
            b"U" => {
                return Err(format!(
                    "{word:?}: owners are the same numbers inside and outside: change them by chown"
                ));
            }
            _ => return Err(format!("{word:?}: the mode is `ro`, `rw` or `cow`")),
        };
        if access.replace(said).is_some_and(|other| other != said) {
            return Err(format!("{mode:?} has two modes"));
        }
    }
    Ok(access.unwrap_or(Access::ReadWrite))
}

/// Reads `TARGET` or `TARGET:OPTIONS`.
fn tmpfs(text: &OsStr) -> Result<Mount, String> {
    let (target, words) = match &*split(text, b':') {
        [target] => (target.clone(), Vec::new()),
        [target, words] => (target.clone(), split(words, b',')),
        _ => return Err("takes TARGET or TARGET:OPTIONS, as /run:size=64m,mode=755".to_owned()),
    };
    let (mut size, mut options) = (TMPFS, TmpfsOptions::default());
    for word in words {
        let (key, value) = pair(&word);
        match (key, value) {
            (b"size", Some(text)) => size = size_of(text)?,
            (b"mode", Some(mode)) => options.mode = mode_of(mode)?,
            (b"uid", Some(id)) => options.uid = id_of(id)?,
            (b"gid", Some(id)) => options.gid = id_of(id)?,
            (b"rw", None) => options.can_write = true,
            (b"ro", None) => options.can_write = false,
            (b"exec", None) => options.can_execute = true,
            (b"noexec", None) => options.can_execute = false,
            // As it is.
            (b"nosuid" | b"nodev" | b"defaults" | b"relatime", None) => {}
            (b"suid" | b"dev", None) => {
                return Err(format!(
                    "{word:?} can't be: a tmpfs is nosuid and nodev; a device is had by `--device`"
                ));
            }
            _ => {
                return Err(format!(
                    "{word:?} is not there: takes size=SIZE, mode=MODE, uid=N, gid=N, noexec, exec, \
                     ro and rw; nosuid and nodev are so in any case"
                ));
            }
        }
    }
    Ok(Mount::Tmpfs { target: target.into(), size, options })
}

fn size_of(text: &[u8]) -> Result<u64, String> {
    let text = String::from_utf8_lossy(text);
    size(&text).map_err(|_| format!("takes a size as size=64m, not {text:?}"))
}

/// Reads a mode, as chmod(1) does.
fn mode_of(text: &[u8]) -> Result<u32, String> {
    let text = String::from_utf8_lossy(text);
    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.filter(|_| !text.starts_with('+'))
        .ok_or_else(|| format!("takes a mode as mode=1777 or mode=755, not {text:?}"))
}

fn id_of(text: &[u8]) -> Result<u32, String> {
    let text = String::from_utf8_lossy(text);
    text.parse().map_err(|_| format!("takes the number of a user or group, not {text:?}"))
}

/// Reads the keys and values of docker's `--mount`.
fn mount(text: &OsStr) -> Result<Mount, String> {
    let (mut kind, mut source, mut target) = (None, None, None);
    let (mut access, mut bytes, mut of_tmpfs, mut of_volume) =
        (Access::ReadWrite, TMPFS, None, None);
    let mut options = TmpfsOptions::default();
    for field in fields(text)? {
        let (key, value) = pair(&field);
        let name = String::from_utf8_lossy(key).to_ascii_lowercase();
        let path = || match value {
            Some(value) if !value.is_empty() => Ok(OsStr::from_bytes(value).to_owned()),
            _ => Err(format!("`{name}` takes a value, as {name}=/path")),
        };
        match &*name {
            "type" => kind = Some(path()?),
            "source" | "src" => source = Some(path()?),
            "target" | "destination" | "dst" => target = Some(path()?),
            "readonly" | "ro" => {
                if is_set(&name, value)? {
                    access = Access::ReadOnly;
                    options.can_write = false;
                }
            }
            "cow" if is_set(&name, value)? => access = Access::CopyOnWrite,
            "cow" => {}
            "tmpfs-size" => bytes = size_of(value.unwrap_or_default())?,
            "tmpfs-mode" => options.mode = mode_of(value.unwrap_or_default())?,
            "consistency" if value.is_some_and(|value| CONSISTENCIES.contains(&value)) => {}
            "consistency" => {
                return Err("`consistency` is consistent, cached, delegated or default".to_owned());
            }
            _ => check_as_it_is(&name, value)?,
        }
        match &*name {
            "tmpfs-size" | "tmpfs-mode" => of_tmpfs = Some(name),
            "type" | "source" | "src" | "target" | "destination" | "dst" | "readonly" | "ro" => {}
            _ => of_volume = Some(name),
        }
    }
    let target = target.ok_or("the key `target` is missing: the path inside")?;
    // Docker's default.
    let kind = kind.unwrap_or_else(|| "volume".into());
    match (kind.as_bytes(), source) {
        (b"tmpfs", Some(_)) => Err("a tmpfs has no `source`".to_owned()),
        (b"tmpfs", None) => match of_volume {
            Some(key) => Err(format!("`{key}` is not for a tmpfs")),
            None => Ok(Mount::Tmpfs { target: target.into(), size: bytes, options }),
        },
        (b"bind" | b"volume", source) => {
            if let Some(key) = of_tmpfs {
                return Err(format!("`{key}` is for type=tmpfs alone"));
            }
            let source = source.ok_or("the key `source` is missing: the path on this machine")?;
            check_source(&source)?;
            Ok(Mount::volume(source, target, access))
        }
        (b"image", _) => {
            Err("the type \"image\" is not there: mount a directory, or name an image \
                              by `--image`"
                .to_owned())
        }
        _ => Err(format!("the type {kind:?} is not there: it is bind, volume or tmpfs")),
    }
}

/// Takes those keys of docker's that say what is so in any case, and refuses what can't be.
fn check_as_it_is(name: &str, value: Option<&[u8]>) -> Result<(), String> {
    let whole = "all that is mounted in the source comes along, read-only where that is; `cow` \
                 leaves it out";
    match (name, value) {
        ("bind-propagation", Some(b"private" | b"rprivate"))
        | ("bind-recursive", Some(b"enabled" | b"readonly")) => Ok(()),
        ("bind-propagation", _) => {
            Err(format!("`bind-propagation` is rprivate here: {PROPAGATION}"))
        }
        ("bind-recursive", _) => {
            Err(format!("`bind-recursive` is enabled here, or readonly: {whole}"))
        }
        ("bind-nonrecursive", value) if !is_set(name, value)? => Ok(()),
        ("bind-nonrecursive", _) => Err(format!("`bind-nonrecursive` is false here: {whole}")),
        ("volume-nocopy", value) if is_set(name, value)? => Ok(()),
        _ if name.starts_with("volume-") => Err(format!(
            "`{name}` is for volumes that docker keeps, and adl keeps none: name a directory as \
             source, and leave it out"
        )),
        _ => Err(format!(
            "the key `{name}` is not there; the keys are type, source, target, readonly, cow, \
             bind-propagation, bind-recursive, consistency, tmpfs-size and tmpfs-mode"
        )),
    }
}

fn is_set(name: &str, value: Option<&[u8]>) -> Result<bool, String> {
    match value {
        None | Some(b"true" | b"1") => Ok(true),
        Some(b"false" | b"0") => Ok(false),
        Some(_) => Err(format!("`{name}` takes true or false, or no value")),
    }
}

/// Reads `PATH` or `SOURCE:TARGET`, behind which may be what may be done with it, as docker has it
/// by default: `rwm`.
fn device(text: &OsStr) -> Result<Mount, &'static str> {
    let mut parts = split(text, b':');
    if let Some(mode) = parts.pop_if(|last| is_device_mode(last))
        && !matches!(mode.as_bytes(), b"rwm" | b"rw")
    {
        return Err("what may be done with a device is `rwm`, as its own mode says");
    }
    match &*parts {
        [path] => Ok(Mount::device(path)),
        [source, target] => {
            Ok(Mount::Device { source: source.into(), target: PathBuf::from(target) })
        }
        _ => Err("takes PATH or SOURCE:TARGET, with rwm behind it or not"),
    }
}

/// Whether a part is a mode, and no path.
fn is_device_mode(part: &OsStr) -> bool {
    !part.is_empty() && part.as_bytes().iter().all(|byte| b"rwm".contains(byte))
}

fn split(text: &OsStr, at: u8) -> Vec<OsString> {
    let parts = text.as_bytes().split(|byte| *byte == at);
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

/// What is before the first `=`, and what is behind it.
fn pair(text: &OsStr) -> (&[u8], Option<&[u8]>) {
    let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
    (parts.next().unwrap_or_default(), parts.next())
}

/// What is between commas, where a field in quotes may have some in it (RFC 4180, as docker).
fn fields(text: &OsStr) -> Result<Vec<OsString>, String> {
    let mut fields = vec![Vec::new()];
    let mut is_quoted = false;
    for byte in text.as_bytes() {
        match (byte, fields.last_mut()) {
            (b'"', _) => is_quoted = !is_quoted,
            (b',', _) if !is_quoted => fields.push(Vec::new()),
            (byte, Some(field)) => field.push(*byte),
            (_, None) => {}
        }
    }
    if is_quoted {
        return Err("a quote is not closed".to_owned());
    }
    Ok(fields.into_iter().map(OsString::from_vec).collect())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use adl_runtime::{Access, Mount, TmpfsOptions};

    use super::{device, mount, tmpfs, volume};

    #[test]
    fn mounts_are_read_as_docker_reads_them() {
        let of = |text| volume(OsStr::new(text)).ok();
        assert_eq!(of("/a:/b"), Some(Mount::volume("/a", "/b", Access::ReadWrite)));
        for (text, access) in [
            ("./a:/b:ro", Access::ReadOnly),
            ("./a:/b:ro,z", Access::ReadOnly),
            ("./a:/b:Z,cow", Access::CopyOnWrite),
            ("./a:/b:z", Access::ReadWrite),
            ("./a:/b:rw,Z", Access::ReadWrite),
            ("./a:/b:ro,cached", Access::ReadOnly),
            ("./a:/b:delegated", Access::ReadWrite),
        ] {
            assert_eq!(of(text), Some(Mount::volume("./a", "/b", access)), "{text}");
        }
        for wrong in [
            "",
            "/a",
            "a:/b",
            ":/b",
            "/a:",
            "/a:/b:x",
            "/a:/b:ro:x",
            "/a:/b:ro,rw",
            "/a:/b:",
            "/a:/b:ro,",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let of = |text| tmpfs(OsStr::new(text)).ok();
        assert_eq!(of("/a"), Some(Mount::tmpfs("/a", 64 << 20)));
        assert_eq!(of("/a:size=1k"), Some(Mount::tmpfs("/a", 1024)));
        assert_eq!(of("/a:rw,nosuid,size=64mb,mode=1777"), Some(Mount::tmpfs("/a", 64 << 20)));
        let usual = TmpfsOptions::default();
        for (text, options) in [
            ("/a:noexec", TmpfsOptions { can_execute: false, ..usual }),
            ("/a:noexec,exec,rw,nodev", usual),
            ("/a:ro", TmpfsOptions { can_write: false, ..usual }),
            ("/a:mode=0750,uid=5,gid=6", TmpfsOptions { mode: 0o750, uid: 5, gid: 6, ..usual }),
        ] {
            let mount = Mount::Tmpfs { target: "/a".into(), size: 64 << 20, options };
            assert_eq!(of(text), Some(mount), "{text}");
        }
        for wrong in [
            "/a:1k",
            "/a:size=",
            "/a:size=0",
            "/a:size=50%",
            "/a:size=1:x",
            "/a:mode=8",
            "/a:mode=17777",
            "/a:uid=x",
            "/a:suid",
            "/a:dev",
            "/a:nr_inodes=5",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let of = |text| device(OsStr::new(text)).ok();
        for text in ["/dev/fuse", "/dev/fuse:rwm", "/dev/fuse:/dev/fuse", "/dev/fuse:/dev/fuse:rwm"]
        {
            assert_eq!(of(text), Some(Mount::device("/dev/fuse")), "{text}");
        }
        for wrong in ["/dev/fuse:r", "rwm", "/dev/fuse:/dev/fuse:r", "/dev/fuse:/dev/fuse:rwm:x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn mounts_in_the_long_form_are_read_as_docker_reads_them() {
        let of = |text| mount(OsStr::new(text));
        for (text, access) in [
            ("type=bind,source=/a,target=/b", Access::ReadWrite),
            ("type=bind,src=/a,dst=/b,readonly", Access::ReadOnly),
            ("source=/a,destination=/b,ro=true", Access::ReadOnly),
            ("type=volume,source=/a,target=/b,readonly=false", Access::ReadWrite),
            ("type=bind,source=/a,target=/b,consistency=cached", Access::ReadWrite),
            ("TYPE=bind,source=/a,target=/b,cow,bind-propagation=rprivate", Access::CopyOnWrite),
            ("type=bind,source=/a,target=/b,ro,bind-recursive=readonly", Access::ReadOnly),
            ("type=volume,source=/a,target=/b,volume-nocopy", Access::ReadWrite),
        ] {
            assert_eq!(of(text), Ok(Mount::volume("/a", "/b", access)), "{text}");
        }
        assert_eq!(
            of("type=bind,\"source=/a,b\",target=/c"),
            Ok(Mount::volume("/a,b", "/c", Access::ReadWrite))
        );
        assert_eq!(
            of("type=tmpfs,target=/t,tmpfs-size=1mb,tmpfs-mode=1777"),
            Ok(Mount::tmpfs("/t", 1 << 20))
        );
        let options = TmpfsOptions { mode: 0o700, can_write: false, ..TmpfsOptions::default() };
        assert_eq!(
            of("type=tmpfs,target=/t,tmpfs-size=1mb,tmpfs-mode=0700,readonly"),
            Ok(Mount::Tmpfs { target: "/t".into(), size: 1 << 20, options })
        );
        for (text, named) in [
            ("type=bind,source=/a,target=/b,flavour=sweet", "flavour"),
            ("type=bind,source=/a,target=/b,volume-opt=o=x", "volume-opt"),
            ("type=bind,source=/a,target=/b,bind-propagation=shared", "bind-propagation"),
            ("type=bind,source=/a", "target"),
            ("type=bind,target=/a", "source"),
            ("type=bind,source=/a,target=", "target"),
            ("type=npipe,source=/a,target=/b", "npipe"),
            ("type=volume,source=data,target=/b", "\"./data\""),
            ("type=bind,source=data,target=/b", "\"./data\""),
            ("type=bind,source=/a,target=/b,consistency=good", "consistency"),
            ("type=tmpfs,target=/b,cow", "cow"),
            ("type=tmpfs,target=/b,bind-propagation=private", "bind-propagation"),
            ("type=bind,source=/a,target=/b,bind-propagation=rslave", "before"),
            ("type=bind,source=/a,target=/b,bind-recursive=disabled", "bind-recursive"),
            ("type=bind,source=/a,target=/b,bind-nonrecursive", "bind-nonrecursive"),
            ("type=volume,source=/a,target=/b,volume-subpath=x", "adl keeps none"),
            ("type=volume,source=/a,target=/b,volume-nocopy=false", "adl keeps none"),
            ("type=image,source=x,target=/b", "--image"),
            ("type=tmpfs,source=/a,target=/b", "source"),
            ("type=bind,source=/a,target=/b,tmpfs-size=1m", "tmpfs-size"),
            ("type=tmpfs,target=/b,tmpfs-mode=0800", "mode=755"),
            ("type=bind,source=/a,target=/b,readonly=perhaps", "readonly"),
            ("type=bind,\"source=/a,target=/b", "quote"),
            ("", "``"),
        ] {
            assert!(of(text).is_err_and(|why| why.contains(named)), "{text}: {:?}", of(text));
        }
    }
}
