//! Whatever a system call says, each operation ends with a result or a typed error, and leaves
//! nothing.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use adl_runtime::{Access, Config, EndReason, Error, ErrorKind, Limits, Mount, Sandbox};
use nix::errno::Errno;

use crate::census::Census;
use crate::harness::{Home, Need, needs, shell, succeeds, within};
use crate::helper::{self, Helper, say};

/// Names what the helper is to do: see [`Plan`].
pub(crate) const PLAN: &str = "ADL_TEST_PLAN";

/// Compiles the program that has system calls fail.
pub(crate) fn compile(directory: &Path) -> PathBuf {
    const BUILD: &str = r##"cd "$1" &&
        printf '#include <sys/syscall.h>\n' | gcc -E -dM - |
        sed -n 's/#define __NR_\([a-z0-9_]*\) \([0-9]*\)$/[\2] = "\1",/p' > names.h &&
        gcc -O1 -I. -o inject "$2""##;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("inject.c");
    succeeds(Command::new("sh").args(["-c", BUILD, "sh"]).arg(directory).arg(source));
    directory.join("inject")
}

/// What is done while a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Job,
    Kill,
    Files,
    Reset,
    Snapshot,
    Delete,
}

pub(crate) const OPERATIONS: [(&str, Operation); 7] = [
    ("create", Operation::Create),
    ("job", Operation::Job),
    ("kill", Operation::Kill),
    ("files", Operation::Files),
    ("reset", Operation::Reset),
    ("snapshot", Operation::Snapshot),
    ("delete", Operation::Delete),
];

/// Who calls: see `inject.c`.
pub(crate) const ROLES: [&str; 5] = ["caller", "beside", "launch", "init", "child"];

/// What a helper is to try.
#[derive(Debug)]
struct Plan {
    operations: Vec<Operation>,
    roles: Vec<String>,
    /// Its name, or `any`.
    call: String,
    /// The first one, how many after it the next one is, and the one after the last.
    from: usize,
    step: usize,
    to: usize,
    /// Whether each error comes at each call, or one of them, in turn.
    is_each: bool,
    errors: Vec<Errno>,
}

impl Plan {
    /// `OPERATION,… ROLE,… CALL FROM STEP TO each|turn ERRNO…`
    fn read(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut next = || words.next().unwrap();
        let operation = |name: &str| OPERATIONS.iter().find(|(other, _)| *other == name).unwrap().1;
        Self {
            operations: next().split(',').map(operation).collect(),
            roles: next().split(',').map(str::to_owned).collect(),
            call: next().to_owned(),
            from: next().parse().unwrap(),
            step: next().parse().unwrap(),
            to: next().parse().unwrap(),
            is_each: next() == "each",
            errors: words.map(|errno| Errno::from_raw(errno.parse().unwrap())).collect(),
        }
    }

    /// Those of a call.
    fn errors(&self, number: usize) -> &[Errno] {
        if self.is_each {
            return &self.errors;
        }
        let turn = (number - self.from) / self.step % self.errors.len();
        &self.errors[turn..=turn]
    }
}

/// Asks the program that this one runs under.
fn ask(question: &str) -> String {
    let answer = fs::read_link(format!("/adl-inject/{question}")).unwrap();
    answer.to_str().unwrap().to_owned()
}

pub(crate) struct Subject {
    pub(crate) state: PathBuf,
    pub(crate) sandbox: Option<Sandbox>,
    /// What the names of this process's cgroups begin with, where it can have some.
    pub(crate) cgroups: String,
    /// What limits a sandbox when nothing has failed.
    limits: Vec<String>,
}

