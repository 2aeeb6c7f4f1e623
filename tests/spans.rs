//! Spans tell what the library does, how it ends, and nothing that may be a secret.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use ::tracing::field::{Field, Visit};
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::{Event, Metadata, Subscriber};
use adl_runtime::{Config, EndReason, Image, Images, Pool, PullOptions, Sandbox, WriteOptions};

use crate::harness::{Home, Need, needs, within};
use crate::image_fixtures::{BUSYBOX, REGISTRY, Registry, SKOPEO, UMOCI};

/// How long something may take that a thread does beside.
const SOON: Duration = Duration::from_secs(20);

/// A span, as it was seen.
#[derive(Debug, Clone, Default)]
struct Seen {
    name: &'static str,
    target: String,
    level: String,
    parent: Option<usize>,
    fields: BTreeMap<&'static str, String>,
    /// How many handles on it there are.
    handles: usize,
}

/// All of this process, by their ids, less one.
static ALL: Mutex<Vec<Seen>> = Mutex::new(Vec::new());

thread_local! {
    static ENTERED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

struct Collects;

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

fn place(id: &Id) -> usize {
    usize::try_from(id.into_u64()).unwrap() - 1
}

impl Subscriber for Collects {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let metadata = span.metadata();
        let mut seen = Seen {
            name: metadata.name(),
            target: metadata.target().to_owned(),
            level: metadata.level().to_string(),
            parent: ENTERED.with_borrow(|entered| entered.last().copied()),
            handles: 1,
            ..Seen::default()
        };
        span.record(&mut Fields(&mut seen.fields));
        let mut all = ALL.lock().unwrap();
        all.push(seen);
        Id::from_u64(all.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut ALL.lock().unwrap()[place(span)].fields));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(place(span)));
    }

    fn exit(&self, span: &Id) {
        let left = ENTERED.with_borrow_mut(Vec::pop);
        assert_eq!(left, Some(place(span)), "not the innermost");
    }

    fn clone_span(&self, span: &Id) -> Id {
        ALL.lock().unwrap()[place(span)].handles += 1;
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        let seen = &mut ALL.lock().unwrap()[place(&span)];
        seen.handles -= 1;
        seen.handles == 0
    }
}

/// Begins to collect; from which span on those of this test are.
fn collect() -> usize {
    static BEGUN: OnceLock<()> = OnceLock::new();
    BEGUN.get_or_init(|| ::tracing::subscriber::set_global_default(Collects).unwrap());
    ALL.lock().unwrap().len()
}

/// Those of a name, with what they say of this sandbox, if they name one.
fn named(from: usize, name: &str) -> Vec<Seen> {
    let all = ALL.lock().unwrap();
    all[from..].iter().filter(|seen| seen.name == name).cloned().collect()
}

/// The last of a name.
#[track_caller]
fn last(from: usize, name: &str) -> Seen {
    let found = named(from, name).pop();
    let found = found.unwrap_or_else(|| panic!("no span {name:?}"));
    assert_eq!((found.target.as_str(), found.handles), ("adl", 0), "{found:?}");
    found
}

