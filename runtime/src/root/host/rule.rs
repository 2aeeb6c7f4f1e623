//! What of the host's `/etc` is inside: the rule, in one place.
//!
//! Inside is what `/usr` links to below `/etc`, and what is named in [`TAKEN`], which is what the C
//! library, shells and language runtimes read there; of it what anyone may read, with each
//! directory above. Never inside is what is named in [`NEVER`], wherever it was found, and a file
//! in which `secret_in` sees a secret: any user of the host may read it, but a guest is none.

use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::root::host::secret;

/// What is taken from `/etc`, files and directories, by what reads it. A `*` stands for any end of
/// a name.
pub(super) const TAKEN: [(&str, &[&str]); 8] = [
    (
        "the loader and the C library",
        &[
            "ld.so.cache",
            "ld.so.conf",
            "ld.so.conf.d",
            "ethertypes",
            "gai.conf",
            "host.conf",
            "netconfig",
            "networks",
            "protocols",
            "rpc",
            "services",
        ],
    ),
    (
        "time and language",
        &["locale.alias", "locale.conf", "locale.gen", "default/locale", "localtime", "timezone"],
    ),
    (
        "logins and shells",
        &[
            "adduser.conf",
            "bash.bashrc",
            "bash_completion.d",
            "bashrc",
            "csh.cshrc",
            "csh.login",
            "default/useradd",
            "deluser.conf",
            "fish",
            "inputrc",
            "libaudit.conf",
            "login.defs",
            "pam.conf",
            "pam.d",
            "profile",
            "profile.d",
            "security",
            "shells",
            "skel",
            "terminfo",
            "zsh",
            "zshenv",
            "zshrc",
        ],
    ),
    (
        "TLS",
        &[
            "ca-certificates",
            "ca-certificates.conf",
            "crypto-policies",
            "gnutls",
            "pki/ca-trust",
            "pki/java",
            "pki/tls",
            "ssl/cert.pem",
            "ssl/certs",
            "ssl/ct_log_list.cnf",
            "ssl/openssl.cnf",
            "ssl/openssl.cnf.d",
        ],
    ),
    ("which program a name stands for", &["alternatives"]),
    (
        "fonts, graphics and documents",
        &[
            "egl",
            "fonts",
            "ghostscript",
            "glvnd",
            "groff",
            "gtk-*",
            "ImageMagick*",
            "OpenCL",
            "papersize",
            "sgml",
            "texmf",
            "vulkan",
            "xml",
        ],
    ),
    (
        "language runtimes and tools",
        &[
            ".java",
            "R",
            "emacs",
            "gdb",
            "java*",
            "julia",
            "lua*",
            "maven*",
            "nanorc",
            "octave.conf",
            "perl",
            "php*",
            "python*",
            "vim",
            "vimrc",
        ],
    ),
    (
        "kinds of files, and the system's name",
        &[
            "*-release",
            "debian_version",
            "magic",
            "magic.mime",
            "mailcap",
            "man_db.conf",
            "manpath.config",
            "mime.types",
            "mke2fs.conf",
            "xattr.conf",
        ],
    ),
];

/// What is never inside, even where `/usr` links to it, by its name at any depth, or at the top of
/// `/etc`: what is secret, what tells which machine this is, whom it serves or where its
/// administrators log in, and what the image has its own of. A `*` stands for any beginning or end.
pub(super) const NEVER: [&str; 91] = [
    "*-secrets",
    "*.htpasswd",
    "*.jks",
    "*.kdbx",
    "*.key",
    "*.keystore",
    "*.keytab",
    "*.kubeconfig",
    "*.ovpn",
    "*.p12",
    "*.pfx",
    "*.pgpass",
    "*.psk",
    "*.secret",
    "*.secrets",
    "*credentials",
    ".aws",
    ".boto",
    ".curlrc",
    ".docker",
    ".dockercfg",
    ".git-credentials",
    ".gnupg",
    ".kube",
    ".my.cnf",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".s3cfg",
    ".ssh",
    ".vault-token",
    ".wgetrc",
    "entitlement",
    "gshadow*",
    "htpasswd*",
    "kubeconfig",
    "machine-id",
    "opasswd",
    "pgpass*",
    "private",
    "sasl_passwd*",
    "secring*",
    "secrets*",
    "shadow*",
    "/etc/NetworkManager",
    "/etc/apt",
    "/etc/ceph",
    "/etc/cloud",
    "/etc/consul*",
    "/etc/containerd",
    "/etc/credstore*",
    "/etc/cron*",
    "/etc/crypttab",
    "/etc/dnf",
    "/etc/docker",
    "/etc/environment",
    "/etc/fstab",
    "/etc/gitconfig",
    "/etc/group*",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/ipsec*",
    "/etc/iwd",
    "/etc/krb5*",
    "/etc/kubernetes",
    "/etc/letsencrypt",
    "/etc/mtab",
    "/etc/netplan",
    "/etc/netrc",
    "/etc/nomad*",
    "/etc/npmrc",
    "/etc/nsswitch.conf",
    "/etc/openvpn",
    "/etc/os-release",
    "/etc/passwd*",
    "/etc/pip.conf",
    "/etc/ppp",
    "/etc/rancher",
    "/etc/resolv.conf",
    "/etc/rhsm",
    "/etc/samba",
    "/etc/snmp",
    "/etc/ssh",
    "/etc/sssd",
    "/etc/sub?id",
    "/etc/sudoers*",
    "/etc/vault*",
    "/etc/wgetrc",
    "/etc/wireguard",
    "/etc/wpa_supplicant",
    "/etc/yum*",
];

/// Changes when the rule does.
pub(super) fn hash(hasher: &mut impl Hasher) {
    (TAKEN, NEVER, secret::FORMS).hash(hasher);
}

/// The rule for people.
pub(super) fn as_markdown() -> String {
    let mut text = String::from("| taken from `/etc` | what |\n|---|---|\n");
    let list = |names: &[&str]| {
        let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        quoted.join(", ")
    };
    for (readers, names) in TAKEN {
        text += &format!("| for {readers} | {} |\n", list(names));
    }
    text + &format!("| never | {} |\n", list(&NEVER))
}

/// Whether a path is one of [`TAKEN`], or below one.
pub(crate) fn is_named(path: &Path) -> bool {
    let Ok(path) = path.strip_prefix("/etc") else { return false };
    TAKEN.iter().flat_map(|(_, names)| *names).any(|name| match name.contains('*') {
        true => path.iter().next().is_some_and(|first| matches(name, first)),
        false => path.starts_with(name),
    })
}

/// Whether a path is one of [`NEVER`].
pub(super) fn is_never(path: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    let is_at_top = path.parent() == Some(Path::new("/etc"));
    NEVER.iter().any(|pattern| match pattern.strip_prefix("/etc/") {
        Some(pattern) => is_at_top && matches(pattern, name),
        None => matches(pattern, name),
    })
}

/// Whether a name is as a pattern says, in which a `*` is first or last and a `?` is one byte.
pub(super) fn matches(pattern: &str, name: &OsStr) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let same = |pattern: &[u8], name: &[u8]| {
        pattern.len() == name.len()
            && pattern.iter().zip(name).all(|(wanted, byte)| *wanted == b'?' || wanted == byte)
    };
    match (pattern.strip_prefix(b"*"), pattern.strip_suffix(b"*")) {
        (Some(end), _) => name
            .len()
            .checked_sub(end.len())
            .and_then(|at| name.get(at..))
            .is_some_and(|n| same(end, n)),
        (None, Some(start)) => name.get(..start.len()).is_some_and(|n| same(start, n)),
        (None, None) => same(pattern, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_a_beginning_or_an_end() {
        let is_never = |name: &str| is_never(&Path::new("/etc").join(name));
        for never in
            ["shadow", "shadow-", "x/shadow", "host.key", "x/y.key", "ssl/private", "subuid"]
        {
            assert!(is_never(never), "{never}");
        }
        for never in ["skel/.netrc", "skel/.docker", "skel/.kube"] {
            assert!(is_never(never), "{never}");
        }
        for never in ["passwd", "passwd-", "group", "machine-id", "krb5.keytab", "x/machine-id"] {
            assert!(is_never(never), "{never}");
        }
        for other in ["key", "keys", "hosts.allow", "my-shadow", "private.d", "cert.pem"] {
            assert!(!is_never(other), "{other}");
        }
        // The files of PAM have names of programs.
        for other in ["pam.d/passwd", "security/group.conf", "pam.d/cron"] {
            assert!(!is_never(other), "{other}");
        }
    }
}
