//! What secret a file of `/etc` holds, as far as that can be seen by its form.
//!
//! Whoever writes a secret into a file that all may read has made a mistake, which a guest is not
//! to profit by. A form that a file of programs has, too, is not one of these: what is left out for
//! it is missed by someone.

/// The number of the forms, which changes when they do.
pub(super) const FORMS: u32 = 2;

/// What is in a file with a private key, whoever writes it.
const KEYS: [&str; 5] = [
    "PRIVATE KEY-----",
    "PRIVATE KEY BLOCK-----",
    "OpenVPN Static key",
    "PuTTY-User-Key-File-",
    "AGE-SECRET-KEY-1",
];

/// How tokens of well-known services begin, and how long they are behind that, at least.
const TOKENS: [(&str, usize); 15] = [
    ("AIza", 35),
    ("AKIA", 16),
    ("ASIA", 16),
    ("dop_v1_", 32),
    ("gho_", 30),
    ("ghp_", 30),
    ("ghs_", 30),
    ("ghu_", 30),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("hvs.", 20),
    ("npm_", 30),
    ("sk_live_", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
];

/// How names of variables with a secret end, in any case of letters.
const SECRETS: [&str; 17] = [
    "_key",
    "accesskey",
    "apikey",
    "authkey",
    "authtok",
    "encryptionkey",
    "key_data",
    "masterkey",
    "passphrase",
    "passwd",
    "password",
    "presharedkey",
    "privatekey",
    "secret",
    "secretkey",
    "signingkey",
    "token",
];

/// Those that do so only as a word of their own: not as in `SSH_ASKPASS`, which names a program.
const SECRET_WORDS: [&str; 4] = ["community", "mysql_pwd", "pass", "psk"];

/// Words at the beginning of a line that a secret follows, whatever comes behind it.
const DIRECTIVES: [&str; 14] = [
    "bindpw",
    "com2sec",
    "com2sec6",
    "createuser",
    "masterauth",
    "password_pbkdf2",
    "requirepass",
    "rocommunity",
    "rocommunity6",
    "rootpw",
    "rwcommunity",
    "rwcommunity6",
    "wpa-passphrase",
    "wpa-psk",
];

/// What secret a file holds.
pub(super) fn secret_in(content: &[u8]) -> Option<&'static str> {
    if is_keytab(content) {
        return Some("keys of Kerberos");
    }
    let text = String::from_utf8_lossy(content);
    if is_der_key(content) || KEYS.iter().any(|key| text.contains(key)) {
        return Some("a private key");
    }
    if text.starts_with("#cloud-config") {
        return Some("user data of cloud-init");
    }
    if has_address_with_password(&text) {
        return Some("a password in an address");
    }
    if text.trim_start().starts_with('<') && has_secret_element(&text) {
        return Some("a password");
    }
    if TOKENS.iter().any(|(start, length)| has_token(&text, start, *length)) {
        return Some("a token");
    }
    let mut lines = text.lines().filter(|line| !is_comment(line));
    let has = |line: &str| {
        sets_a_secret(line)
            || maps_to_a_secret(line)
            || is_set_by_a_command(line)
            || authorizes(line)
            || is_directive(line)
            || is_of_passwords(line)
    };
    if is_netrc(&text) || lines.any(has) {
        return Some("a password or token");
    }
    text.lines().any(has_hash).then_some("the hash of a password")
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with(['#', ';'])
}

/// The two numbers of the format, and a first entry that is not longer than the file.
fn is_keytab(content: &[u8]) -> bool {
    match content {
        [5, 1 | 2, a, b, c, d, rest @ ..] => {
            let length = i32::from_be_bytes([*a, *b, *c, *d]).unsigned_abs() as usize;
            length > 0 && length <= rest.len()
        }
        _ => false,
    }
}

/// A private key in DER: a sequence that begins with a version, and then what PKCS #1, PKCS #8 and
/// SEC 1 have there.
fn is_der_key(content: &[u8]) -> bool {
    let [0x30, length, rest @ ..] = content else { return false };
    let more = if *length < 0x80 { 0 } else { usize::from(length & 0x7f) };
    matches!(rest.get(more..), Some([2, 1, 0, 2 | 0x30, ..] | [2, 1, 1, 4 | 0x30, ..]))
}

/// Whether there is a token that begins so.
fn has_token(text: &str, start: &str, least: usize) -> bool {
    let is_of_token = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.match_indices(start).any(|(at, _)| {
        let (before, token) = text.split_at(at);
        let length = token.chars().take_while(|c| is_of_token(*c) || *c == '.').count();
        !before.ends_with(is_of_token) && length >= start.len() + least
    })
}

