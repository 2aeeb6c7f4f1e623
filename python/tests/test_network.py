"""Sockets in and out of a sandbox, and its ports."""

from __future__ import annotations

import asyncio
import errno
import gc
import pickle
import queue
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SOON, python, within

import adl
from adl import ConnectionEndReason, ConnectionLimits, Forward, Publish, Sandbox

ECHO = """
import socket, sys, threading
kind, *at = sys.argv[1:]
if kind == "unix":
    server = socket.socket(socket.AF_UNIX)
    server.bind(at[0])
    server.listen()
else:
    family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
    server = socket.create_server((at[0], int(at[1])), family=family)
print("ready", flush=True)

def serve(client):
    while data := client.recv(65536):
        client.sendall(data)
    client.close()

while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@contextmanager
def echo(sandbox: Sandbox, *at: str) -> Iterator[None]:
    """A server inside, which sends back what it reads."""
    args = ["python3", "-c", ECHO, *at]
    with sandbox.popen(args, stdout=adl.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
        server.kill()


def says(stream: socket.socket, what: bytes = b"hello") -> bytes:
    """What comes back of what is said."""
    with stream:
        stream.settimeout(SOON)
        stream.sendall(what)
        stream.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: stream.recv(65536), b""))


def test_servers_inside_are_reached(sandbox: Sandbox) -> None:
    for ip in ("127.0.0.1", "::1"):
        text = f"[{ip}]:80" if ":" in ip else f"{ip}:80"
        with pytest.raises(ConnectionRefusedError) as refused:
            sandbox.connect(text)
        assert isinstance(refused.value, adl.SocketError)
        assert (refused.value.errno, refused.value.address) == (errno.ECONNREFUSED, (ip, 80))
        again = pickle.loads(pickle.dumps(refused.value))
        assert isinstance(again, ConnectionRefusedError)
        assert isinstance(again, adl.SocketError)
        assert again.address == (ip, 80)
        with echo(sandbox, "tcp", ip, "80"):
            for address in (text, (ip, 80)):
                stream = sandbox.connect(address, timeout=SOON)
                assert stream.getpeername()[:2] == (ip, 80)
                assert stream.gettimeout() is None
                assert not stream.get_inheritable()
                assert says(stream) == b"hello"
    with pytest.raises(FileNotFoundError):
        sandbox.connect_unix("/tmp/socket")
    with echo(sandbox, "unix", "/tmp/socket"):
        stream = sandbox.connect_unix(Path("/tmp/socket"))
        assert stream.family == socket.AF_UNIX
        assert says(stream) == b"hello"


def test_what_is_inside_reaches_a_listener(sandbox: Sandbox) -> None:
    with sandbox.listen("127.0.0.1:0") as listener:
        listener.settimeout(SOON)
        port = listener.getsockname()[1]
        client = sandbox.popen(["bash", "-c", f"cat < /dev/tcp/127.0.0.1/{port}"], stdout=adl.PIPE)
        with listener.accept()[0] as stream:
            stream.sendall(b"from outside")
        assert client.communicate()[0] == b"from outside"
        with pytest.raises(adl.SocketError) as used:
            sandbox.listen(("127.0.0.1", port))
        assert used.value.errno == errno.EADDRINUSE


def test_ports_lead_in_and_out_until_they_are_closed(sandbox: Sandbox) -> None:
    assert sandbox.ports == []
    port = sandbox.publish(("::1", 0), 80)
    assert (port.address[0], port.published, port.forwarded_to) == ("::1", 80, ())
    with echo(sandbox, "tcp", "127.0.0.1", "80"):
        assert says(socket.create_connection(port.address)) == b"hello"
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(SOON)
            at = server.getsockname()
            # By its name, as by its address.
            ports = [sandbox.forward(0, at), sandbox.forward("[::1]:0", f"localhost:{at[1]}")]
            assert ports[0].forwarded_to == (at,)
            assert at in ports[1].forwarded_to
            assert sandbox.ports == [port, *ports]
            assert len({port, *ports}) == 3
            for ip, own in zip(("127.0.0.1", "::1"), ports, strict=True):
                assert own.address[0] == ip
                assert own.published is None
                script = f"import socket; socket.create_connection({own.address})"
                client = sandbox.popen(["python3", "-c", script + ".sendall(b'inside')"])
                with server.accept()[0] as stream:
                    stream.settimeout(SOON)
                    assert stream.recv(100) == b"inside"
                assert client.wait() == 0
        sandbox.close_port(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(port.address)
        with pytest.raises(adl.InvalidError, match="none at"):
            sandbox.close_port(port)
    assert sandbox.ports == ports


def test_ports_of_the_options_are_there_from_the_beginning(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SOON)
        with Sandbox(
            publish=[Publish("127.0.0.1:0", 80)], forward=[Forward(81, server.getsockname())]
        ) as sandbox:
            (published,) = (port for port in sandbox.ports if port.published)
            with echo(sandbox, "tcp", "127.0.0.1", "80"):
                assert says(socket.create_connection(published.address)) == b"hello"
            client = sandbox.background(["bash", "-c", "echo < /dev/tcp/127.0.0.1/81"])
            server.accept()[0].close()
            assert client.wait().success
            before = adl.metrics()["sandboxes"]
            with pytest.raises(adl.SocketError) as used:
                Sandbox(publish=[Publish(published.address, 80)])
            assert used.value.errno == errno.EADDRINUSE
            # It never was one.
            after = adl.metrics()["sandboxes"]
            for name in ("alive", "created", "deleted"):
                assert after[name] == before[name]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(published.address)


def test_a_wrong_argument_is_told(sandbox: Sandbox) -> None:
    anything: Any = sandbox
    unchecked: Any = Sandbox
    for address in ("80", "localhost:80", "::1:80", "127.0.0.1:65536", ("127.0.0.1", -1), ("", 1)):
        for call in (anything.connect, anything.listen, lambda at: anything.publish(at, 80)):
            with pytest.raises(adl.InvalidError, match="address"):
                call(address)
    for wrong in (80, None, b"127.0.0.1:80", ("127.0.0.1",), (b"x", 1), object()):
        with pytest.raises(TypeError, match="address"):
            anything.connect(wrong)
    some = "127.0.0.1:0"
    limited = ConnectionLimits(connections=0)
    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (adl.InvalidError, lambda: anything.publish(some, 0)),
        (ValueError, lambda: anything.publish(some, 65536)),
        (TypeError, lambda: anything.publish(some, "80")),
        (TypeError, lambda: anything.publish(some, 80, limits={"bytes": 1})),
        (adl.InvalidError, lambda: anything.publish(some, 80, limits=limited)),
        (adl.InvalidError, lambda: anything.forward(80, "127.0.0.1")),
        (adl.InvalidError, lambda: anything.forward(80, some)),
        (adl.InvalidError, lambda: anything.forward(80, ":80")),
        (adl.InvalidError, lambda: anything.forward(80, ("a" * 64, 80))),
        (adl.InvalidError, lambda: anything.forward("80", "127.0.0.1:80")),
        (TypeError, lambda: anything.forward(80, None)),
        (TypeError, lambda: anything.close_port(some)),
        (TypeError, lambda: anything.watch_connections(None)),
        (ValueError, lambda: anything.connect("127.0.0.1:80", timeout=-1)),
        (TypeError, lambda: unchecked(publish=[(some, 80)])),
        (TypeError, lambda: unchecked(forward=[Publish(some, 80)])),
    ]
    for error, wrong_call in calls:
        with pytest.raises(error):
            wrong_call()
    assert sandbox.ports == []


def test_ends_of_connections_are_told_and_counted(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[adl.ConnectionEnd] = queue.Queue()
    raised: queue.Queue[Any] = queue.Queue()
    monkeypatch.setattr(sys, "unraisablehook", raised.put)

    def hear(end: adl.ConnectionEnd) -> None:
        assert threading.current_thread() is not threading.main_thread()
        told.put(end)
        raise KeyError(end.bytes_in)

    sandbox.watch_connections(hear)
    port = sandbox.publish("127.0.0.1:0", 80, limits=ConnectionLimits(bytes=20))
    socket.create_connection(port.address).close()
    end = told.get(timeout=SOON)
    assert (end.port, end.peer[0]) == (port, "127.0.0.1")
    assert (end.reason, end.errno) == (ConnectionEndReason.REFUSED, errno.ECONNREFUSED)
    with echo(sandbox, "tcp", "127.0.0.1", "80"):
        assert says(socket.create_connection(port.address)) == b"hello"
        end = told.get(timeout=SOON)
        assert (end.reason, end.errno, end.bytes_in, end.bytes_out, end.untold) == (
            ConnectionEndReason.CLOSED,
            None,
            5,
            5,
            0,
        )
        assert 0 < end.duration < SOON
        with pytest.raises(ConnectionResetError):
            says(socket.create_connection(port.address), b"x" * 100)
        assert told.get(timeout=SOON).reason is ConnectionEndReason.BYTE_LIMIT
    for bytes_in in (0, 5):
        hook = raised.get(timeout=SOON)
        assert (hook.exc_type, hook.exc_value.args, hook.object) == (KeyError, (bytes_in,), hear)
        assert hook.exc_traceback is not None
    counted = sandbox.stats().connections
    assert counted is not None
    assert (counted.open, counted.begun, counted.failed) == (0, 3, 2)
    # Another takes its place, and its thread ends.
    threads = {one for one in threading.enumerate() if one.name == "adl-connections"}
    others: queue.Queue[adl.ConnectionEnd] = queue.Queue()
    sandbox.watch_connections(others.put)
    assert within(lambda: not any(thread.is_alive() for thread in threads))
    other = sandbox.publish("127.0.0.1:0", 81)
    socket.create_connection(other.address).close()
    assert others.get(timeout=SOON).untold == 0
    assert told.empty()


def test_the_thread_of_a_callback_ends_with_its_sandbox(state: Path) -> None:
    def watchers() -> int:
        return sum(one.name == "adl-connections" for one in threading.enumerate())

    for end in (Sandbox.delete, lambda sandbox: None):
        assert within(lambda: watchers() == 0)
        sandbox = Sandbox()
        sandbox.watch_connections(lambda told: None)
        assert watchers() == 1
        end(sandbox)
        del sandbox
        gc.collect()
        assert within(lambda: watchers() == 0)


@pytest.mark.parametrize(
    "callback", ["print", "lambda end: time.sleep(1000)", "lambda end: 1 / 0", "spin"]
)
def test_the_end_of_the_interpreter_waits_for_no_callback(state: Path, callback: str) -> None:
    script = f"""
