//! Why an image can't be fetched: one sentence of what its fetcher says, with what to do.

/// How much of what a program says is told, in characters: some of it is a registry's own words.
const TOLD: usize = 300;

/// What programs put before the cause: what they were about to do, and with what.
const WRAPPERS: [&str; 12] = [
    "Error: ",
    "Error parsing image name ",
    "Error response from daemon: ",
    "copying system image from manifest list: ",
    "determining manifest MIME type ",
    "error pinging docker registry ",
    "initializing source ",
    "pinging container registry ",
    "reading blob ",
    "reading manifest ",
    "unable to retrieve auth token: ",
    "writing blob: ",
];

/// What is to be done, and phrases of programs, in small letters, for which that is so.
const KNOWN: [(Remedy, &[&str]); 7] = [
    (Remedy::Room, &["no space left on device", "disk quota exceeded"]),
    (
        Remedy::Network,
        &[
            "connection refused",
            "no such host",
            "timeout",
            "timed out",
            "deadline exceeded",
            "network is unreachable",
            "host is unreachable",
            "no route to host",
            "name resolution",
            "server misbehaving",
            "connection reset by peer",
            "proxyconnect tcp",
            "eof",
        ],
    ),
    (
        Remedy::Trust,
        &["gave http response to https client", "x509", "failed to verify certificate"],
    ),
    (Remedy::Rights, &["permission denied"]),
    (Remedy::Later, &["toomanyrequests", "too many requests", "rate limit"]),
    (
        Remedy::LogIn,
        &[
            "unauthorized",
            "authentication required",
            "resource is denied",
            "pull access denied",
            "no basic auth credentials",
        ],
    ),
    (Remedy::Spelling, &["name not known to registry"]),
];

/// The codes of errors of registries, in small letters, as the specification of OCI's distribution
/// has them: what comes after one is the registry's own text.
const CODES: [(&str, Option<Remedy>); 16] = [
    ("blob unknown", None),
    ("blob upload invalid", None),
    ("blob upload unknown", None),
    ("denied", Some(Remedy::LogIn)),
    ("digest invalid", None),
    ("manifest blob unknown", None),
    ("manifest invalid", None),
    ("manifest unknown", Some(Remedy::Spelling)),
    ("name invalid", None),
    ("name unknown", Some(Remedy::Spelling)),
    ("size invalid", None),
    ("toomanyrequests", Some(Remedy::Later)),
    ("unauthorized", Some(Remedy::LogIn)),
    ("unavailable", None),
    ("unknown", None),
    ("unsupported", None),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    Room,
    Later,
    Trust,
    Rights,
    LogIn,
    Spelling,
    Network,
}

/// Why `program` could not fetch from a registry, by the last that it said.
pub(super) fn sentence(program: &str, registry: &str, said: &str) -> String {
    let cause = cause(said);
    let Some(remedy) = remedy(&cause) else { return cause };
    let what = match remedy {
        Remedy::Room => "the disk is full: free room on it, as by `adl image prune`".to_owned(),
        Remedy::Later => format!(
            "{registry} gives no more for now: wait, or log in by `{program} login {registry}`"
        ),
        Remedy::Trust => format!(
            "{registry} has no encryption, or no certificate that is known here: where you trust \
             it, fetch by `adl image pull --insecure`, or say `insecure = true` of it in \
             registries.conf"
        ),
        Remedy::Rights => {
            format!("{program} may not use a file or socket of this machine: look at its rights")
        }
        Remedy::LogIn => format!(
            "{registry} does not let you have it: log in by `{program} login {registry}`, and look \
             at the spelling, since some registries say so of what they don't have"
        ),
        Remedy::Spelling => {
            format!("{registry} has no image of this name: look at the spelling and the tag")
        }
        Remedy::Network => format!(
            "{registry} does not answer: look at the network, its proxy, and the registry's name"
        ),
    };
    format!("{what} ({cause})")
}

/// What is to be done, by the first part of a cause that says so. What a registry sends picks
/// nothing: it comes after a code or a status.
fn remedy(cause: &str) -> Option<Remedy> {
    let small = cause.to_lowercase();
    let small = small.strip_prefix("errors:").map_or(&small[..], str::trim_start);
    let mut parts = small.split(": ").map(str::trim).peekable();
    while let Some(part) = parts.next() {
        if let Some((_, remedy)) = CODES.iter().find(|(code, _)| *code == part) {
            return *remedy;
        }
        if let Some(status) = status(part, parts.peek().copied()) {
            return match status {
                401 | 403 => Some(Remedy::LogIn),
                404 => Some(Remedy::Spelling),
                429 => Some(Remedy::Later),
                _ => None,
            };
        }
        let has = |words: &&[&str]| words.iter().any(|phrase| has_phrase(part, phrase));
        if let Some((remedy, _)) = KNOWN.iter().find(|(_, words)| has(words)) {
            return Some(*remedy);
        }
    }
    None
}

/// The status of HTTP that a part of a cause tells, or the next one after it.
fn status(part: &str, next: Option<&str>) -> Option<u16> {
    if !part.contains("status") && !part.contains("response body") {
        return None;
    }
    let number = |word: &str| {
        word.trim_matches(',').parse().ok().filter(|number| (100..600).contains(number))
    };
    let first = next.and_then(|next| next.split_whitespace().next());
    part.split_whitespace().chain(first).find_map(number)
}

/// Whether a phrase is there as whole words.
fn has_phrase(text: &str, phrase: &str) -> bool {
    let is_apart = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    text.match_indices(phrase).any(|(at, _)| {
        let (before, after) = text.split_at(at);
        is_apart(before.chars().next_back()) && is_apart(after.chars().nth(phrase.chars().count()))
    })
}

/// The end of what a program says, in which it names the cause.
fn cause(said: &str) -> String {
    let mut rest = said;
    while let Some((wrapper, inner)) = rest.split_once(": ") {
        // Names and addresses in it have no `: `.
        let is_wrapper = WRAPPERS.iter().any(|known| rest.starts_with(known));
        let is_request = wrapper.ends_with('"')
            && ["Get \"", "Head \"", "Post \""].iter().any(|verb| wrapper.starts_with(verb));
        if !is_wrapper && !is_request {
            break;
        }
        rest = inner;
    }
    // A code and its text, which are often one.
    let rest = match rest.split_once(": ") {
        Some((code, text)) if code == text => code,
        _ => rest,
    };
    match rest.char_indices().nth(TOLD) {
        Some((end, _)) => format!("{}…", rest.get(..end).unwrap_or_default()),
        None => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::sentence;

    #[test]
    fn what_a_program_says_becomes_one_sentence_with_its_cause_and_what_to_do() {
        let parsing = "Error parsing image name \"docker://r:5/x\": ";
        let reading = format!("{parsing}reading manifest latest in r:5/x: ");
        let pinging = format!("{parsing}pinging container registry r:5: Get \"https://r:5/v2/\": ");
        for (said, begins, ends) in [
            (
                format!("{reading}manifest unknown: manifest unknown"),
                "r:5 has no image of this name: look at the spelling and the tag",
                "(manifest unknown)",
            ),
            (
                format!("{reading}name unknown: no such"),
                "r:5 has no image",
                "(name unknown: no such)",
            ),
            (format!("{reading}unauthorized"), "r:5 does not let you", "(unauthorized)"),
            (format!("{reading}denied"), "r:5 does not let you have it: log in by", "(denied)"),
            (
                format!("{reading}toomanyrequests: You have reached your pull rate limit."),
                "r:5 gives no more for now",
                "(toomanyrequests: You have reached your pull rate limit.)",
            ),
            (
                format!("{pinging}dial tcp 127.0.0.1:5: connect: connection refused"),
                "r:5 does not answer: look at the network",
                "(dial tcp 127.0.0.1:5: connect: connection refused)",
            ),
            (
                format!("{pinging}dial tcp: lookup r on [::1]:53: no such host"),
                "r:5 does not answer",
                "(dial tcp: lookup r on [::1]:53: no such host)",
            ),
            (
                format!("{pinging}http: server gave HTTP response to HTTPS client"),
                "r:5 has no encryption",
                "(http: server gave HTTP response to HTTPS client)",
            ),
            (
                "initializing source docker://r:5/x:1: reading manifest 1 in r:5/x: manifest \
                 unknown: manifest unknown"
                    .to_owned(),
                "r:5 has no image",
                "(manifest unknown)",
            ),
            (
                "writing blob: write /x: no space left on device".to_owned(),
                "the disk is full",
                "(write /x: no space left on device)",
            ),
            (
                "pinging container registry r:15404: dial tcp 1.2.3.4:15404: connect: connection \
                 refused"
                    .to_owned(),
                "r:5 does not answer",
                "connection refused)",
            ),
            (
                "Error response from daemon: manifest for r:404/x-404 not found: manifest unknown"
                    .to_owned(),
                "r:5 has no image",
                "manifest unknown)",
            ),
            (format!("{pinging}EOF"), "r:5 does not answer", "(EOF)"),
            (format!("{pinging}http: unexpected EOF reading"), "r:5 does not answer", "reading)"),
            (format!("{pinging}read x/404eof"), "read x/404eof", "read x/404eof"),
            (
                format!("{reading}StatusCode: 404, \"<p>x509: timeout\""),
                "r:5 has no image",
                "timeout\")",
            ),
            (
                format!("{reading}received unexpected HTTP status: 500 denied"),
                "received unexpected",
                "500 denied",
            ),
            (
                format!("{reading}error parsing HTTP 403 response body: bad: \"no such host\""),
                "r:5 does not let you",
                "no such host\")",
            ),
            (
                "error reading auth file: open /root/auth.json: permission denied".to_owned(),
                "skopeo may not use a file or socket of this machine",
                "permission denied)",
            ),
            // What a registry says itself picks nothing.
            (
                format!("{reading}manifest unknown: x509: no space left on device, denied"),
                "r:5 has no image",
                "denied)",
            ),
            (format!("{reading}unknown: connection refused"), "unknown: connection", "refused"),
            (format!("{reading}denied: permission denied"), "r:5 does not let you", "denied)"),
            (
                format!("{reading}errors:denied: requested access to it is refused"),
                "r:5 does not let you",
                "refused)",
            ),
            ("Error: something else".to_owned(), "something else", "something else"),
            (format!("{reading}{}", "long".repeat(100)), "longlong", "long…"),
            ("it does not say why".to_owned(), "it does not say why", "it does not say why"),
        ] {
            let told = sentence("skopeo", "r:5", &said);
            assert!(told.starts_with(begins) && told.trim_end().ends_with(ends), "{said}: {told}");
            assert!(!told.contains("docker://") && told.len() < 600, "{told}");
        }
    }
}