fn has_address_with_password(text: &str) -> bool {
    let is_of_web = |before: &str| before.ends_with("http") || before.ends_with("https");
    let addresses = text.split("://").zip(text.split("://").skip(1));
    let mut addresses = addresses.map(|(before, address)| (is_of_web(before), address));
    addresses.any(|(is_of_web, address)| has_password(address, is_of_web))
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

/// Whether an element of XML that is called a secret has a value.
fn has_secret_element(text: &str) -> bool {
    let text = without_comments(text);
    text.split('<').skip(1).any(|element| {
        let Some((tag, value)) = element.split_once('>') else { return false };
        let name = tag.split_whitespace().next().unwrap_or_default();
        let name = name.rsplit(':').next().unwrap_or_default();
        !tag.ends_with('/') && is_secret(name) && is_value(value.trim_start())
    })
}

/// XML without what is commented out.
fn without_comments(text: &str) -> String {
    let mut parts = text.split("<!--");
    let first = parts.next().unwrap_or_default();
    let rest = parts.map(|part| part.split_once("-->").map_or("", |(_, rest)| rest));
    [first].into_iter().chain(rest).collect()
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// Whether a line sets a variable that has the name of a secret, by `NAME=VALUE`, blanks or not.
fn sets_a_secret(line: &str) -> bool {
    line.match_indices('=').any(|(at, _)| {
        let (before, value) = line.split_at(at);
        // As in `env[NAME] = VALUE`. Without a blank before the sign, one behind it ends the value.
        let is_spaced = before.ends_with(char::is_whitespace);
        let before = before.trim_end().trim_end_matches(['"', '\'', ']']);
        let name = before.rsplit(|c| !is_of_name(c)).next().unwrap_or_default();
        let value = value.strip_prefix('=').unwrap_or_default();
        is_secret(name) && is_value(if is_spaced { value.trim_start() } else { value })
    })
}

/// Whether a line maps a name to a secret, as YAML does by `NAME: VALUE`, and JSON by
/// `"NAME": "VALUE"`.
fn maps_to_a_secret(line: &str) -> bool {
    line.match_indices(':').any(|(at, _)| {
        let (before, rest) = line.split_at(at);
        let value = rest.strip_prefix(':').unwrap_or_default();
        let before = before.trim_end();
        if let Some(quote) = before.chars().next_back().filter(|c| matches!(c, '"' | '\'')) {
            let name = before.trim_end_matches(quote).rsplit(quote).next().unwrap_or_default();
            let value = value.trim_start();
            return is_secret(name) && is_value(value) || name == "auth" && is_credential(value);
        }
        let name = before.rsplit(|c| !is_of_name(c)).next().unwrap_or_default();
        let above = before.strip_suffix(name).unwrap_or_default().trim_end();
        // In the middle of a line it is prose. One of nsswitch.conf names a database.
        let is_key = above.is_empty() || above.ends_with(['-', '{', ',']);
        let is_value = |value: &str| is_value(value) || value.starts_with(['|', '>']);
        is_key
            && name != "passwd"
            && is_secret(name)
            && value.starts_with(char::is_whitespace)
            && is_value(value.trim_start())
    })
}

/// Whether a value in quotes may be a user and a password in base64, as docker has them.
fn is_credential(value: &str) -> bool {
    let value = value.strip_prefix('"').unwrap_or_default();
    let is_of_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    value.chars().take_while(|c| is_of_base64(*c)).count() >= 8
}

/// Whether a line sets a variable by `setenv NAME VALUE` of csh, or by `set -gx NAME VALUE` of
/// fish.
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

/// Whether a line has a header of HTTP that authorizes.
fn authorizes(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.match_indices("authorization").any(|(at, name)| {
        let rest = line.get(at + name.len()..).unwrap_or_default();
        let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || "\"':=,".contains(c));
        let value = ["basic", "bearer", "token"].iter().find_map(|kind| rest.strip_prefix(kind));
        value.is_some_and(|value| {
            value.starts_with(char::is_whitespace) && is_value(value.trim_start())
        })
    })
}

/// Whether a line begins with a word that a secret follows.
fn is_directive(line: &str) -> bool {
    /// What a line of PAM has behind `password`.
    const CONTROLS: [&str; 6] =
        ["include", "optional", "required", "requisite", "substack", "sufficient"];
    /// Kinds of keys of ntp and chrony, behind their numbers.
    const KINDS: [&str; 8] =
        ["md5", "sha1", "sha256", "sha384", "sha512", "aes128", "aes256", "aes128cmac"];
    let words: Vec<&str> = line.split_whitespace().collect();
    let is = |word: &str, list: &[&str]| list.iter().any(|other| word.eq_ignore_ascii_case(other));
    match &*words {
        [first, value, ..] if is(first, &DIRECTIVES) => is_value(value),
        ["secret" | "password" | "passphrase", value] => !is(value, &CONTROLS) && is_value(value),
        [number, kind, value] if is(kind, &KINDS) => {
            number.bytes().all(|byte| byte.is_ascii_digit()) && is_value(value)
        }
        // As ipsec.secrets has it.
        _ => words
            .windows(3)
            .any(|words| matches!(words, [":", "PSK" | "EAP" | "XAUTH", value] if is_value(value))),
    }
}

/// Whether `login NAME password VALUE` is there, or its like, on one line or several.
fn is_netrc(text: &str) -> bool {
    let lines = text.lines().filter(|line| !is_comment(line));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    words.windows(4).any(|words| match words {
        ["login" | "machine" | "user", _, "password" | "passwd", value]
        | ["password" | "passwd", value, "login", _] => is_value(value),
        _ => false,
    })
}

/// Whether a line is one of a file of passwords: of PostgreSQL's, which is
/// `host:port:database:user:password`, or of a web server's with a hash that has no mark.
fn is_of_passwords(line: &str) -> bool {
    let fields: Vec<&str> = line.split(':').collect();
    if line.contains(char::is_whitespace) || fields.iter().any(|field| field.is_empty()) {
        return false;
    }
    match &*fields {
        [_, port, _, _, _] => *port == "*" || port.bytes().all(|byte| byte.is_ascii_digit()),
        [_, _, hash] => hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
        [_, hash] => {
            let has = |is: fn(&u8) -> bool| hash.bytes().any(|byte| is(&byte));
            hash.len() == 13
                && hash.chars().all(is_of_hash)
                && has(u8::is_ascii_uppercase)
                && has(u8::is_ascii_lowercase)
        }
        _ => false,
    }
}

fn is_of_hash(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '.' || c == '/'
}

/// Whether a line has the hash of a password, as crypt(3) or LDAP write it.
fn has_hash(line: &str) -> bool {
    const KINDS: [&str; 16] = [
        "$1$", "$2a$", "$2b$", "$2x$", "$2y$", "$5$", "$6$", "$7$", "$apr1$", "$argon2", "$gy$",
        "$md5", "$pbkdf2", "$scrypt$", "$sha1$", "$y$",
    ];
    const LDAP: [&str; 8] =
        ["{ARGON2}", "{CRYPT}", "{MD5}", "{PBKDF2", "{SHA}", "{SHA256}", "{SMD5}", "{SSHA"];
    let is_crypt = KINDS.iter().any(|kind| {
        line.match_indices(kind).any(|(at, _)| {
            let hash = line.get(at..).unwrap_or_default();
            let is_of = |c: char| is_of_hash(c) || "$=,+".contains(c);
            let hash = hash.split(|c| !is_of(c)).next().unwrap_or_default();
            // In a script, `$1` is an argument.
            let parts: Vec<&str> = hash.split('$').collect();
            parts.len() >= 4 && parts.last().is_some_and(|last| last.len() >= 20)
        })
    });
    let is_ldap = || {
        LDAP.iter().any(|kind| {
            line.match_indices(kind).any(|(at, _)| {
                let rest = line.get(at..).and_then(|rest| rest.split_once('}'));
                let hash = rest.map(|(_, hash)| hash).unwrap_or_default();
                let is_of = |c: &char| c.is_ascii_alphanumeric() || "+/=$.".contains(*c);
                hash.chars().take_while(is_of).count() >= 13
            })
        })
    };
    is_crypt || line.contains("grub.pbkdf2.") || is_ldap()
}

/// Whether a variable of this name has a secret.
fn is_secret(name: &str) -> bool {
    let name = name.trim_start_matches('-').to_ascii_lowercase().replace('-', "_");
    // As in `wep_key0`.
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    // What openssl is to ask for, and what is for all.
    if name == "challengepassword" || name.contains("public") || name.contains("pubkey") {
        return false;
    }
    let is_word = |word: &str| {
        let before = name.strip_suffix(word);
        before.is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    name == "_auth"
        || SECRETS.iter().any(|end| name.ends_with(end))
        || SECRET_WORDS.iter().any(|word| is_word(word))
}

/// Whether what a variable is set to is a value: not nothing, what another variable has, a pattern
/// or a switch.
fn is_value(text: &str) -> bool {
    const SWITCHES: [&str; 10] =
        ["0", "1", "no", "none", "null", "yes", "off", "on", "false", "true"];
    let value = text.strip_prefix(['"', '\'']).unwrap_or(text);
    let word = value.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let is_switch = || SWITCHES.iter().any(|switch| switch.eq_ignore_ascii_case(word));
    let first = value.chars().next();
    first.is_some_and(|c| !c.is_whitespace() && !"\"'`$;<=*([{|)%>,".contains(c)) && !is_switch()
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
    fn secrets_of_known_files_are_seen() {
        const HASH: &str = "abcdefghijklmnopqrstuv";
        let seen = [
            "db:\n  password: marker\n",
            "- token: marker\n",
            "api-key: 'marker'\n",
            "token: |\n  marker\n",
            "{ password: marker }\n",
            "{\"password\": \"marker\"}\n",
            "  \"clientSecret\" : \"marker\",\n",
            "{\"auths\": {\"registry\": {\"auth\": \"bWFya2VyOm1hcmtlcg==\"}}}",
            "    client-key-data: marker\n",
            "api_key = marker\n",
            "secret-access-key = \"marker\"\n",
            "[peer]\nPrivateKey = marker\n",
            "PresharedKey = marker\n",
            "network={\n\tpsk=\"marker\"\n\twep_key0=marker\n}\n",
            "machine host login me password marker\n",
            "machine host\n  login me\n  password marker\n",
            "localhost:5432:db:me:marker\n*:*:*:me:marker\n",
            &format!("me:$apr1$abcdefgh${HASH}\n"),
            &format!("me:$2y$10${HASH}{HASH}\n"),
            &format!("root:$6$salt${HASH}:1:2\n"),
            "me:{SHA}fEqNCco3Yq9h5ZUglD3CZJT4lBs=\n",
            "me:aBcDeFgHiJkLm\n",
            "me:realm:0123456789abcdef0123456789abcdef\n",
            "rocommunity marker 10.0.0.0/8\n",
            "createUser me SHA marker AES marker\n",
            "rootpw marker\n",
            "bindpw marker\n",
            "key \"rndc\" {\n\tsecret \"marker\";\n};\n",
            "1 SHA1 marker\n",
            "192.0.2.1 %any : PSK \"marker\"\n",
            "proxy_set_header Authorization \"Bearer marker\";\n",
            "header = \"authorization: basic marker\"\n",
            "#cloud-config\nusers: []\n",
            "<a><dbPassword type='x'>marker</dbPassword></a>",
            "ldap_default_authtok = marker\n",
            "-----BEGIN OpenVPN Static key V1-----\nmarker\n",
            "key ghp_0123456789abcdefghijklmnopqrstuvwxyz\n",
            "_auth=bWFya2Vy\n",
        ];
        for secret in seen {
            assert!(secret_in(secret.as_bytes()).is_some(), "{secret}");
        }
        let keytab = [5, 2, 0, 0, 0, 4, 1, 2, 3, 4];
        let pkcs8 = [0x30, 0x82, 1, 0, 2, 1, 0, 0x30, 13];
        let sec1 = [0x30, 0x77, 2, 1, 1, 4, 32];
        for secret in [&keytab[..], &pkcs8, &sec1] {
            assert!(secret_in(secret).is_some(), "{secret:?}");
        }
        // A certificate, a truststore of Java, and one of PKCS #12.
        let public = [
            &[0x30, 0x82, 4, 0, 0x30, 0x82, 3, 0][..],
            &[0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2],
            &[0x30, 0x82, 4, 0, 2, 1, 3, 0x30],
        ];
        for public in public {
            assert_eq!(secret_in(public), None, "{public:?}");
        }
        for public in [
            "password\t[success=1 default=ignore]\tpam_unix.so\npassword include common\n",
            "password: null\ntoken:\n\"password\": {\"type\": \"string\"}\n",
            "Type the password: it is not shown\nthe token: none\n",
            "f() { local x=\"$1$2\"; echo \"$1$suffix_that_is_long_enough\"; }\n",
            "passwd:     files systemd\nshadow:     files\n",
            "public_key: marker\nPublicKey = marker\n",
            "Authorization: Bearer $TOKEN\nthe login and the password of a machine\n",
            "<match><test name=\"family\"><string>x</string></test><password/></match>",
            "root:x:0:0:root:/root:/bin/sh\ntty:x:5:\n",
        ] {
            assert_eq!(secret_in(public.as_bytes()), None, "{public}");
        }
    }
}
