"""Commands: run to their end, beside the caller, in the background."""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import SOON, needs_root, python, within

import adl
from adl import DEVNULL, PIPE, STDOUT, EndReason, Sandbox


def test_a_result_tells_how_a_command_ended_and_what_it_wrote(image: str) -> None:
    with Sandbox(image=image) as sandbox:
        result = sandbox.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
        assert result.stdout_text == "out\n"
        assert result.stderr_text == "err\n"
        assert result.reason is EndReason.EXITED
        assert not result.success
        assert 0 < result.duration < SOON
        assert result.usage.max_resident > 0
        assert result.args == ["sh", "-c", "echo out; echo err >&2; exit 3"]
        assert isinstance(result, subprocess.CompletedProcess)
        assert "returncode=3" in repr(result)


def test_a_str_is_a_script_and_a_sequence_a_program(sandbox: Sandbox) -> None:
    assert sandbox.run("echo $((1 + 1)) | cat").stdout == b"2\n"
    assert sandbox.run(["echo", "$((1 + 1))", "|"]).stdout == b"$((1 + 1)) |\n"
    assert sandbox.run(("echo", b"\xff", Path("/a"))).stdout == b"\xff /a\n"
    assert sandbox.run(["echo", "\udcff"]).stdout == b"\xff\n"


def test_output_that_is_no_utf_8_is_kept_as_bytes(sandbox: Sandbox) -> None:
    result = sandbox.run(r"printf '\377a'")
    assert result.stdout == b"\xffa"
    assert result.stdout_text == "\ufffda"


def test_a_signal_is_a_negative_returncode(sandbox: Sandbox) -> None:
    result = sandbox.run("kill -TERM $$")
    assert result.returncode == -signal.SIGTERM
    assert result.reason is EndReason.SIGNALED
    assert str(result.status) == "was ended by SIGTERM"


def test_options_say_how_it_runs(sandbox: Sandbox) -> None:
    result = sandbox.run(
        "echo $A$LANG $PWD $(umask) $(nice) $(ulimit -n) $(cat)",
        env={"A": "a", "LANG": None},
        cwd="/tmp",
        umask=0o27,
        nice=3,
        rlimits={"nofile": (64, 128)},
        input="in",
    )
    assert result.stdout == b"a /tmp 0027 3 64 in\n"
    alone = sandbox.run(["/usr/bin/env"], env={"ONE": "1"}, clear_env=True)
    assert alone.stdout == b"ONE=1\n"
    import resource

    limited = sandbox.run("ulimit -Hn", rlimits={resource.RLIMIT_NOFILE: 100})
    assert limited.stdout == b"100\n"


@needs_root
def test_a_user_is_a_name_or_a_number(sandbox: Sandbox) -> None:
    assert sandbox.run("id -u", user="nobody").stdout == b"65534\n"
    assert sandbox.run("id -u; id -g", user=1000, gid=7).stdout == b"1000\n7\n"
    assert sandbox.run("id -G", uid=5, gid=6, groups=[7, 8]).stdout == b"6 7 8\n"
    with pytest.raises(adl.StartError, match="no-one"):
        sandbox.run("true", user="no-one")


def test_a_timeout_ends_all_that_was_started_and_keeps_what_it_wrote(sandbox: Sandbox) -> None:
    result = sandbox.run("echo partial; setsid sleep 1000 & sleep 1000", timeout=0.2)
    assert result.reason is EndReason.TIMED_OUT
    assert result.stdout == b"partial\n"
    assert result.returncode == -signal.SIGKILL
    assert sandbox.run("ls /proc | grep -c '^[0-9]'").stdout.strip() in (b"3", b"4", b"5")
    with pytest.raises(adl.TimeoutExpired) as told:
        sandbox.run("echo partial; sleep 1000", timeout=0.2, check=True)
    assert isinstance(told.value, subprocess.TimeoutExpired)
    assert told.value.stdout == b"partial\n"
    assert told.value.timeout == 0.2
    assert told.value.result is not None