impl Subject {
    pub(crate) fn of(state: &Path) -> Self {
        let volume = state.parent().unwrap().join("volume");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("file"), "of the host").unwrap();
        let (sandbox, cgroups, limits) = Default::default();
        let mut this = Self { state: state.to_owned(), sandbox, cgroups, limits };
        this.sandbox = Some(Sandbox::create(this.config()).unwrap());
        let cgroups = crate::cgroups::cgroups_of(this.sandbox.as_ref().unwrap());
        let name = cgroups[0].file_name().unwrap().to_str().unwrap();
        this.cgroups = format!("{}-", name.rsplit_once('-').unwrap().0);
        this.limits = limits_in(&cgroups);
        assert!(this.limits.len() >= 2, "{:?}", this.limits);
        this
    }

    pub(crate) fn config(&self) -> Config {
        let volume = self.state.parent().unwrap().join("volume");
        Config {
            state_directory: Some(self.state.clone()),
            limits: Limits { memory: Some(256 << 20), pids: Some(64), ..Limits::default() },
            mounts: vec![
                Mount::volume(&volume, "/volume", Access::ReadOnly),
                Mount::volume(&volume, "/copy", Access::CopyOnWrite),
                Mount::tmpfs("/scratch", 1 << 20),
            ],
            ..Config::default()
        }
    }

    /// Where files are copied to.
    fn out(&self) -> PathBuf {
        self.state.parent().unwrap().join("out")
    }

    /// Whether what is said to be done is done, where init has not failed since.
    fn check(&self, operation: Operation, is_inits: bool) {
        match operation {
            Operation::Files => {
                assert_eq!(fs::read(self.out().join("file")).unwrap(), b"of the host");
            }
            Operation::Create | Operation::Reset if !is_inits => {
                let cgroups = crate::cgroups::cgroups_of(self.sandbox.as_ref().unwrap());
                assert_eq!(limits_in(&cgroups), self.limits);
            }
            _ => {}
        }
    }

    /// What there must be before the operation.
    pub(crate) fn prepare(&mut self, operation: Operation) {
        if operation == Operation::Create {
            self.sandbox = None;
            return;
        }
        if self.sandbox.as_ref().is_none_or(|sandbox| !sandbox.is_alive()) {
            let sandbox = Sandbox::create(self.config()).unwrap();
            // Init waits for requests then, and has no more to do of its own.
            shell(&sandbox, "true");
            self.sandbox = Some(sandbox);
        }
        let _ = fs::remove_dir_all(self.out());
        if operation == Operation::Snapshot {
            shell(self.sandbox.as_ref().unwrap(), "echo kept > /root/kept");
        }
    }

    /// What came of it: whether all is as it should be then.
    pub(crate) fn run(&mut self, operation: Operation) -> adl_runtime::Result<()> {
        let sandbox = || self.sandbox.as_ref().unwrap();
        match operation {
            Operation::Create => self.sandbox = Some(Sandbox::create(self.config())?),
            Operation::Job => {
                let mut command = sandbox().command("sh");
                command.args(["-c", "cat; echo $1", "", "said"]).input(*b"fed ");
                let output = command.output()?;
                if output.status.reason() == EndReason::SandboxDied {
                    return Err(Error::SandboxDied);
                }
                assert!(output.status.success(), "{output:?}");
                assert_eq!(output.stdout, b"fed said\n", "{output:?}");
            }
            Operation::Kill => {
                // With pipes, a session of its own and a child, as a server has.
                let mut command = sandbox().shell("setsid sleep 1000 & exec sleep 1000");
                let mut child = command.spawn()?;
                child.handle().kill()?;
                assert!(!child.wait()?.success());
            }
            Operation::Files => {
                let (files, host) = (sandbox().files(), self.state.parent().unwrap());
                let out = self.out();
                files.write_file("/root/file", b"content")?;
                assert_eq!(files.read_file("/root/file")?, b"content");
                files.copy_in(host.join("volume"), "/root/in")?;
                files.copy_out("/root/in", &out)?;
                files.remove_dir_all("/root/in")?;
            }
            Operation::Reset => {
                sandbox().reset()?;
            }
            Operation::Snapshot => drop(sandbox().snapshot()?),
            Operation::Delete => {
                sandbox().delete()?;
                adl_runtime::finish_removals();
            }
        }
        Ok(())
    }

    /// What must be so after it, whatever came of it: the sandbox is one, or is said to be none,
    /// and then a reset makes one of it.
    fn recover(&mut self) -> Result<(), String> {
        let Some(sandbox) = &self.sandbox else { return Ok(()) };
        let answers = || {
            let output = sandbox.shell("echo answers; ls /root").output();
            let output = match output {
                Ok(output) => output,
                Err(Error::SandboxDied) => return Ok(()),
                Err(error) => return Err(format!("no answer: {error}")),
            };
            match output.stdout.starts_with(b"answers\n") {
                true => Ok(()),
                // Init has ended late, and the reset is for that.
                false if output.status.reason() == EndReason::SandboxDied => Ok(()),
                false => Err(format!("another answer: {output:?}")),
            }
        };
        if sandbox.is_alive() {
            answers()?;
        }
        match sandbox.reset() {
            Ok(()) => answers(),
            Err(Error::Deleted) => Ok(()),
            Err(error) => Err(format!("no reset: {error}")),
        }
    }
}

