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

/// What is to be done, and words of a cause, in small letters, for which that is so. The first that
/// fits counts.
const KNOWN: [(Remedy, &[&str]); 6] = [
    (Remedy::Room, &["no space left on device", "disk quota exceeded"]),
    (Remedy::Later, &["toomanyrequests", "too many requests", "rate limit"]),
    (Remedy::Trust, &["gave http response to https client", "x509:", "tls: failed to verify"]),
    (
        Remedy::LogIn,
        &["unauthorized", "authentication required", "denied", "forbidden", "no basic auth"],
    ),
    (Remedy::Spelling, &["manifest unknown", "name unknown", "name not known", "404"]),
    (
        Remedy::Network,
        &[
            "connection refused",
            "no such host",
            "timeout",
            "timed out",
            "deadline exceeded",
            "unreachable",
            "no route to host",
            "name resolution",
            "server misbehaving",
            "connection reset",
            "proxyconnect",
            ": eof",
        ],
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    Room,
    Later,
    Trust,
    LogIn,
    Spelling,
    Network,
}

/// Why `program` could not fetch from a registry, by the last that it said.
pub(super) fn sentence(program: &str, registry: &str, said: &str) -> String {
    let cause = cause(said);
    let small = cause.to_lowercase();
    let is_it = |words: &&[&str]| words.iter().any(|word| small.contains(word));
    let Some((remedy, _)) = KNOWN.iter().find(|(_, words)| is_it(words)) else { return cause };
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
