"""Many commands at once from one event loop, without a thread for each.

python examples/coroutines.py [COMMANDS]
"""

import asyncio
import sys
import threading
import time

import adl


async def main(commands: int = 200) -> None:
    async with await adl.Sandbox.create() as sandbox:
        begin = time.perf_counter()
        scripts = [f"sleep 0.2; echo {number}" for number in range(commands)]
        results = await asyncio.gather(*(sandbox.arun(script) for script in scripts))
        assert [int(result.stdout) for result in results] == list(range(commands))
        seconds = time.perf_counter() - begin
        print(f"{commands} commands of 0.2 s: {seconds:.1f} s, {threading.active_count()} threads")

        # A server, and what it says line by line.
        script = "for i in 1 2 3; do echo step $i; sleep 0.05; done"
        async with await sandbox.apopen(script, stdout=adl.PIPE) as process:
            assert process.stdout is not None
            async for line in process.stdout:
                print(line.decode(), end="")
            print("ended with", await process.wait())

        # To cancel a task is to end its command, with all that it has started.
        try:
            await asyncio.wait_for(sandbox.arun("sleep 1000"), 0.1)
        except asyncio.TimeoutError:
            print("cancelled")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