import socket, sys, time, adl
def spin(end):
    while True: pass
boxes = [adl.Sandbox() for _ in range(3)]
pool = adl.Pool("host", minimum=1)
for box in [*boxes, pool.acquire()]:
    box.watch_connections({callback})
    port = box.publish("127.0.0.1:0", 80)
    streams = [socket.create_connection(port.address) for _ in range(20)]
sys.exit(7)
"""
    command = f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {script!r}]"
    printed = python(command + ", stderr=subprocess.DEVNULL).returncode)", timeout=SOON)
    assert printed.splitlines()[-1] == "7"


def test_streams_of_asyncio(sandbox: Sandbox) -> None:
    async def talk(connect: Callable[[], Any]) -> bytes:
        reader, writer = await connect()
        writer.write(b"hello" * 10_000)
        writer.write_eof()
        heard: bytes = await reader.read()
        writer.close()
        await writer.wait_closed()
        return heard

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await sandbox.aconnect("127.0.0.1:80")
        with echo(sandbox, "tcp", "127.0.0.1", "80"), echo(sandbox, "unix", "/tmp/socket"):
            calls = [
                lambda: sandbox.aconnect(("127.0.0.1", 80)),
                lambda: sandbox.aconnect_unix("/tmp/socket", limit=1 << 20),
            ]
            heard = await asyncio.gather(*(talk(call) for call in calls * 20))
            assert set(heard) == {b"hello" * 10_000}

    asyncio.run(main())


def test_a_connection_that_no_one_waits_for_is_closed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    full = """
import socket
server = socket.create_server(("127.0.0.1", 80), backlog=0)
own = socket.create_connection(("127.0.0.1", 80))
print("ready", flush=True)
input()
held = server.accept()
print(server.accept()[0].recv(1), flush=True)
"""

    async def main() -> None:
        args = ["python3", "-c", full]
        async with await sandbox.apopen(args, stdin=adl.PIPE, stdout=adl.PIPE) as server:
            assert server.stdout is not None
            assert server.stdin is not None
            assert await server.stdout.readline() == b"ready\n"
            # It waits until there is room.
            waits = asyncio.create_task(sandbox.aconnect("127.0.0.1:80", timeout=SOON))
            done, _ = await asyncio.wait([waits], timeout=0.3)
            assert not done
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            server.stdin.write(b"\n")
            assert await server.stdout.readline() == b"b''\n"

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        asyncio.run(main())
        gc.collect()
    assert raised == []
