"""The interface of agentdocker-lite: what it documents, on this engine."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SOON, Layout, missing, needs_root, python, within

import adl
from adl.compat import Sandbox, SandboxConfig


@pytest.fixture
def make(image: str, tmp_path: Path) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes, and deletes them."""
    made = []

    def of(name: str = "default", **options: object) -> Sandbox:
        config = SandboxConfig(**{"image": image, **options})  # type: ignore[arg-type]
        made.append(Sandbox(config, name))
        return made[-1]

    yield of
    for sandbox in made:
        sandbox.delete()


def test_the_example_of_its_readme(make: Callable[..., Sandbox]) -> None:
    sandbox = make("worker-0", working_dir="/workspace", environment={"PYTHONPATH": "/workspace"})
    assert sandbox.run("echo hello world") == ("hello world\n", 0)
    sandbox.write_file("/workspace/script.sh", "echo $PYTHONPATH $1\n")
    assert sandbox.run("sh script.sh arg") == ("/workspace arg\n", 0)
    assert sandbox.read_file("/workspace/script.sh") == "echo $PYTHONPATH $1\n"
    sandbox.reset()
    with pytest.raises(FileNotFoundError):
        sandbox.read_file("/workspace/script.sh")
    sandbox.delete()
    sandbox.delete()


def test_bad_configurations_are_value_errors(make: Callable[..., Sandbox]) -> None:
    with pytest.raises(ValueError, match="image is required"):
        make(image="")
    with pytest.raises(ValueError, match="fs_backend 'zfs'"):
        make(fs_backend="zfs")
    with pytest.raises(FileNotFoundError, match="/no/such"):
        make(image="/no/such")
    with pytest.raises(RuntimeError, match="ubuntu"):
        make(image="127.0.0.1:1/ubuntu:22.04")
    with pytest.raises(ValueError, match="volume"):
        make(volumes=["/only-one"])
    with pytest.raises(ValueError, match="cpu_max"):
        make(cpu_max="much")
    with pytest.raises(ValueError, match="memory_max"):
        make(memory_max="much")


def test_repr_shows_name_and_backend(make: Callable[..., Sandbox]) -> None:
    text = repr(make("shown"))
    assert "shown" in text
    assert "overlayfs" in text


def test_an_image_that_was_prepared_is_found(
    make: Callable[..., Sandbox], image: str, tmp_path: Path
) -> None:
    if image == "host":
        pytest.skip("of a directory only")
    (tmp_path / "debian_12").symlink_to(image)
    sandbox = make(image="debian:12", rootfs_cache_dir=str(tmp_path))
    assert sandbox.run("echo found") == ("found\n", 0)


def test_an_image_is_also_one_in_layers_and_sh_is_there_where_bash_is_not(
    make: Callable[..., Sandbox], tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "layout")
    layout.add("only", {"word": b"word\n"}, {"Env": ["PATH=/bin"], "WorkingDir": "/of/the/image"})
    sandbox = make(image=str(layout.path), working_dir="/mine")
    assert sandbox.run("pwd; cat /word; echo ${BASH_VERSION:-sh}") == ("/mine\nword\nsh\n", 0)
    sandbox.delete()
    adl.Images().import_image(layout.path, "compat/test")
    sandbox = make(image="compat/test")
    assert sandbox.run(["cat", "/word"]) == ("word\n", 0)
    sandbox.delete()
    adl.Images().remove("compat/test")