/// Whether a span has just these fields.
#[track_caller]
fn says(seen: &Seen, fields: &[(&'static str, &str)]) {
    let expected: BTreeMap<_, _> =
        fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    assert_eq!(seen.fields, expected, "{}", seen.name);
}

/// The names of those that a span is in, the innermost first.
fn around(seen: &Seen) -> Vec<&'static str> {
    let all = ALL.lock().unwrap();
    let mut names = Vec::new();
    let mut parent = seen.parent;
    while let Some(place) = parent {
        names.push(all[place].name);
        parent = all[place].parent;
    }
    names
}

#[test]
fn each_step_of_a_life_has_its_span() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let from = collect();
    let config = Config { name: Some("one".to_owned()), ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let pid = sandbox.init_pid().to_string();
    let create = last(from, "create");
    says(&create, &[("sandbox", "one"), ("init_pid", &pid)]);
    assert_eq!(create.level, "INFO");
    for name in ["open_root", "clone", "send_setup", "make_directory", "set_up"] {
        let step = last(from, name);
        says(&step, &[]);
        assert_eq!((around(&step), step.level.as_str()), (vec!["create"], "DEBUG"), "{name}");
    }
    assert_eq!(around(&last(from, "wait_ready")), ["set_up", "create"]);

    sandbox.reset().unwrap();
    says(&last(from, "reset"), &[("sandbox", "one"), ("spare", "false")]);
    assert_eq!(around(&last(from, "clone")), ["reset"]);

    let snapshot = sandbox.snapshot().unwrap();
    says(&last(from, "snapshot"), &[("sandbox", "one"), ("snapshot", snapshot.name())]);

    sandbox.delete().unwrap();
    says(&last(from, "delete"), &[("sandbox", "one")]);
    drop((sandbox, snapshot));
    adl_runtime::finish_removals();
    let removals = named(from, "remove");
    let directories = removals.iter().filter(|seen| seen.fields.contains_key("directory"));
    assert!(directories.count() >= 2, "{removals:?}");
    assert!(removals.iter().all(|seen| seen.handles == 0), "{removals:?}");
    assert_eq!(named(from, "delete").len(), 1, "a second time");
}

#[test]
fn the_cgroups_and_the_spare_have_theirs() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let from = collect();
    let limits = adl_runtime::Limits { pids: Some(64), ..Default::default() };
    let name = Some("two".to_owned());
    let config = Config { name, limits, spare: true, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    assert_eq!(around(&last(from, "find_cgroups")), ["create"]);
    assert!(within(SOON, || sandbox.has_spare()));
    // The first, since a spare makes its own.
    let make = named(from, "make_cgroups").remove(0);
    assert_eq!(around(&make), ["set_up", "create"]);
    says(&last(from, "make_spare"), &[("sandbox", "two")]);
    sandbox.reset().unwrap();
    says(&last(from, "reset"), &[("sandbox", "two"), ("spare", "true")]);
}

#[test]
fn jobs_say_how_they_have_ended_and_file_calls_what_they_are() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = Sandbox::create(Config { name: Some("three".to_owned()), ..home.config() });
    let sandbox = sandbox.unwrap();
    let from = collect();
    let of = |program| [("sandbox", "three"), ("program", program)];
    let ended = |program, fields: &[(&'static str, &str)]| {
        let mut job = last(from, "job");
        job.fields.remove("pid");
        says(&job, &[&of(program)[..], fields].concat());
    };
    sandbox.shell("exit 7").output().unwrap();
    ended("/bin/bash", &[("reason", "Exited"), ("code", "7")]);

    sandbox.command("sleep").arg("60").timeout(Duration::from_millis(20)).status().unwrap();
    ended("sleep", &[("reason", "TimedOut"), ("signal", "9")]);

    let output = sandbox.shell("printf 12345").output_limit(3).output().unwrap();
    assert_eq!(output.status.reason(), EndReason::OutputLimit);
    let mut job = last(from, "job");
    // It may have ended by itself before it was killed.
    for key in ["pid", "code", "signal"] {
        job.fields.remove(key);
    }
    says(&job, &[&of("/bin/bash")[..], &[("reason", "OutputLimit")]].concat());

    // It ends with its end, and not when its last handle is dropped.
    let mut child = sandbox.command("sleep").arg("60").spawn().unwrap();
    assert_eq!(named(from, "job").pop().unwrap().handles, 1);
    assert_eq!(named(from, "job").pop().unwrap().fields["pid"], child.id().to_string());
    child.handle().kill().unwrap();
    child.wait().unwrap();
    ended("sleep", &[("reason", "Signaled"), ("signal", "9")]);
    drop(child);

    let job = sandbox.command("true").background().unwrap();
    job.wait().unwrap();
    ended("true", &[("reason", "Exited"), ("code", "0")]);

    sandbox.command("/no/such").spawn().unwrap_err();
    ended("/no/such", &[("error", "Inside"), ("at", "Exec"), ("errno", "2")]);
    sandbox.command("/no/such").output().unwrap_err();
    ended("/no/such", &[("error", "Inside"), ("at", "Exec"), ("errno", "2")]);
    sandbox.command("true").current_dir("/no").output().unwrap_err();
    ended("true", &[("error", "Inside"), ("at", "Directory"), ("errno", "2")]);
    sandbox.command("true").umask(0o7777).output().unwrap_err();
    ended("true", &[("error", "Invalid"), ("at", "umask")]);

    // Of no one: it ends with its handle.
    drop(sandbox.command("sleep").arg("60").spawn().unwrap());
    ended("sleep", &[]);

    let files = sandbox.files();
    let file = |operation, path| [("sandbox", "three"), ("operation", operation), ("path", path)];
    files.write_file("/tmp/a", "b").unwrap();
    says(&last(from, "file"), &file("write", "/tmp/a"));
    files.read_file("/tmp/a").unwrap();
    says(&last(from, "file"), &file("read", "/tmp/a"));
    files.read_file("/tmp/no").unwrap_err();
    let failed = [("error", "Inside"), ("at", "File"), ("errno", "2")];
    says(&last(from, "file"), &[&file("read", "/tmp/no")[..], &failed].concat());
    files.read_file("/dev/null").unwrap_err();
    let kind = last(from, "file");
    assert_eq!((&*kind.fields["error"], &*kind.fields["at"]), ("Inside", "Kind"));
    let writer = files.open_write("/tmp/c", WriteOptions::new()).unwrap();
    assert_eq!(named(from, "file").pop().unwrap().handles, 1);
    writer.finish().unwrap();
    says(&last(from, "file"), &file("write", "/tmp/c"));

    sandbox.delete().unwrap();
    sandbox.command("true").output().unwrap_err();
    assert_eq!(named(from, "delete").len(), 1);
}

#[test]
fn what_fails_says_so_and_its_spans_end() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let from = collect();
    let image = Image::directory(home.path("absent"));
    Sandbox::create(Config { image, ..home.config() }).unwrap_err();
    let failed = [("error", "Host"), ("at", "open"), ("errno", "2")];
    let create = last(from, "create");
    assert_eq!(create.fields["errno"], "2", "{create:?}");
    assert_eq!(last(from, "open_root").fields, create.fields);
    assert_eq!(create.fields.len(), failed.len());
    assert!(named(from, "clone").is_empty());

    // None is made but that which is waited for: another would be told of the pool's end.
    let pool = Pool::builder(home.config())
        .prefetch(0)
        .prepare(|_| Err("a text of the caller's with hunter2 in it".into()))
        .build()
        .unwrap();
    pool.acquire(SOON).map(drop).unwrap_err();
    pool.close().unwrap();
    for name in ["acquire", "refill", "prepare"] {
        let fields = last(from, name).fields;
        assert_eq!((&*fields["error"], &*fields["at"]), ("Inside", "prepare"), "{name}");
    }
}