/// What limits memory and processes there.
fn limits_in(cgroups: &[PathBuf]) -> Vec<String> {
    const LIMITS: [&str; 6] = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.kmem.tcp.limit_in_bytes",
        "memory.max",
        "memory.swap.max",
        "pids.max",
    ];
    let paths = cgroups.iter().flat_map(|cgroup| LIMITS.map(|name| (name, cgroup.join(name))));
    let read = |(name, path)| Some(format!("{name}: {}", fs::read_to_string(path).ok()?.trim()));
    let mut found: Vec<_> = paths.filter_map(read).collect();
    found.sort();
    found.dedup();
    found
}

/// How long an operation may take whose call has failed: no wait of the library for init is longer.
const LONGEST: Duration = Duration::from_secs(25);

/// How often a call is tried that does not come.
const TRIES: usize = 12;

/// What has panicked in this process.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// For the helper: has system calls of operations fail, and tells what came of it. A line that
/// begins with `wrong` tells of what must not be.
pub(crate) fn fails(state: &Path) {
    let plan = Plan::read(&std::env::var(PLAN).unwrap());
    std::panic::set_hook(Box::new(|panic| PANICS.lock().unwrap().push(panic.to_string())));
    let mut subject = Subject::of(state);
    say(&subject.cgroups);
    // What is made once in a process; who is to be killed need not have it.
    let is_to_end = plan.errors == [Errno::from_raw(0)];
    for operation in [Operation::Job, Operation::Snapshot, Operation::Files, Operation::Reset] {
        if !is_to_end {
            subject.prepare(operation);
            subject.run(operation).unwrap();
        }
    }
    let mut trial = Trial { before: None, told: BTreeSet::new(), subject };
    trial.before = Some(trial.settle());
    for operation in &plan.operations {
        for role in &plan.roles {
            trial.fail_each(&plan, *operation, role);
        }
    }
    say("end");
}

struct Trial {
    subject: Subject,
    /// What there was before the first failure.
    before: Option<Census>,
    told: BTreeSet<String>,
}

impl Trial {
    /// What is there when all has ended and was collected.
    fn settle(&mut self) -> Census {
        self.subject.sandbox = None;
        adl_runtime::finish_removals();
        // What is in the way is told by what is left.
        let _ = adl_runtime::collect_garbage(Some(&self.subject.state));
        adl_runtime::finish_removals();
        Census::take(&self.subject.state, &self.subject.cgroups)
    }

    /// Has the calls of the plan fail, or one in the middle where there are less than its first.
    fn fail_each(&mut self, plan: &Plan, operation: Operation, role: &str) {
        let mut is_any_hit = false;
        for number in (plan.from..plan.to).step_by(plan.step) {
            for errno in plan.errors(number) {
                let mut tried = self.fail(operation, role, (&plan.call, number), *errno);
                // Other threads are not always as far, nor are children; who removes files is
                // now the caller, now a thread beside.
                for _ in 1..TRIES {
                    if tried.is_ok() {
                        break;
                    }
                    tried = self.fail(operation, role, (&plan.call, number), *errno);
                }
                is_any_hit |= tried.is_ok();
                let Err(count) = tried else { continue };
                // The end of this process is for who has started it to place elsewhere.
                if !is_any_hit && count > 0 && *errno != Errno::UnknownErrno {
                    let middle = count.div_ceil(2);
                    let _ = self.fail(operation, role, (&plan.call, middle), *errno);
                }
                say(format_args!("missed {count}"));
                return;
            }
        }
    }

