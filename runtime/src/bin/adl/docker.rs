//! What users of docker try that adl has not, and what it has instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Options of `docker run`.
const OPTIONS: &[(&[&str], &str)] = &[
    (
        &["-P", "--publish-all", "--expose"],
        "name each port, as `-p 8080:80`, or as `-p 0:80` for any port of this machine, which is \
         told",
    ),
    (
        &["-d", "--detach"],
        "a sandbox ends with its command: have the shell do it, as `adl run … &`, or a service \
         manager, as `systemd-run adl run …`",
    ),
    (
        &["--privileged"],
        "give what is needed one by one: `--cap-add NAME`, `--device PATH`, \
         `--security-opt seccomp=unconfined`",
    ),
    (
        &["--gpus"],
        "name the devices, as `--device /dev/dri/renderD128`, and mount the driver's \
                   files by `-v`",
    ),
    (&["--restart"], "a sandbox is new each time: run `adl run` again, in a loop or by systemd"),
    (
        &["--link", "--network-alias", "--ip", "--ip6", "--mac-address", "--link-local-ip"],
        "there are no networks between sandboxes: `-p 8080:80` has a port of this machine lead to \
         a server inside, `--forward 5432:localhost:8080` one inside to a server of this machine's",
    ),
    (
        &["--domainname"],
        "a sandbox has a host name only, in which there may be dots: `--hostname NAME`",
    ),
    (&["--add-host"], "write a file of hosts and mount it, as `-v ./hosts:/etc/hosts:ro`"),
    (
        &["--dns", "--dns-search", "--dns-option", "--dns-opt"],
        "write a resolv.conf and mount it, as `-v ./resolv.conf:/etc/resolv.conf:ro`",
    ),
    (&["-l", "--label", "--label-file", "--annotation"], "a sandbox has a `--name` only"),
    (
        &["--pid", "--ipc", "--uts", "--userns", "--cgroupns"],
        "a sandbox always has namespaces of its own; of this machine's it can have the network \
         alone, by `--network host`",
    ),
    (
        &["--memory-swap"],
        "`--swap SIZE` says how much swap there is beside the memory; by default none",
    ),
    (&["--memory-reservation"], "`--memory-high SIZE` is near to it"),
    (
        &["--memory-swappiness", "--oom-kill-disable", "--kernel-memory"],
        "limits of memory are `--memory`, `--memory-high` and `--swap`",
    ),
    (&["-c", "--cpu-shares"], "`--cpu-weight N` is the share: docker's 1024 is 100 here"),
    (
        &["--cpu-quota", "--cpu-period", "--cpu-rt-period", "--cpu-rt-runtime", "--cpu-count"],
        "`--cpus NUMBER` says how much CPU time there is, as 1.5",
    ),
    (&["--cpuset-mems"], "`--cpuset LIST` says which CPUs"),
    (
        &[
            "--device-read-bps",
            "--device-write-bps",
            "--device-read-iops",
            "--device-write-iops",
            "--blkio-weight",
            "--blkio-weight-device",
        ],
        "`--io DEVICE:rbps=10m,wbps=1m,riops=100,wiops=100` limits a disk",
    ),
    (&["--device-cgroup-rule"], "name each device by `--device`"),
    (&["--storage-opt"], "`--upper disk:SIZE` or `--upper memory:SIZE` limits what is written"),
    (
        &["--volumes-from", "--volume-driver"],
        "name each directory by `-v`, or keep what was written by `--snapshot NAME`",
    ),
    (
        &["--disable-content-trust"],
        "registries are asked as `skopeo` is configured: `/etc/containers/policy.json`",
    ),
    (
        &["--platform"],
        "programs are run by this machine's kernel as they are, and of an image for several kinds of \
         machines the part for this one is taken, linux/amd64 (x86_64)",
    ),
    (&["--runtime", "--isolation"], "adl is the runtime, and there is no other: leave it out"),
    (
        &["--secret"],
        "mount it as a file, `-v ./secret:/run/secrets/NAME:ro`, or set a variable by `--env-file`",
    ),
    (&["--ro"], "`--read-only` is for the root, `:ro` at the end of `-v` for a volume"),
    (&["--json", "--format"], "`--result FILE` writes how the command ended, as JSON"),
    (
        &["--log-driver", "--log-opt", "-a", "--attach", "--sig-proxy", "--detach-keys"],
        "the command's streams are adl's own, and signals are passed on: redirect them in the \
         shell",
    ),
    (
        &["--stop-signal", "--stop-timeout"],
        "signals are passed on to the command; `--timeout` kills it, and all that it has started",
    ),
    (
        &["--group-add"],
        "`--user USER` has the groups that /etc/group inside gives it, `--user USER:GROUP` one",
    ),
    (
        &[
            "--cidfile",
            "--health-cmd",
            "--health-interval",
            "--health-retries",
            "--health-start-interval",
            "--health-timeout",
            "--health-start-period",
            "--no-healthcheck",
        ],
        "there is no daemon that would use it",
    ),
];