#[test]
fn a_pool_tells_of_its_sandboxes() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let from = collect();
    // None is made but that which is waited for.
    let pool = Pool::builder(home.config()).prefetch(0).prepare(|_| Ok(())).build().unwrap();
    let sandbox = pool.acquire(SOON).unwrap();
    says(&last(from, "acquire"), &[("sandbox", sandbox.name())]);
    let refill = named(from, "refill").remove(0);
    assert_eq!(refill.fields["sandbox"], sandbox.name());
    assert_eq!(around(&named(from, "create")[0]), ["refill"]);
    assert_eq!(around(&named(from, "prepare")[0]), ["refill"]);
    drop(sandbox);
    pool.close().unwrap();
    assert!(named(from, "delete").iter().all(|seen| seen.handles == 0));
}

#[test]
fn a_pull_names_its_image() {
    if !needs(&[UMOCI, SKOPEO, REGISTRY, BUSYBOX]) {
        return;
    }
    let home = Home::new();
    let (registry, _, name) = Registry::with_one(&home, &[]);
    let from = collect();
    let images = Images::open(Some(&home.state())).unwrap();
    let options = PullOptions { insecure: true, ..PullOptions::default() };
    images.pull(&name, &options).unwrap();
    says(&last(from, "pull"), &[("image", &format!("{name}:latest"))]);
    let gone = format!("{name}-gone:latest");
    images.pull(&gone, &options).unwrap_err();
    says(&last(from, "pull"), &[("image", &gone), ("error", "Host"), ("at", "skopeo")]);
    drop(registry);
}

#[test]
fn nothing_secret_is_in_a_span() {
    if !needs(&[]) {
        return;
    }
    const SECRET: &str = "hunter2";
    let home = Home::new();
    let from = collect();
    let mut config = home.config();
    config.defaults.env.push(("TOKEN".into(), SECRET.into()));
    let sandbox = Sandbox::create(config).unwrap();
    let files = sandbox.files();
    files.write_file("/tmp/a", SECRET).unwrap();
    assert_eq!(files.read_file("/tmp/a").unwrap(), SECRET.as_bytes());
    let mut command = sandbox.command("/bin/echo");
    command.arg(SECRET).env("PASSWORD", SECRET).input(SECRET);
    assert!(command.output().unwrap().stdout.starts_with(SECRET.as_bytes()));
    sandbox.shell(format!("echo {SECRET}; exit 1")).output().unwrap();
    // What is wrong with it is told to the caller alone.
    sandbox.command("true").env(format!("{SECRET}="), SECRET).output().unwrap_err();
    sandbox.command("true").arg(format!("{SECRET}\0")).output().unwrap_err();
    sandbox.command("true").user(SECRET).output().unwrap_err();
    sandbox.delete().unwrap();
    let all = format!("{:?}", &ALL.lock().unwrap()[from..]);
    assert!(all.contains("/bin/echo") && all.contains("\"write\""), "{all}");
    assert!(!all.contains(SECRET), "{all}");
}