    /// Has one call fail; if there are not so many, tells how many there are.
    fn fail(
        &mut self,
        operation: Operation,
        role: &str,
        (call, number): (&str, usize),
        errno: Errno,
    ) -> Result<(), usize> {
        self.subject.prepare(operation);
        ask(&format!("arm {role} {call} {number} {}", errno as i32));
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.subject.run(operation)));
        let took = begin.elapsed();
        let answer = ask("disarm");
        let Some(call) = answer.strip_prefix("hit ") else {
            result.expect("it panics although nothing fails").expect("nothing fails");
            return Err(answer.strip_prefix("missed ").unwrap().parse().unwrap());
        };
        let what = format!("{operation:?}, {role}'s call {number}, {call}: {errno:?}");
        let wrong = |why: String| say(format_args!("wrong: {what}: {why}"));
        let outcome = match result {
            Ok(Ok(())) => {
                let is_inits = matches!(role, "init" | "child");
                // Its panic is told below.
                let _ = catch_unwind(AssertUnwindSafe(|| self.subject.check(operation, is_inits)));
                "done".to_owned()
            }
            Ok(Err(error)) => {
                // That would be init's fault, and a reason not to trust what is inside.
                if error.kind() == ErrorKind::Violation && !matches!(role, "init" | "child") {
                    wrong(error.to_string());
                }
                // Later it may go well, whatever was asked for.
                let is_short = SHORT.contains(&errno) && matches!(role, "caller" | "launch");
                // The kernel's word for as many cgroups as there may be.
                let is_limit = call == "mkdir" && errno == Errno::EAGAIN;
                if is_short && !is_limit && error.kind() != ErrorKind::Temporary {
                    wrong(format!("{:?}, not temporary: {error}", error.kind()));
                }
                format!("{:?}: {error}", error.kind())
            }
            Err(_) => "a panic".to_owned(),
        };
        if took > LONGEST {
            wrong(format!("it took {took:?}"));
        }
        let outcome = outcome.replace(&*self.subject.state.to_string_lossy(), "STATE");
        if self.told.insert(format!("{operation:?} {role} {call} {errno:?} {outcome}")) {
            say(format_args!("{what}: {outcome} {took:?}"));
        }
        match catch_unwind(AssertUnwindSafe(|| self.subject.recover())) {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(why)) => wrong(format!("afterwards {why}")),
        }
        let mut now = self.settle();
        let before = self.before.take().unwrap();
        within(Duration::from_secs(3), || {
            if now != before {
                now = self.settle();
            }
            now == before
        });
        if now != before {
            let mut left = now.difference(&before);
            left.truncate(6);
            wrong(format!("{left:?}"));
        }
        self.before = Some(now);
        for panic in std::mem::take(&mut *PANICS.lock().unwrap()) {
            wrong(panic);
        }
        Ok(())
    }
}

/// Has calls fail, and makes sure that nothing is wrong. Returns what was told.
fn fail(plans: &[String], limit: Duration) -> Vec<String> {
    let mut told = Vec::new();
    if !needs(&[Need::Root, Need::Cgroups, Need::Program("gcc")]) {
        return told;
    }
    let home = Home::of_a_test_that_takes(limit);
    let inject = compile(&home.path(""));
    let mut wrong = Vec::new();
    let (mut roles, mut hit) = (BTreeSet::new(), BTreeSet::new());
    for plan in plans {
        roles.extend(Plan::read(plan).roles);
        let by = [inject.to_str().unwrap()];
        let mut command = helper::command_by(&by, "fails-inside-a-call", &home.state());
        command.env(PLAN, plan);
        let mut helper = Helper::start_as(command);
        let (mut count, mut last) = (0, String::new());
        while let Some(line) = helper.next() {
            println!("{line}");
            if let Some(role) =
                ROLES.iter().find(|role| line.contains(&format!(", {role}'s call ")))
            {
                count += 1;
                hit.insert((*role).to_owned());
            }
            wrong.extend(line.starts_with("wrong").then(|| line.clone()));
            told.push(line.clone());
            last = line;
        }
        helper.wait();
        if last != "end" {
            wrong.push(format!("{plan}: it ended after {last:?}"));
        }
        // The control: there were calls that failed.
        assert!(count > 0, "{plan}: nothing failed");
    }
    assert_eq!(hit, roles);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let collected = adl_runtime::collect_garbage(Some(&home.state()));
    assert!(collected.is_ok(), "{collected:?}");
    told
}

fn all_operations() -> String {
    OPERATIONS.map(|(name, _)| name).join(",")
}

