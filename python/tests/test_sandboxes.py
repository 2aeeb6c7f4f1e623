"""Sandboxes: how they are made, their whole life, limits, snapshots."""

from __future__ import annotations

import gc
import io
import os
import select
import subprocess
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import SOON, missing, needs_root, python, within

import adl
from adl import EndReason, Image, Limits, Sandbox, Snapshot, Upper


def test_a_sandbox_ends_with_its_block(state: Path) -> None:
    with Sandbox(name="named", hostname="box") as sandbox:
        assert (sandbox.name, repr(sandbox)) == ("named", "<adl.Sandbox 'named'>")
        assert sandbox.run(["uname", "-n"]).stdout == b"box\n"
        assert sandbox.is_alive
        init = Path(f"/proc/{sandbox.init_pid}")
        assert init.exists()
        with pytest.raises(adl.NameInUseError) as told:
            Sandbox(name="named")
        assert told.value.name == "named"
    assert not sandbox.is_alive
    assert within(lambda: not init.exists())
    sandbox.delete()
    for call in (sandbox.reset, lambda: sandbox.run("true"), lambda: sandbox.read_file("/x")):
        with pytest.raises(adl.DeletedError, match="deleted"):
            call()


def test_one_that_is_dropped_is_gone(state: Path) -> None:
    sandbox = Sandbox()
    init = Path(f"/proc/{sandbox.init_pid}")
    del sandbox
    gc.collect()
    assert within(lambda: not init.exists())
    with Sandbox() as other:
        cycle: list[object] = [other]
        cycle.append(cycle)


def test_the_end_of_the_interpreter_ends_those_that_are_left(state: Path) -> None:
    script = """
import sys, adl
sandbox = adl.Sandbox(name="left")
sandbox.write_file("/file", b"x" * 100000)
job = sandbox.background("sleep 1000")
print(sandbox.init_pid)
sys.exit(0)
"""
    init = int(python(script))
    assert within(lambda: not Path(f"/proc/{init}").exists())
    assert not (state / "sandboxes" / "left").exists()