def test_check_raises_for_what_does_not_succeed(sandbox: Sandbox) -> None:
    assert sandbox.run("true", check=True).success
    with pytest.raises(adl.CalledProcessError) as told:
        sandbox.run("echo why >&2; exit 4", check=True)
    assert isinstance(told.value, subprocess.CalledProcessError)
    assert (told.value.returncode, told.value.stderr) == (4, b"why\n")
    assert "exited with 4" in str(told.value)
    again = pickle.loads(pickle.dumps(told.value))
    assert (again.returncode, again.stderr, str(again)) == (4, b"why\n", str(told.value))


def test_limits_of_output_and_silence_end_a_command(sandbox: Sandbox) -> None:
    assert sandbox.run("yes", output_limit=1 << 20).reason is EndReason.OUTPUT_LIMIT
    assert sandbox.run("echo a; sleep 1000", idle_timeout=0.2).reason is EndReason.IDLE
    result = sandbox.run("seq 100000", keep_output=(3, 4))
    assert result.stdout == b"1\n2000\n"
    assert result.stdout_dropped == 588_895 - 7


def test_what_is_left_behind_goes_on_or_is_ended(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    result = sandbox.run("sleep 1000 & echo done")
    assert time.monotonic() - begin < SOON
    assert (result.stdout, result.stdio_open) == (b"done\n", True)
    sandbox.kill_all()
    assert not sandbox.run("sleep 1000 & echo done", leftovers="end").stdio_open


def test_streams_lead_where_they_are_said(sandbox: Sandbox, tmp_path: Path) -> None:
    both = sandbox.run("echo a; echo b >&2; echo c", stderr=STDOUT)
    assert (both.stdout, both.stderr) == (b"a\nb\nc\n", b"")
    assert sandbox.run("echo a; echo b >&2", stdout=DEVNULL).stderr == b"b\n"
    place = tmp_path / "file"
    with place.open("wb") as file:
        result = sandbox.run("echo a; echo b >&2", stdout=file)
    assert (place.read_bytes(), result.stdout, result.stderr) == (b"a\n", b"", b"b\n")
    with place.open("rb") as file:
        assert sandbox.run("cat", stdin=file).stdout == b"a\n"
    with place.open("ab") as file:
        sandbox.run("echo direct", stdout=adl.Direct(file))
    assert place.read_bytes() == b"a\ndirect\n"


def test_a_popen_is_talked_to_while_it_runs(sandbox: Sandbox) -> None:
    with sandbox.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for line in ("one\n", "two é\n"):
            child.stdin.write(line)
            assert child.stdout.readline() == line
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(SOON) == 0
    assert child.returncode == 0
    assert child.status is not None
    assert child.status.success


def test_communicate_writes_and_reads_any_amount(sandbox: Sandbox) -> None:
    data = os.urandom(3 << 20)
    with sandbox.popen("tee /dev/stderr", stdin=PIPE, stdout=PIPE, stderr=PIPE) as child:
        assert child.communicate(data, timeout=SOON) == (data, data)
    with sandbox.popen("sleep 1000 & echo left", stdout=PIPE) as child:
        assert child.communicate() == (b"left\n", None)
    with sandbox.popen("head -c 1", stdin=PIPE, stdout=PIPE) as child:
        assert child.communicate(data)[0] == data[:1]


def test_a_wait_that_takes_too_long_leaves_the_command_running(sandbox: Sandbox) -> None:
    child = sandbox.popen("echo begun; sleep 1000", stdout=PIPE)
    with pytest.raises(adl.TimeoutExpired):
        child.wait(0.05)
    with pytest.raises(adl.TimeoutExpired) as told:
        child.communicate(timeout=1)
    assert told.value.stdout == b"begun\n"
    assert child.poll() is None
    child.terminate()
    assert child.wait() == -signal.SIGTERM


def test_signals_reach_as_far_as_is_said(sandbox: Sandbox) -> None:
    script = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.01; done"
    child = sandbox.popen(script, stdout=PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGUSR1)
    assert child.wait() == 5
    assert child.stdout.read() == b"got\n"
    child = sandbox.popen("setsid sleep 1000 & wait")
    child.kill()
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(adl.InvalidError, match="not from 1 to 64"):
        sandbox.popen(["true"]).send_signal(99)


def test_a_command_on_a_terminal_sees_one(sandbox: Sandbox) -> None:
    child = sandbox.popen("tty; stty size; read line; echo got $line", terminal=(24, 80))
    assert child.terminal is not None
    child.terminal.resize(30, 100)
    child.terminal.write(b"typed\n")
    assert child.wait(SOON) == 0
    text = child.terminal.readall() or b""
    assert b"/dev/pts/" in text
    assert b"got typed\r\n" in text
    child.terminal.close()
    with pytest.raises(adl.InvalidError, match="terminal"):
        sandbox.popen("true", terminal=(24, 80), stdout=PIPE)


def test_jobs_in_the_background_are_read_and_found(sandbox: Sandbox) -> None:
    job = sandbox.background("echo a; read line; echo $line >&2; exit 2", input="in\n")
    assert sandbox.job(job.id) is not None
    result = job.wait(SOON)
    assert (result.returncode, result.stdout, result.stderr) == (2, b"a\n", b"in\n")
    assert sandbox.job(job.id) is None

    steps = sandbox.background("for i in 1 2 3; do echo $i; sleep 0.05; done")
    assert b"".join(part.stdout for part in steps.stream()) == b"1\n2\n3\n"
    assert steps.poll() is not None

    long = sandbox.background("echo begun; sleep 1000")
    assert within(lambda: long.output().stdout == b"begun\n")
    assert [job.id for job in sandbox.jobs()] == [steps.id, long.id]
    with pytest.raises(adl.TimeoutExpired) as told:
        long.wait(0.05)
    assert told.value.stdout == b"begun\n"
    long.kill()
    assert long.wait().returncode == -signal.SIGKILL


def test_what_does_not_start_is_an_error_of_the_right_class(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundError) as told:
        sandbox.run(["no-such-program"])
    error = told.value
    assert isinstance(error, adl.StartError)
    assert (error.program, error.stage, error.errno) == ("no-such-program", "exec", 2)
    assert error.kind == "inside"
    assert "no such program" in str(error)
    with pytest.raises(FileNotFoundError) as told:
        sandbox.run(["true"], cwd="/missing")
    assert isinstance(told.value, adl.StartError)
    assert told.value.stage == "directory"
    with pytest.raises(PermissionError):
        sandbox.run(["/etc/hosts"])


@pytest.mark.parametrize(
    ("args", "options", "error", "text"),
    [
        (["true"], {"timeout": -1}, ValueError, "timeout"),
        (["true"], {"timeout": "long"}, TypeError, "timeout"),
        (["true"], {"timeout": float("nan")}, ValueError, "timeout"),
        (["true"], {"no_such": 1}, TypeError, "no option .*no_such"),
        (["true"], {"env": ["A=b"]}, TypeError, "env: expected a mapping"),
        (["true"], {"env": {"A=": "b"}}, adl.InvalidError, "="),
        (["true"], {"umask": 0o1000}, adl.InvalidError, "umask"),
        (["true"], {"rlimits": {"no": 1}}, ValueError, "no resource"),
        (["true"], {"leftovers": "x"}, ValueError, "leftovers"),
        (["true"], {"input": 5}, TypeError, "input"),
        (["true"], {"stdout": "x"}, TypeError, "stdout"),
        (["true"], {"cwd": 5}, TypeError, "cwd: expected str, bytes or os.PathLike, not int"),
        ([], {}, ValueError, "at least a program"),
        ([5], {}, TypeError, "expected str"),
        (b"true", {}, TypeError, "a command is a str"),
        (Path("true"), {}, TypeError, "a command is a str"),
        (5, {}, TypeError, "int"),
        (["a\0b"], {}, adl.InvalidError, "program"),
    ],
)
def test_what_makes_no_sense_is_said(
    sandbox: Sandbox, args: object, options: dict[str, object], error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        sandbox.run(args, **options)  # type: ignore[arg-type]


def test_any_number_of_threads_run_commands_at_once(sandbox: Sandbox) -> None:
    def work(number: int) -> bytes:
        return sandbox.run(f"sleep 0.05; echo {number}").stdout

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(64))) == [b"%d\n" % number for number in range(64)]