fn numbers(errors: &[Errno]) -> String {
    errors.iter().map(|errno| (*errno as i32).to_string()).collect::<Vec<_>>().join(" ")
}

/// What says that the machine or the process is short of something, wherever it comes.
const SHORT: [Errno; 4] = [Errno::ENOMEM, Errno::EMFILE, Errno::EINTR, Errno::EAGAIN];

const ERRORS: [Errno; 6] =
    [Errno::ENOMEM, Errno::EMFILE, Errno::EINTR, Errno::EAGAIN, Errno::ENOSPC, Errno::EPERM];

#[test]
fn a_system_call_that_fails_is_told_and_leaves_nothing() {
    let all = all_operations();
    // What can't be seen of the host, by the last two, is an image to be made: that takes seconds.
    let short = numbers(&ERRORS[..4]);
    let host = format!("{all} caller,launch any 3 53 2000 turn {short}");
    let inside = format!("{all} init,child any 2 29 2000 turn {}", numbers(&ERRORS));
    fail(&[host, inside], Duration::from_secs(600));
}

/// What once was not told, or not undone.
const MENDED: [(&str, Errno); 16] = [
    // A host image without `/usr`, and one with what is private there.
    ("create caller statx 1 3 60 each", Errno::ENOMEM),
    // The end of the caller.
    ("create caller setresuid 1 1 9 each", Errno::ENOMEM),
    // "The init of the sandbox broke the protocol".
    ("create caller readlink 1 1 9 each", Errno::EINTR),
    // A cgroup that was left.
    ("snapshot caller fstatfs 1 2 60 each", Errno::EMFILE),
    // A file call that was told of when its time was up.
    ("files init wait4 1 2 20 each", Errno::EINTR),
    // A directory that stayed open.
    ("files caller newfstatat 1 1 20 each", Errno::ENOMEM),
    // "The init of the sandbox broke the protocol", here too.
    ("create caller readlink 1 1 9 each", Errno::ENOSPC),
    // And here: the descriptor that init had sent was taken twice.
    ("create caller recvfrom 1 1 9 each", Errno::EAGAIN),
    // The end of init: while it was set up, and when it had just said that it was.
    ("create init recvmsg 1 1 9 each", Errno::ENOMEM),
    ("create init epoll_ctl 1 1 9 each", Errno::ENOMEM),
    // The end of init: a request that it could not read.
    ("job init recvmsg 1 1 9 each", Errno::ENOMEM),
    // An init without a capability, which then failed at what was not to blame.
    ("create launch prctl 1 1 60 each", Errno::ENOMEM),
    // No limit for want of a cgroup to make others in, which there was.
    ("create caller faccessat2 1 1 9 each", Errno::ENOMEM),
    // A sandbox without its limit of memory and swap together, or of buffers of sockets.
    ("reset caller statx 1 1 99 each", Errno::ENOMEM),
    // What the kernel was said not to have, when it was interrupted.
    ("reset caller clone 1 1 9 each", Errno::EINTR),
    ("create launch prctl 1 1 9 each", Errno::EINTR),
];

#[test]
fn what_was_mended_once_stays_so() {
    let plan = |(plan, errno)| format!("{plan} {}", errno as i32);
    let told = fail(&MENDED.map(plan), Duration::from_secs(600));
    let died: Vec<_> = told.iter().filter(|line| line.contains(": Died: ")).collect();
    assert!(died.is_empty(), "{died:#?}");
}

#[test]
fn a_start_that_init_can_not_tell_of_is_not_waited_for() {
    let told = fail(&["kill init sendmsg 1 1 9 each 1 12".to_owned()], Duration::from_secs(600));
    let waited: Vec<_> = told.iter().filter(|line| line.contains(": waited ")).collect();
    assert!(waited.is_empty(), "{waited:#?}");
}

#[test]
#[ignore = "takes hours; ADL_TEST_PLAN has it do a part"]
fn each_system_call_that_fails_with_each_error_is_told_and_leaves_nothing() {
    let limit = Duration::from_secs(8 * 3600);
    if let Ok(plan) = std::env::var(PLAN) {
        fail(&[plan], limit);
        return;
    }
    let plan =
        |(name, _)| format!("{name} {} any 1 1 10000 each {}", ROLES.join(","), numbers(&ERRORS));
    fail(&OPERATIONS.map(plan), limit);
}
