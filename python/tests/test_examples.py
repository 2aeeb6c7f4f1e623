"""The examples run."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import missing, needs_root

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *args: str) -> str:
    """Runs an example, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        missing(module, f"needs {module}")


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("basic.py", (), "6\n0\n"),
        ("workers.py", ("8", "3"), "8 workers"),
        ("coroutines.py", ("50",), "cancelled"),
        ("tree_search.py", (), "found after 9 states"),
        ("compat.py", (), "('meanwhile\\n', 0)"),
    ],
)
def test_an_example_runs(state: Path, name: str, args: tuple[str, ...], text: str) -> None:
    assert text in run(name, *args)


def test_the_environment_is_gymnasiums(state: Path) -> None:
    needs("gymnasium")
    assert "reward 1.0" in run("rl_environment.py")
    script = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
from gymnasium.utils.env_checker import check_env
from rl_environment import ShellEnv
env = ShellEnv()
check_env(env, skip_render_check=True)
env.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_root
def test_a_pool_of_actors_survives_the_end_of_one(
    state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs("ray")
    # What Ray keeps of its user and its sessions is this test's own.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert "is there again" in run("ray_pool.py", "2", "10")


def test_the_server_of_tools_is_talked_to(state: Path) -> None:
    needs("mcp")
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    async def main() -> None:
        args = [str(EXAMPLES / "mcp_server.py")]
        # It gets no more of the environment than it needs.
        env = {
            name: os.environ[name]
            for name in ("ADL_STATE_DIR", "PATH", "PYTHONPATH")
            if name in os.environ
        }
        server = StdioServerParameters(command=sys.executable, args=args, env=env)
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            tools = await session.list_tools()
            assert {tool.name for tool in tools.tools} == {
                "run",
                "read_file",
                "write_file",
                "reset",
            }

            async def call(name: str, **arguments: object) -> str:
                result = await session.call_tool(name, arguments)
                return "".join(getattr(part, "text", "") for part in result.content)

            assert "wrote 6" in await call("write_file", path="/root/a/b", text="hello\n")
            assert await call("run", script="cat a/b; exit 3") == "hello\n[exited with 3]"
            assert await call("read_file", path="/root/a/b") == "hello\n"
            await call("reset")
            assert "No such file" in await call("read_file", path="/root/a/b")

    asyncio.run(main())