def test_32_workers_are_in_the_middle_of_a_command_at_once(state: Path) -> None:
    """Each command ends when all have begun, so that none would if one had to wait for another."""
    shared = state.with_name("shared")
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    ready = "while [ $(ls /shared | wc -l) -lt 32 ]; do sleep 0.05; done; echo all"

    def work(number: int) -> bytes:
        mounts = [adl.Volume(shared, "/shared", "rw")]
        with Sandbox(mounts=mounts) as sandbox:
            return sandbox.run(f"touch /shared/{number}; {ready}", timeout=2 * SOON).stdout

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(32))) == [b"all\n"] * 32


def test_other_threads_run_while_one_waits(sandbox: Sandbox) -> None:
    waiting = threading.Thread(target=sandbox.run, args=("read line < /tmp/go",))
    sandbox.run(["mkfifo", "/tmp/go"], check=True)
    waiting.start()
    sandbox.run("echo > /tmp/go", check=True, timeout=SOON)
    waiting.join(SOON)
    assert not waiting.is_alive()


INTERRUPTED = """
import os, signal, sys, threading, time
import adl

def interrupt():
    while not sandbox.files.exists("/tmp/begun"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

with adl.Sandbox() as sandbox:
    for is_dropped, call in (
        (False, lambda: sandbox.run("touch /tmp/begun; setsid sleep 1000 & sleep 1000")),
        (
            True,
            lambda: sandbox.popen("touch /tmp/begun; exec sleep 1000", kill_on_drop=True).wait(),
        ),
        (False, lambda: sandbox.background("touch /tmp/begun; exec sleep 1000").wait()),
    ):
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            call()
        except KeyboardInterrupt:
            print("interrupted")
        thread.join()
        # What is waited for beside the caller runs on.
        if sandbox.jobs():
            sandbox.kill_all()
        # Who is dropped is killed, and no one waits for its end.
        end = time.monotonic() + (30 if is_dropped else 0)
        while (left := sandbox.run("cat /proc/[0-9]*/comm | grep -c sleep").stdout) != b"0\\n":
            if time.monotonic() > end:
                break
        usable = sandbox.run("rm /tmp/begun; echo usable").stdout
        print(left.decode().strip(), usable.decode().strip())
"""


