"""Goes through the calls of agentdocker-lite so often, and prints what each took, in seconds."""

import json
import os
import sys
import time

from agentdocker_lite import Sandbox, SandboxConfig

# It tells the end of a command by descriptor 3, which has to be the number of its pipe here, too.
os.close(0)
os.closerange(3, 64)

rootfs, rounds, jobs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
times = {}


def timed(name, call):
    begin = time.perf_counter()
    result = call()
    times.setdefault(name, []).append(time.perf_counter() - begin)
    return result


for number in range(rounds):
    config = SandboxConfig(image=rootfs, working_dir="/tmp", net_isolate=True)
    name = f"adl-bench-{os.getpid()}-{number}"
    sandbox = timed("create", lambda: Sandbox(config, name=name))
    for _ in range(jobs):
        told = timed("exec_argv", lambda: sandbox.run(["/bin/true"]))
        assert told == ("", 0), told
        timed("write_5b", lambda: sandbox.write_file("/tmp/five", "bytes"))
        assert timed("read_5b", lambda: sandbox.read_file("/tmp/five")) == "bytes"
    timed("reset_1", sandbox.reset)
    timed("delete", sandbox.delete)
print(json.dumps(times))
