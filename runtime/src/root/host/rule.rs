//! What of the host's `/etc` is inside: the rule, in one place.
//!
//! Inside is what `/usr` links to below `/etc`, and what is named in [`TAKEN`], which is what the C
//! library, shells and language runtimes read there; of it what anyone may read, with each
//! directory above. Never inside is what is named in [`NEVER`], wherever it was found, and a file
//! in which [`secret_in`] sees a secret: any user of the host may read it, but a guest is none.

use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
pub(super) const NEVER: [&str; 55] = [
    "*.jks",
    "*.kdbx",
    "*.key",
    "*.keystore",
    "*.keytab",
    "*.ovpn",
    "*.p12",
    "*.pfx",
    ".aws",
    ".docker",
    ".git-credentials",
    ".kube",
    ".my.cnf",
    ".netrc",
    ".npmrc",
    ".pgpass",
    ".pypirc",
    "entitlement",
    "gshadow*",
    "machine-id",
    "opasswd",
    "private",
    "shadow*",
    "/etc/NetworkManager",
    "/etc/apt",
    "/etc/ceph",
    "/etc/cloud",
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
    "/etc/krb5*",
    "/etc/kubernetes",
    "/etc/letsencrypt",
    "/etc/mtab",
    "/etc/netrc",
    "/etc/npmrc",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd*",
    "/etc/pip.conf",
    "/etc/resolv.conf",
    "/etc/rhsm",
    "/etc/ssh",
    "/etc/sub?id",
    "/etc/sudoers*",
    "/etc/wgetrc",
    "/etc/wireguard",
    "/etc/yum*",
];

/// How names of variables with a secret end, in any case of letters.
const SECRETS: [&str; 8] =
    ["password", "passwd", "passphrase", "secret", "token", "_key", "apikey", "accesskey"];

/// Those that do so only as a word of their own: not as in `SSH_ASKPASS`, which names a program.
const SECRET_WORDS: [&str; 2] = ["pass", "mysql_pwd"];

/// Changes when the rule does.
pub(super) fn hash(hasher: &mut impl Hasher) {
    (TAKEN, NEVER, SECRETS, SECRET_WORDS).hash(hasher);
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

/// What secret a file holds, as far as that can be seen: a private key, a password in the address
/// of a server, one that an element of XML or a variable is set to.
pub(super) fn secret_in(content: &[u8]) -> Option<&'static str> {
    /// Ends of lines of PEM and of PGP.
    const KEYS: [&str; 2] = ["PRIVATE KEY-----", "PRIVATE KEY BLOCK-----"];
    const ELEMENTS: [&str; 3] = ["<password>", "<passphrase>", "<privateKey>"];
    let text = String::from_utf8_lossy(content);
    if KEYS.iter().any(|key| text.contains(key)) {
        return Some("a private key");
    }
    let is_of_web = |before: &str| before.ends_with("http") || before.ends_with("https");
    let addresses = text.split("://").zip(text.split("://").skip(1));
    let mut addresses = addresses.map(|(before, address)| (is_of_web(before), address));
    if addresses.any(|(is_of_web, address)| has_password(address, is_of_web)) {
        return Some("a password in an address");
    }
    if text.trim_start().starts_with('<') && ELEMENTS.iter().any(|name| text.contains(name)) {
        let text = without_comments(&text);
        if ELEMENTS.iter().any(|name| text.contains(name)) {
            return Some("a password");
        }
    }
    text.lines().any(sets_a_secret).then_some("a password or token")
}

/// Whether a line sets a variable that has the name of a secret: by `NAME=VALUE`, blanks or not,
/// by `setenv NAME VALUE` of csh, or by `set -gx NAME VALUE` of fish.
fn sets_a_secret(line: &str) -> bool {
    if line.trim_start().starts_with(['#', ';']) {
        return false;
    }
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let by_sign = line.match_indices('=').any(|(at, _)| {
        let (before, value) = line.split_at(at);
        // As in `env[NAME] = VALUE`. Without a blank before the sign, one behind it ends the value.
        let is_spaced = before.ends_with(char::is_whitespace);
        let before = before.trim_end().trim_end_matches(['"', '\'', ']']);
        let name = before.rsplit(|c| !is_of_name(c)).next().unwrap_or_default();
        let value = value.strip_prefix('=').unwrap_or_default();
        is_secret(name) && is_value(if is_spaced { value.trim_start() } else { value })
    });
    by_sign || is_set_by_a_command(line)
}

fn is_set_by_a_command(line: &str) -> bool {
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        // As in Lisp, too: `(setenv "NAME" "VALUE")`.
        let mut arguments = words.clone().peekable();
        match word.trim_start_matches('(') {
            "setenv" => {}
            "set" if arguments.peek().is_some_and(|word| word.starts_with('-')) => {
                while arguments.next_if(|word| word.starts_with('-')).is_some() {}
            }
            _ => continue,
        }
        let name = arguments.next().unwrap_or_default().trim_matches(['"', '\'']);
        if is_secret(name) && arguments.next().is_some_and(is_value) {
            return true;
        }
    }
    false
}

/// Whether a variable of this name has a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // What openssl is to ask for.
    if name == "challengepassword" {
        return false;
    }
    let is_word = |word| {
        let before = name.strip_suffix(word);
        before.is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    SECRETS.iter().any(|end| name.ends_with(end)) || SECRET_WORDS.iter().any(|word| is_word(*word))
}

/// Whether what comes behind `://` names a user and a password. On the web a user alone is a token,
/// as a rule.
fn has_password(address: &str, is_of_web: bool) -> bool {
    let is_end = |c: char| c.is_whitespace() || "/?#\"'<>()`".contains(c);
    let authority = address.split(is_end).next().unwrap_or_default();
    let Some((user, _)) = authority.rsplit_once('@') else { return false };
    match user.split_once(':') {
        Some((_, password)) => !password.is_empty(),
        None => is_of_web && !user.is_empty(),
    }
}

/// Whether what a variable is set to is a value: not nothing, what another variable has, a pattern
/// or a switch.
fn is_value(text: &str) -> bool {
    const SWITCHES: [&str; 8] = ["0", "1", "no", "yes", "off", "on", "false", "true"];
    let value = text.strip_prefix(['"', '\'']).unwrap_or(text);
    let word = value.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let is_switch = || SWITCHES.iter().any(|switch| switch.eq_ignore_ascii_case(word));
    let first = value.chars().next();
    first.is_some_and(|c| !c.is_whitespace() && !"\"'`$;<=*([{|)%".contains(c)) && !is_switch()
}

/// XML without what is commented out.
fn without_comments(text: &str) -> String {
    let mut parts = text.split("<!--");
    let first = parts.next().unwrap_or_default();
    let rest = parts.map(|part| part.split_once("-->").map_or("", |(_, rest)| rest));
    [first].into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_seen_and_what_speaks_of_one_is_none() {
        for secret in [
            "-----BEGIN CERTIFICATE-----\nMII\n-----BEGIN RSA PRIVATE KEY-----\nMII\n",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
            "proxy http://user:pass@proxy.example:3128/",
            "url=\"https://:token@host\"",
            "<settings><!-- a --><server><password>x</password></server></settings>",
            "export GITHUB_TOKEN=ghp_1\n",
            "AWS_SECRET_ACCESS_KEY='a'\n",
            "setenv GITHUB_TOKEN abc\n",
            "if (1) setenv GITHUB_TOKEN \"abc\"",
            "(setenv \"GITHUB_TOKEN\" \"abc\")",
            "set -gx GITHUB_TOKEN abc\n",
            "set -g --export GITHUB_TOKEN 'abc'\n",
            "DB_PASS=x PASS=x",
            "export APIKEY=x\n",
            "GPG_PASSPHRASE=x\n",
            "MYSQL_PWD=x\n",
            "auth required pam_mysql.so user=root password=x\n",
            "auth required pam_mysql.so user=root passwd = x\n",
            "env[DB_PASSWORD] = x\n",
            "input_password = secret\n",
            "index-url = https://a1b2c3@packages.example/simple\n",
            "//registry.example/:_authToken=x\n",
            "# a comment\nPASSWORD=x # and one\n",
        ] {
            assert!(secret_in(secret.as_bytes()).is_some(), "{secret}");
        }
        for public in [
            "-----BEGIN CERTIFICATE-----\nMII\n",
            "# BEGIN PRIVATE KEY in PEM\n",
            "git@host:path http://host:80/@ ssh://user@host/ http://a b:c@d",
            "<settings><!-- <password>x</password> --><password/></settings>",
            "export TOKEN=$OTHER PASSWORD= GITHUB_TOKEN=\"\"\n",
            "password requisite pam_deny.so\nchallengePassword\t\t= A challenge password\n",
            "# set PASSWORD=foo\n  #PASSWORD=foo\n; password=foo\n",
            "passwd: files\nPASS_MAX_DAYS=99999\nPASSWD_CHANGE no\nCOMPASS=x\n",
            "setenv SSH_ASKPASS /usr/libexec/askpass\nexport SSH_ASKPASS=/usr/libexec/askpass\n",
            "setenv TOKEN \"\"\nsetenv TOKEN $OTHER\nset -q TOKEN\nset -l token (commandline)\n",
            "setenv TOKEN\nabc\nset TOKEN abc\necho TOKEN abc\n",
            "--password=*) --token=[text] ask_password=yes no_password=1 x_token==2 password=%s\n",
        ] {
            assert_eq!(secret_in(public.as_bytes()), None, "{public}");
        }
    }

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