def test_a_keyboard_interrupt_ends_the_command_and_leaves_the_sandbox(state: Path) -> None:
    assert python(INTERRUPTED).splitlines() == ["interrupted", "0 usable"] * 3


SIGCHLD = """
import signal, subprocess
import adl

with adl.Sandbox() as sandbox:
    for handler in (signal.SIG_IGN, lambda *_: None, signal.SIG_DFL):
        signal.signal(signal.SIGCHLD, handler)
        assert sandbox.run("echo a").stdout == b"a\\n"
        child = sandbox.popen("exit 3")
        subprocess.Popen(["true"])
        assert child.wait() == 3
        sandbox.reset()
print("done")
"""


def test_sigchld_ignored_or_handled_changes_nothing(state: Path) -> None:
    assert python(SIGCHLD) == "done\n"


def test_a_signal_handler_that_does_not_raise_does_not_end_the_command(state: Path) -> None:
    script = """
import os, signal, threading
import adl
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
with adl.Sandbox() as sandbox:
    assert sandbox.run("sleep 0.5; echo a").stdout == b"a\\n"
    assert len(seen) > 2, seen
signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""
    assert python(script) == "done\n"


def test_a_text_file_of_a_popen_is_what_subprocess_makes(sandbox: Sandbox) -> None:
    with sandbox.popen("printf 'a\\351'", stdout=PIPE, text=True, encoding="latin-1") as child:
        assert isinstance(child.stdout, io.TextIOWrapper)
        assert child.communicate()[0] == "aé"


def test_what_makes_no_sense_of_a_popen_starts_nothing(sandbox: Sandbox) -> None:
    script = "echo >> /started; sleep 1000"
    with pytest.raises(LookupError, match="no-such"):
        sandbox.popen(script, stdout=PIPE, text=True, encoding="no-such")
    with pytest.raises(LookupError, match="no-such"):
        sandbox.popen(script, stdout=PIPE, text=True, errors="no-such")
    assert not sandbox.files.exists("/started")
    with pytest.raises(TypeError):
        sandbox.popen(script, stdout=PIPE, bufsize="1")  # type: ignore[call-overload]
    assert within(lambda: b"sleep" not in sandbox.run("cat /proc/[0-9]*/comm").stdout)
    # What other tests have left goes meanwhile, too.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(LookupError, match="rot13"):
            sandbox.popen(script, stdin=PIPE, stdout=PIPE, stderr=PIPE, encoding="rot13")
    gc.collect()
    # What the library makes ready beside goes soon; what leaked would stay.
    assert within(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_communicate_goes_on_where_its_time_was_up(sandbox: Sandbox) -> None:
    script = "echo one; until [ -e /go ]; do sleep 0.02; done; wc -c; echo two"
    child = sandbox.popen(script, stdin=PIPE, stdout=PIPE)
    with pytest.raises(adl.TimeoutExpired):
        child.communicate(b"x" * 300_000, timeout=0.1)

    def has_told_one() -> bool:
        with pytest.raises(adl.TimeoutExpired) as told:
            child.communicate(timeout=0.1)
        return told.value.stdout == b"one\n"

    assert within(has_told_one)
    with pytest.raises(ValueError, match="input"):
        child.communicate(b"more")
    sandbox.write_file("/go", b"")
    assert child.communicate() == (b"one\n300000\ntwo\n", None)
    # The same again, as subprocess has it.
    assert child.communicate() == (b"one\n300000\ntwo\n", None)
    child = sandbox.popen("echo one; sleep 1000", stdout=PIPE)
    assert within(has_told_one)
    child.kill()
    assert child.communicate() == (b"one\n", None)
    # A stream that it has let go of waits as before.
    child = sandbox.popen("until [ -e /late ]; do sleep 0.02; done; echo late", stdout=PIPE)
    with pytest.raises(adl.TimeoutExpired):
        child.communicate(timeout=0.1)
    threading.Timer(0.2, lambda: sandbox.write_file("/late", b"")).start()
    assert child.stdout is not None
    assert child.stdout.read() == b"late\n"
    child.wait()


def test_communicate_has_what_was_read_ahead(sandbox: Sandbox) -> None:
    child = sandbox.popen("echo one; echo two; echo three", stdout=PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"one\n"
    assert child.communicate() == (b"two\nthree\n", None)
    text = sandbox.popen("printf 'a\\r\\nb\\rc\\n'", stdout=PIPE, text=True)
    assert text.communicate()[0] == "a\nb\nc\n"
    with pytest.raises(TypeError):
        sandbox.popen(["cat"], stdin=PIPE).communicate(5)


def test_a_terminal_that_is_closed_hangs_up(sandbox: Sandbox) -> None:
    with sandbox.popen(["cat"], terminal=(24, 80)) as child:
        pass
    assert child.returncode == -signal.SIGHUP


def test_with_a_file_for_a_stream_the_rest_is_as_ever(sandbox: Sandbox, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w+b") as out:
        result = sandbox.run(
            "cat; head -c 100000 /dev/zero >&2; exit 3",
            input=b"in",
            stdout=out,
            keep_output=(100, 50),
        )
        assert (result.returncode, result.stdout, len(result.stderr)) == (3, b"", 150)
        assert result.stderr_dropped == 99_850
        out.seek(0)
        assert out.read() == b"in"
        assert sandbox.run("sleep 1000", stdout=out, timeout=0.1).reason is EndReason.TIMED_OUT
        with pytest.raises(adl.InvalidError, match="input"):
            sandbox.run(["cat"], stdin=out, input=b"x")


INTERRUPTED_FILE = """
import os, signal, threading
import adl

with adl.Sandbox() as sandbox:
    _, full = os.pipe()
    def interrupt():
        while not sandbox.files.exists("/tmp/begun"):
            pass
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        sandbox.run("touch /tmp/begun; head -c 1000000 /dev/zero", stdout=full)
    except KeyboardInterrupt:
        print("interrupted")
    print(sandbox.run("pgrep -c head").stdout_text.strip())
"""


def test_an_interrupt_ends_a_command_that_writes_to_a_file(state: Path) -> None:
    assert python(INTERRUPTED_FILE).splitlines() == ["interrupted", "0"]