def test_a_string_goes_to_bash_and_keeps_no_state(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    assert sandbox.run("cd /tmp; export KEPT=1; pwd; echo ${BASH_VERSION:+bash}") == (
        "/tmp\nbash\n",
        0,
    )
    assert sandbox.run("pwd; echo $KEPT") == ("/\n\n", 0)


def test_a_list_is_run_as_it_is(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    assert sandbox.run(["echo", "$HOME", "a  b", "'", "|"]) == ("$HOME a  b ' |\n", 0)
    assert sandbox.run(["sh", "-c", "exit 5"])[1] == 5
    output, code = sandbox.run(["no-such-program"])
    assert code == 127
    assert "no-such-program" in output
    assert sandbox.run("no-such-program")[1] == 127


def test_stdout_and_stderr_are_one_string_in_order(make: Callable[..., Sandbox]) -> None:
    assert make().run("echo 1; echo 2 >&2; echo 3; exit 7") == ("1\n2\n3\n", 7)


def test_bytes_that_are_not_utf_8_are_shown(make: Callable[..., Sandbox]) -> None:
    assert make().run(r"printf 'é\377\n'") == ("é\\xff\n", 0)


def test_stdin_is_empty(make: Callable[..., Sandbox]) -> None:
    assert make().run("cat; echo $?") == ("0\n", 0)


def test_much_output_comes_whole(make: Callable[..., Sandbox]) -> None:
    output, code = make().run("seq 1000000")
    assert (len(output), output[-8:], code) == (6_888_896, "1000000\n", 0)


def test_a_timeout_is_124_and_the_sandbox_goes_on(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    handle = sandbox.run_background("sleep 1000")
    sandbox.write_file("/kept", "kept")
    begin = time.monotonic()
    output, code = sandbox.run("echo partial; sleep 1000", timeout=1)
    assert time.monotonic() - begin < SOON
    assert code == 124
    assert "Command timed out after 1 seconds" in output
    assert "partial" in output
    assert sandbox.run("cat /kept") == ("kept", 0)
    assert sandbox.check_background(handle)[1]


def test_commands_start_in_working_dir_which_is_made(make: Callable[..., Sandbox]) -> None:
    sandbox = make(working_dir="/made/for/this")
    assert sandbox.run("pwd") == ("/made/for/this\n", 0)
    assert sandbox.run(["pwd"]) == ("/made/for/this\n", 0)
    sandbox.reset()
    assert sandbox.run("pwd") == ("/made/for/this\n", 0)


def test_environment_is_that_of_commands(make: Callable[..., Sandbox]) -> None:
    os.environ["OF_THE_HOST"] = "1"
    sandbox = make(environment={"A": "b c"})
    assert sandbox.run("echo $A $OF_THE_HOST $HOME $LANG") == ("b c /root C.UTF-8\n", 0)


def test_volumes_are_read_only_or_not(make: Callable[..., Sandbox], tmp_path: Path) -> None:
    for name in ("ro", "rw", "default", "cow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    sandbox = make(
        volumes=[
            f"{tmp_path}/ro:/ro:ro",
            f"{tmp_path}/rw:/mnt/rw:rw",
            f"{tmp_path}/default:/default",
            f"{tmp_path}/cow:/cow:cow",
        ]
    )
    assert sandbox.run("cat /ro/file /mnt/rw/file /default/file")[0] == "rorwdefault"
    assert sandbox.run("echo x > /ro/file")[1] != 0
    assert sandbox.run("echo inside > /mnt/rw/file; echo inside > /default/file")[1] == 0
    assert (tmp_path / "rw" / "file").read_text() == "inside\n"
    assert sandbox.run("echo inside > /cow/file") == ("", 0)
    assert (tmp_path / "cow" / "file").read_text() == "cow"
    sandbox.reset()
    assert sandbox.run("cat /mnt/rw/file /cow/file") == ("inside\ncow", 0)


def test_the_network_is_the_hosts_or_its_own(make: Callable[..., Sandbox]) -> None:
    outside = os.readlink("/proc/self/ns/net")
    assert make().run(["readlink", "/proc/self/ns/net"]) == (outside + "\n", 0)
    isolated = make(net_isolate=True)
    assert isolated.run(["readlink", "/proc/self/ns/net"])[0] != outside + "\n"
    assert (
        isolated.run("ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev")[0]
        .split()[0]
        .startswith("lo")
    )


def test_the_background_is_looked_at_and_stopped(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    handle = sandbox.run_background("echo begun; setsid sleep 1000; echo never")
    assert isinstance(handle, str)
    assert within(lambda: sandbox.check_background(handle) == ("begun\n", True))
    assert sandbox.run("echo meanwhile") == ("meanwhile\n", 0)
    assert sandbox.stop_background(handle) == "begun\n"
    assert sandbox.run("cat /proc/[0-9]*/comm | grep -c sleep")[0] == "0\n"
    assert sandbox.check_background(handle) == ("", False)
    assert sandbox.stop_background(handle) == ""

    short = sandbox.run_background(["sh", "-c", "echo one; echo two >&2"])
    assert within(lambda: not sandbox.check_background(short)[1])
    assert sandbox.check_background(short) == ("one\ntwo\n", False)
    assert sandbox.stop_background(short) == "one\ntwo\n"

    forgotten = sandbox.run_background("sleep 1000")
    sandbox.reset()
    assert sandbox.check_background(forgotten) == ("", False)


def test_only_a_terminal_is_typed_to(make: Callable[..., Sandbox]) -> None:
    with pytest.raises(RuntimeError, match="tty=True"):
        make().write_stdin("x")


def test_on_a_terminal_programs_see_one(make: Callable[..., Sandbox]) -> None:
    sandbox = make(tty=True)
    output, code = sandbox.run("[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo $TERM $NO_COLOR")
    assert (output.replace("\r", ""), code) == ("dumb 1\n", 0)
    assert sandbox.run(["tty"])[0].startswith("/dev/pts/")

    # Typed before there is a command, and while it runs; nothing of it is echoed.
    sandbox.write_stdin("first\n")
    assert sandbox.run("read line; echo got $line")[0].replace("\r", "") == "got first\n"
    results: list[tuple[str, int]] = []
    script = "touch /ready; read a; read b; echo $a-$b"
    running = threading.Thread(target=lambda: results.append(sandbox.run(script)))
    running.start()
    assert within(lambda: sandbox.native.files.exists("/ready"))
    sandbox.write_stdin("one\n")
    sandbox.write_stdin(b"two\n")
    running.join(SOON)
    assert [(text.replace("\r", ""), code) for text, code in results] == [("one-two\n", 0)]
    output, code = sandbox.run("echo partial; cat", timeout=1)
    assert (output.startswith("partial"), code) == (True, 124)
    assert sandbox.run("echo on")[1] == 0


def test_what_no_one_reads_of_what_is_typed_holds_up_nothing(
    make: Callable[..., Sandbox],
) -> None:
    sandbox = make(tty=True)
    sandbox.write_stdin("line\n" * 20_000)
    assert sandbox.run("true")[1] == 0
    results: list[tuple[str, int]] = []
    running = threading.Thread(target=lambda: results.append(sandbox.run("touch /on; sleep 1000")))
    running.start()
    assert within(lambda: sandbox.native.files.exists("/on"))
    begin = time.monotonic()
    sandbox.write_stdin("line\n" * 20_000)
    assert time.monotonic() - begin < 5
    sandbox.reset()
    running.join(SOON)
    assert not running.is_alive()
    assert sandbox.run("echo on")[0].replace("\r", "") == "on\n"


def test_what_is_as_there_in_odd_cases(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    # No limit.
    assert sandbox.run("sleep 0.2; echo on", timeout=0) == ("on\n", 0)
    assert sandbox.run("sleep 10", timeout=1.0)[0] == "Command timed out after 1.0 seconds"
    handle = sandbox.run_background(["/nonexistent"])
    output, is_running = sandbox.check_background(handle)
    assert "/nonexistent" in output
    assert not is_running
    assert "/nonexistent" in sandbox.stop_background(handle)
    assert sandbox.check_background(handle) == ("", False)
    # The file that is there is written.
    sandbox.run("echo old > /tmp/one; ln /tmp/one /tmp/two")
    sandbox.write_file("/tmp/one", "new")
    assert sandbox.read_file("/tmp/two") == "new"


def test_files_are_written_and_read(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    sandbox.write_file("/made/for/this/text", "é\n")
    sandbox.write_file("/made/for/this/bytes", b"\xff\x00")
    assert sandbox.run("cat /made/for/this/text") == ("é\n", 0)
    assert sandbox.read_file("/made/for/this/text") == "\xc3\xa9\n"
    assert sandbox.read_file("/made/for/this/bytes") == "\xff\x00"
    sandbox.write_file("relative", "r")
    assert sandbox.read_file("/relative") == "r"
    with pytest.raises(FileNotFoundError):
        sandbox.read_file("/missing")


def test_files_are_copied_both_ways(make: Callable[..., Sandbox], tmp_path: Path) -> None:
    sandbox = make()
    source = tmp_path / "source"
    source.write_bytes(b"\xff data")
    source.chmod(0o751)
    sandbox.copy_to(str(source), "/made/for/this/copy")
    sandbox.copy_to(str(source), "/tmp")
    assert sandbox.run("cmp /tmp/source /made/for/this/copy; stat -c %a /tmp/source") == (
        "751\n",
        0,
    )
    sandbox.copy_from("/tmp/source", str(tmp_path / "made" / "too" / "back"))
    assert (tmp_path / "made" / "too" / "back").read_bytes() == b"\xff data"
    sandbox.copy_from("/tmp/source", str(tmp_path / "made"))
    assert (tmp_path / "made" / "source").exists()
    with pytest.raises(FileNotFoundError):
        sandbox.copy_from("/missing", str(tmp_path / "x"))
    with pytest.raises(FileNotFoundError):
        sandbox.copy_to(str(tmp_path / "missing"), "/x")


def test_a_link_of_a_guests_leads_nowhere_outside(
    make: Callable[..., Sandbox], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    sandbox = make()
    sandbox.run(["ln", "-s", str(secret), "/link"])
    with pytest.raises(FileNotFoundError):
        sandbox.read_file("/link")
    sandbox.run(["ln", "-s", str(tmp_path), "/directory"])
    with pytest.raises(OSError, match="directory"):
        sandbox.write_file("/directory/secret", "of a guest")
    assert secret.read_text() == "of the host"


def test_reset_makes_it_as_new(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    for number in range(3):
        sandbox.write_file(f"/file{number}", "x")
        sandbox.run("rm -rf /etc; sleep 1000 & echo x > /tmp/left")
        sandbox.reset()
        assert sandbox.run(f"ls /file{number} /tmp/left; test -e /etc/passwd")[0].count("No such")
        assert sandbox.run("cat /proc/[0-9]*/comm | grep -c sleep")[0] == "0\n"


@needs_root
def test_rootfs_is_a_path_to_its_tree(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    sandbox.write_file("/seen", "from outside")
    assert isinstance(sandbox.rootfs, Path)
    assert (sandbox.rootfs / "seen").read_text() == "from outside"
    before = sandbox.rootfs
    sandbox.reset()
    assert sandbox.rootfs != before
    assert not (sandbox.rootfs / "seen").exists()
    sandbox.delete()
    assert not sandbox.rootfs.exists()


def test_limits_hold(make: Callable[..., Sandbox]) -> None:
    try:
        sandbox = make(cpu_max="50000 100000", memory_max="512M", pids_max="32")
    except adl.UnsupportedError as error:
        missing("cgroups", str(error))
    # A shell that does not try again.
    output, _ = sandbox.run(["sh", "-c", "for i in $(seq 40); do sleep 1000 & done; wait"], 60)
    assert "fork" in output
    used = sandbox.native.stats()
    assert used.pids_refused
    assert make(cpu_max="max 100000", memory_max="max", pids_max="max").run("true")[1] == 0


def test_env_base_dir_is_where_state_is(make: Callable[..., Sandbox], tmp_path: Path) -> None:
    base = Path(f"/var/tmp/adl-compat-{os.getpid()}")
    try:
        sandbox = make(env_base_dir=str(base))
        assert sandbox.run("true")[1] == 0
        assert (base / "adl" / "sandboxes").is_dir()
        sandbox.delete()
        adl.finish_removals()
    finally:
        shutil.rmtree(base)


def test_what_is_done_is_logged(
    make: Callable[..., Sandbox], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "adl.compat"):
        sandbox = make("logged")
        sandbox.run("echo x")
        sandbox.reset()
        sandbox.delete()
    text = caplog.text
    for what in ("logged is ready", "echo x", "reset of logged", "logged is deleted"):
        assert what in text


def test_one_that_is_dropped_is_cleaned_up(state: Path) -> None:
    sandbox = Sandbox(SandboxConfig(image="host"))
    init = Path(f"/proc/{sandbox.native.init_pid}")
    del sandbox
    gc.collect()
    assert within(lambda: not init.exists())
    script = """
from adl.compat import Sandbox, SandboxConfig
sandbox = Sandbox(SandboxConfig(image="host"), "at-exit")
sandbox.run_background("sleep 1000")
print(sandbox.native.init_pid)
"""
    init = Path(f"/proc/{int(python(script))}")
    assert within(lambda: not init.exists())


def test_workers_share_nothing(make: Callable[..., Sandbox]) -> None:
    workers = [make(f"worker-{number}") for number in range(8)]
    results: dict[int, str] = {}

    def work(number: int) -> None:
        workers[number].write_file("/mine", str(number))
        results[number] = workers[number].run("cat /mine; ls /tmp")[0]
        workers[number].reset()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert results == {number: str(number) for number in range(8)}


BTRFS = """
import sys
import adl
from adl.compat import Sandbox, SandboxConfig

config = SandboxConfig(image=sys.argv[1], fs_backend="btrfs", env_base_dir=sys.argv[2])
sandbox = Sandbox(config, "on-btrfs")
assert "btrfs" in repr(sandbox)
sandbox.write_file("/x", "x")
assert sandbox.run("cat /x") == ("x", 0)
sandbox.reset()
assert sandbox.run("cat /x")[1] == 1
sandbox.delete()
adl.finish_removals()
print("done")
"""


@needs_root
def test_btrfs_is_the_other_backend(image: str, tmp_path: Path) -> None:
    if shutil.which("mkfs.btrfs") is None:
        missing("btrfs", "needs mkfs.btrfs: apt-get install btrfs-progs")
    disk, place = tmp_path / "disk", tmp_path / "place"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(2 << 30)
    subprocess.run(["mkfs.btrfs", "-q", str(disk)], check=True)
    # Mounted where no one else sees it, and gone with the program.
    mount = 'mount -o loop "$0" "$1" && shift && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(disk)]
    command += [str(place), sys.executable, "-c", BTRFS, image, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr
