"""A server of tools for agents, by the Model Context Protocol on stdin and stdout: a shell and
files in a sandbox.

pip install "mcp>=2"; python examples/mcp_server.py

In the configuration of an agent: {"command": "python", "args": ["examples/mcp_server.py"]}
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

import adl

server = MCPServer("adl")
sandbox = adl.Sandbox(cwd="/root", timeout=60)


@contextmanager
def told() -> Iterator[None]:
    """What failed by what is inside is the agent's to know; all else is this machine's."""
    try:
        yield
    except adl.Error as error:
        if error.kind == "inside":
            raise ToolError(str(error)) from None
        raise


@server.tool()
async def run(script: str, timeout: float = 60) -> str:
    """Runs a shell script in the sandbox. Returns what it printed, and how it ended."""
    result = await sandbox.arun(
        script, timeout=min(timeout, 600), stderr=adl.STDOUT, keep_output=(8000, 8000)
    )
    return f"{result.stdout_text}[{result.status}]"


@server.tool()
async def read_file(path: str) -> str:
    """Reads a text file of the sandbox."""
    with told():
        return await sandbox.afiles.with_options(limit=1 << 20).read_text(path, errors="replace")


@server.tool()
async def write_file(path: str, text: str) -> str:
    """Writes a text file of the sandbox; directories are made."""
    with told():
        await sandbox.afiles.makedirs(path.rpartition("/")[0] or ".")
        await sandbox.afiles.write_text(path, text)
    return f"wrote {len(text)} characters"


@server.tool()
async def reset() -> str:
    """Makes the sandbox as new."""
    await sandbox.areset()
    return "as new"


if __name__ == "__main__":
    server.run()