def test_options_say_what_it_is(state: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("data\n")
    mounts: list[adl.Mount] = [
        adl.Volume(tmp_path, "/volume"),
        adl.Volume(adl.HostPath(tmp_path, "data"), "/data", "rw"),
        adl.Tmpfs("/scratch", 1 << 20),
    ]
    with Sandbox(
        mounts=mounts,
        env={"STAGE": "test"},
        cwd="/tmp",
        umask=0o77,
        rlimits={"nofile": 99},
        timeout=60,
        upper=Upper.memory(8 << 20),
        capabilities=["-mknod", "+sys_ptrace"],
        sysctls={"kernel.msgmax": 4096},
        shm_size=1 << 20,
        network="none",
    ) as sandbox:
        script = "echo $STAGE $PWD $(umask) $(ulimit -n) $(cat /volume/data /data)"
        assert sandbox.run(script).stdout == b"test /tmp 0077 99 data data\n"
        assert not sandbox.run("echo x > /volume/data").success
        assert sandbox.run("echo more > /data").success
        assert sandbox.run("stat -f -c %T /scratch").stdout == b"tmpfs\n"
        assert sandbox.run("cat /proc/sys/kernel/msgmax").stdout == b"4096\n"
        bounding = sandbox.run("grep CapBnd /proc/self/status").stdout
        assert int(bounding.split()[1], 16) >> 19 & 1 == 1
        assert int(bounding.split()[1], 16) >> 27 & 1 == 0
        with pytest.raises(adl.UnsupportedError) as told:
            sandbox.snapshot()
        assert told.value.fix
    assert (tmp_path / "data").read_text() == "more\n"
    with Sandbox(read_only=True) as sandbox:
        assert not sandbox.run("touch /x").success


def test_a_network_namespace_is_joined(state: Path) -> None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = "readlink /proc/self/ns/net; read line"
    command = ["unshare", *user, "--net", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        network = holder.stdout.readline()
        with Sandbox(network=f"ns:/proc/{holder.pid}/ns/net") as sandbox:
            assert sandbox.run("readlink /proc/self/ns/net").stdout == network
        with Sandbox() as sandbox:
            assert sandbox.run("readlink /proc/self/ns/net").stdout != network


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"no_such": 1}, TypeError, "no option .*no_such"),
        ({"image": 5}, TypeError, "image: expected Image"),
        ({"image": "/no/such/directory"}, FileNotFoundError, "/no/such/directory"),
        ({"image": "snapshot:missing"}, adl.NoSnapshotError, "missing"),
        ({"network": "bridge"}, ValueError, 'network: "bridge" is not .*"host", "ns:PATH"'),
        ({"network": "ns:/no/such"}, FileNotFoundError, "/no/such"),
        ({"network": "ns:/etc/passwd"}, adl.InvalidError, "no namespace"),
        ({"name": "a/b"}, adl.InvalidError, "name"),
        ({"name": 5}, TypeError, "name"),
        ({"limits": 5}, TypeError, "limits: expected Limits, not int"),
        ({"limits": Limits(cpus=-1)}, ValueError, "cpus"),
        ({"limits": Limits(memory=0)}, adl.InvalidError, "memory"),
        ({"upper": "memory"}, TypeError, "upper: expected Upper, not str"),
        ({"upper": Upper("memory")}, ValueError, "needs a size"),
        ({"mounts": ["/a:/b"]}, TypeError, "mounts: expected Volume, Tmpfs or Device"),
        ({"mounts": [adl.Volume("/tmp", "/x", cast(Any, "rx"))]}, ValueError, "access"),
        ({"mounts": [adl.Volume("/missing", "/x")]}, FileNotFoundError, "/missing"),
        ({"capabilities": "chown"}, TypeError, "capabilities"),
        ({"capabilities": ["fly"]}, adl.InvalidError, "fly"),
        ({"sysctls": {"vm.swappiness": 1}}, adl.InvalidError, "vm.swappiness"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"shm_size": -1}, ValueError, "shm_size"),
        ({"state_directory": 5}, TypeError, "state_directory"),
        ({"hostname": "a b"}, adl.InvalidError, "name"),
        ({"cwd": "a\0"}, adl.InvalidError, "directory"),
    ],
)
def test_what_makes_no_sense_is_said(
    state: Path, options: dict[str, object], error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        Sandbox(**options)  # type: ignore[arg-type]


def test_an_image_is_a_directory_or_an_archive(state: Path, tmp_path: Path) -> None:
    with Sandbox() as host:
        tree = tmp_path / "tree"
        tree.mkdir()
        host.copy_out("/etc", tree / "etc")
        with (tmp_path / "tree.tar").open("wb") as archive:
            host.files.export_tar("/etc", archive)
    assert Image.host() == Image("host")
    for image in (tree, Image.directory(tree), tmp_path / "tree.tar"):
        with Sandbox(image=image) as sandbox:
            assert sandbox.files.exists("passwd" if str(image).endswith("tar") else "/etc/passwd")


def test_a_deleted_image_is_an_error(state: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with Sandbox(image=tree) as sandbox:
        tree.rmdir()
        with pytest.raises(adl.Error):
            Sandbox(image=tree)
        with pytest.raises(FileNotFoundError):
            sandbox.run(["true"])


@needs_root
def test_a_blank_is_made_before_it_is_asked_for_and_then_used(state: Path) -> None:
    adl.keep_blanks(1)
    try:
        Sandbox().delete()
        assert within(lambda: adl.blanks_ready() == 1)
        before = children()
        with Sandbox(name="other") as sandbox:
            assert str(sandbox.init_pid) in before
            assert sandbox.run(["uname", "-n"]).stdout == b"other\n"
    finally:
        adl.keep_blanks(0)
    assert adl.blanks_ready() == 0
    assert not set(children()) & set(before), "they have ended"
    with pytest.raises(TypeError, match="most"):
        adl.keep_blanks(cast(Any, "1"))
    with pytest.raises(ValueError, match="most"):
        adl.keep_blanks(-1)


def children() -> list[str]:
    """The processes whose parent is this one."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [pid for task in tasks for pid in task.read_text().split()]


def test_a_reset_makes_it_as_new(image: str) -> None:
    with Sandbox(image=image) as sandbox:
        sandbox.write_file("/left", "x")
        child = sandbox.popen(["sleep", "1000"])
        name = sandbox.name
        sandbox.reset()
        assert child.wait(SOON) == -9
        assert child.status is not None
        assert child.status.reason is EndReason.SANDBOX_DIED
        assert sandbox.name == name
        assert not sandbox.files.exists("/left")
        assert sandbox.run("echo x").success


def test_one_that_died_says_so_and_is_alive_after_a_reset(state: Path) -> None:
    with Sandbox() as sandbox:
        pidfd = sandbox.pidfd()
        os.kill(sandbox.init_pid, 9)
        assert select.select([pidfd], [], [], SOON)[0] == [pidfd]
        os.close(pidfd)
        with pytest.raises(adl.SandboxDiedError) as told:
            sandbox.files.listdir("/")
        assert told.value.kind == "died"
        assert not sandbox.is_alive
        sandbox.reset()
        assert sandbox.run("true").success


def test_a_snapshot_is_what_others_begin_with(state: Path, tmp_path: Path) -> None:
    with Sandbox(env={"KEPT": "1"}) as sandbox:
        sandbox.write_file("/kept", b"kept")
        with sandbox.popen("sleep 1000") as child:
            with pytest.raises(adl.BusyError, match="processes"):
                sandbox.snapshot("named")
            named = sandbox.snapshot("named", running="end")
            assert child.wait() == -9
        assert Snapshot.names() == ["named"]
        assert (named.name, named.lies_on) == ("named", None)
        assert named.made_at is not None
        assert [(change.path, change.kind) for change in named.changes()] == [("/kept", "added")]
        assert sandbox.read_file("/kept") == b"kept"
        with pytest.raises(adl.NameInUseError):
            sandbox.snapshot("named")

        with named.fork() as fork, Sandbox(image="snapshot:named") as plain:
            assert fork.run("cat /kept; echo $KEPT").stdout == b"kept1\n"
            assert plain.run("cat /kept; echo $KEPT").stdout == b"kept\n"
            with named.fork(env={"KEPT": "2"}, hostname="other") as other:
                assert other.run("echo $KEPT; uname -n").stdout == b"2\nother\n"
            with pytest.raises(adl.BusyError):
                Snapshot.remove("named")

        archive = io.BytesIO()
        named.export(archive)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            assert tar.getnames()[-1].removeprefix("./") == "kept"

        sandbox.write_file("/more", b"more")
        with sandbox.fork() as fork:
            assert sorted(fork.files.listdir("/")) == sorted(sandbox.files.listdir("/"))
        assert [change.path for change in sandbox.changes()] == ["/kept", "/more"]
        sandbox.reset()
        assert not sandbox.files.exists("/kept")
    named = Snapshot.open("named")
    named.delete()
    assert Snapshot.names() == []
    with pytest.raises(LookupError):
        Snapshot.open("named")
    with pytest.raises(adl.NoSnapshotError):
        named.changes()


def test_a_name_is_given_to_a_newer_snapshot(state: Path) -> None:
    with Sandbox() as sandbox:
        first = sandbox.snapshot("same")
        sandbox.write_file("/new", "new")
        with first.fork() as fork:
            fork.write_file("/new", "of the fork")
            newer = fork.snapshot()
        with pytest.raises(adl.BusyError, match="in use"):
            first.delete()
        assert first.changes() == []
        sandbox.reset()
        del first
        with pytest.raises(adl.InvalidError):
            newer.replace("a/b")
        same = newer.replace("same")
        with pytest.raises(adl.NameInUseError, match="same"):
            same.replace("other")
        with same.fork() as fork:
            assert fork.read_file("/new") == b"of the fork"
            with pytest.raises(adl.BusyError):
                same.delete()
    same.delete()


def test_a_tree_of_forks_shares_what_was_done_before(state: Path) -> None:
    with Sandbox() as root:
        root.write_file("/path", "root")
        left, right = root.fork(), root.fork()
        with left, right:
            left.files.write_text("/path", " left", how="append")
            leaf = left.fork()
            with leaf:
                assert leaf.read_file("/path") == b"root left"
                assert right.read_file("/path") == b"root"


def test_what_was_used_is_counted_and_limits_change(limited: Sandbox) -> None:
    assert limited.run("seq 100000 > /dev/null").success
    used = limited.stats()
    assert used.cpu_time is not None
    assert used.cpu_time > 0
    assert used.memory is None or used.memory > 0
    try:
        limited.set_limits(Limits(pids=3))
    except adl.UnsupportedError as error:
        missing("cgroups", str(error))
    # A shell that does not try again.
    limited.run(["sh", "-c", "for i in 1 2 3 4 5; do sleep 1000 & done; wait"], timeout=SOON)
    assert limited.stats().pids_refused != 0
    limited.kill_all()
    limited.set_limits(Limits())
    assert limited.run("for i in 1 2 3 4 5; do sleep 0.01 & done; wait").success
    job = limited.background("sleep 1000")
    assert job.stats().cpu_time is not None
    limited.freeze()
    with pytest.raises(adl.BusyError):
        limited.run("true", timeout=1)
    limited.thaw()
    assert limited.run("true").success


@needs_root
def test_a_command_that_uses_up_the_memory_is_told_of(state: Path) -> None:
    try:
        sandbox = Sandbox(limits=Limits(memory=32 << 20))
    except adl.UnsupportedError as error:
        missing("cgroups", str(error))
    with sandbox:
        result = sandbox.run("x=$(head -c 200M /dev/zero | tr '\\0' x); echo $x | wc -c")
        assert result.reason is EndReason.OUT_OF_MEMORY
        assert sandbox.run("true").success


def test_without_cgroups_what_counts_is_unsupported(sandbox: Sandbox) -> None:
    with pytest.raises(adl.UnsupportedError) as told:
        sandbox.stats()
    assert told.value.what
    assert told.value.kind == "unsupported"


def test_32_workers_have_sandboxes_of_their_own(state: Path) -> None:
    def work(number: int) -> bytes:
        with Sandbox() as sandbox:
            sandbox.write_file("/mine", str(number))
            sandbox.reset()
            assert not sandbox.files.exists("/mine")
            return sandbox.run(["echo", str(number)]).stdout

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(64))) == [b"%d\n" % number for number in range(64)]


def test_what_the_dead_have_left_is_collected(state: Path) -> None:
    script = """
import os, adl
sandbox = adl.Sandbox(name="killed")
print(sandbox.init_pid, flush=True)
os._exit(0)
"""
    init = int(python(script))
    assert within(lambda: not Path(f"/proc/{init}").exists())
    assert within(lambda: "killed" in adl.collect_garbage() or not left())
    adl.finish_removals()
    assert adl.pending_removals() == 0


def left() -> bool:
    return any(Path(os.environ["ADL_STATE_DIR"]).glob("sandboxes/killed*"))


def test_this_machine_is_examined(state: Path) -> None:
    checks = adl.examine()
    assert {check.verdict for check in checks} <= {"good", "limited"}
    assert "kernel" in [check.what for check in checks]


FORK = """
import gc, multiprocessing, os, sys, threading, time
import adl

def child(how):
    for call in (
        lambda: sandbox.run("true"),
        lambda: sandbox.read_file("/etc/passwd"),
        lambda: sandbox.reset(),
        lambda: sandbox.snapshot(),
        lambda: waiting.wait(5),
        lambda: job.wait(5),
    ):
        try:
            call()
        except adl.ForkedProcessError:
            pass
        else:
            os._exit(3)
    with adl.Sandbox() as own:
        assert own.run("echo own").stdout == b"own\\n"
    if how == "drop":
        globals().pop("sandbox"), globals().pop("waiting"), globals().pop("job")
        gc.collect()
    elif how == "exit":
        sys.exit(0)
    elif how == "_exit":
        os._exit(0)

sandbox = adl.Sandbox()
waiting = sandbox.popen(["sleep", "1000"])
job = sandbox.background("sleep 1000")
# Threads have whatever locks there are.
stop = threading.Event()
def busy():
    while not stop.is_set():
        sandbox.run("true")
threads = [threading.Thread(target=busy) for _ in range(4)]
[thread.start() for thread in threads]
context = multiprocessing.get_context("fork")
children = [context.Process(target=child, args=(how,)) for how in ("drop", "exit", "_exit") * 3]
for process in children:
    process.start()
for process in children:
    process.join(60)
    assert process.exitcode == 0, process.exitcode
pid = os.fork()
if pid == 0:
    child("exit")
assert os.waitpid(pid, 0)[1] == 0
stop.set()
[thread.join() for thread in threads]
assert waiting.poll() is None and job.poll() is None
assert sandbox.run("echo alive").stdout == b"alive\\n"
sandbox.delete()
print("done")
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_harms_nothing_by_exiting_or_dropping(state: Path) -> None:
    assert python(FORK) == "done\n"


def test_errors_come_through_pickle(state: Path) -> None:
    import pickle

    with Sandbox() as sandbox:
        with pytest.raises(FileNotFoundError) as missing:
            sandbox.read_file("/missing")
        with pytest.raises(adl.InvalidError) as invalid:
            sandbox.run(["true"], umask=0o1000)
    errors: list[Any] = [missing.value, invalid.value]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again._fields == error._fields
        assert again.kind == error.kind
    assert isinstance(invalid.value, ValueError)
    assert (invalid.value.what, invalid.value.kind) == ("umask", "invalid")


def test_threads_may_reset_and_run_at_once(sandbox: Sandbox) -> None:
    stop = threading.Event()
    seen = []

    def work() -> None:
        while not stop.is_set():
            try:
                seen.append(sandbox.run("echo x").reason)
            except adl.SandboxDiedError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        sandbox.reset()
    stop.set()
    for thread in threads:
        thread.join(SOON)
    assert EndReason.EXITED in seen
    assert set(seen) <= {EndReason.EXITED, EndReason.SANDBOX_DIED}