/// Commands of docker.
const COMMANDS: &[(&[&str], &str)] = &[
    (
        &["create", "start", "exec", "attach", "restart"],
        "a sandbox is made by `adl run`, and ends with its command: run all in one, as `adl run -- \
         sh -c '…'`, or keep the files by `--snapshot NAME`",
    ),
    (
        &[
            "ps", "ls", "stop", "kill", "rm", "logs", "wait", "top", "stats", "inspect", "pause",
            "unpause", "rename", "update", "port", "events",
        ],
        "a sandbox lives no longer than its `adl run`, which the shell lists and ends as any \
         program; what programs that were killed left is removed by `adl gc`",
    ),
    (
        &["commit", "diff", "save", "export"],
        "`adl run --snapshot NAME` keeps the files; `adl snapshot changes NAME` and `adl snapshot \
         export NAME` tell and write them",
    ),
    (&["cp"], "`adl run --copy-in FROM:TO --copy-out FROM:TO` copies, or mount by `-v`"),
    (
        &["pull", "images", "rmi", "history", "manifest"],
        "`adl image pull NAME` fetches an image, `adl image ls`, `inspect` and `rm` list, show and \
         remove them",
    ),
    (
        &["build", "load", "import", "tag"],
        "adl builds no images: `adl image import PATH NAME` takes what `docker save` and OCI tools \
         write",
    ),
    (
        &["push", "login", "logout", "search"],
        "registries are for `skopeo`, whose logins adl uses to fetch images: `skopeo login`, \
         `skopeo copy`",
    ),
    (
        &["info", "version"],
        "`adl doctor` tells what this machine can do, `adl --version` the version",
    ),
    (
        &["container"],
        "a sandbox lives no longer than its `adl run`, which the shell lists and ends as any \
         program",
    ),
    (
        &["system"],
        "`adl gc` removes what programs that were killed have left, as `prune` does, `adl snapshot \
         ls` lists what is kept, and `du -sh` of the state directory, which `adl --help` tells, is \
         `df`; `adl doctor` is `info`",
    ),
    (
        &["volume"],
        "adl keeps no volumes: `-v ./DIR:/TARGET` mounts a directory of this machine, and \
         `--snapshot NAME` keeps what was written",
    ),
    (
        &["network"],
        "there are no networks to be made: a sandbox has its own loopback device, this machine's \
         network by `--network host`, or a network namespace by `--network ns:PATH`; ports lead in \
         by `-p` and out by `--forward`",
    ),
];

/// What `--security-opt` is not for, by how its value begins.
const SECURITY_OPTIONS: [(&str, &str); 5] = [
    (
        "seccomp",
        "adl takes no profile: its filter is its own, and in force where the option is left out; \
         docs/seccomp.md lists what it lets through",
    ),
    (
        "apparmor",
        "a sandbox has the profile that adl runs with, and none of its own: `aa-exec -p PROFILE -- \
         adl run …` gives both one",
    ),
    ("label", "adl sets no label of SELinux, and needs none to be switched off: leave it out"),
    ("systempaths", "what is covered of /proc stays so: leave it out"),
    ("no-new-privileges", "it is on in any case"),
];

/// What can be said to a user of docker about an error of the command line.
/// In `adl run`, also about a single letter, which elsewhere may be for a shell.
pub(crate) fn hint(error: &clap::Error, is_run: bool) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let name = context(ContextKind::InvalidArg)?;
            let name = name.split(['=', ' ']).next().unwrap_or(name);
            let instead = find(OPTIONS, name).filter(|_| is_run || name.len() > 2)?;
            Some(format!("`{name}` is docker's, and adl has none: {instead}"))
        }
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand)?;
            let instead = find(COMMANDS, name)?;
            Some(format!("`{name}` is docker's, and adl has none: {instead}"))
        }
        ErrorKind::InvalidValue
            if context(ContextKind::InvalidArg)?.starts_with("--security-opt ") =>
        {
            let value = context(ContextKind::InvalidValue)?;
            let kind = value.split(['=', ':']).next().unwrap_or(value);
            let instead = SECURITY_OPTIONS.iter().find(|(name, _)| *name == kind)?.1;
            Some(format!("--security-opt: there is no {value:?}: {instead}"))
        }
        // One that is like those that there are is told by clap.
        ErrorKind::InvalidValue
            if context(ContextKind::InvalidArg)?.starts_with("--network ")
                && error.get(ContextKind::SuggestedValue).is_none() =>
        {
            let value = context(ContextKind::InvalidValue)?;
            Some(format!(
                "--network: there is no {value:?}: `none` is a loopback device only, `host` is \
                 this machine's network, `ns:PATH` is a network namespace"
            ))
        }
        _ => None,
    }
}

fn find(table: &[(&[&str], &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(names, _)| names.contains(&name)).map(|(_, instead)| *instead)
}
