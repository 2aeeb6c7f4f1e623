"""What was written for agentdocker-lite, with one import changed.

python examples/compat.py [IMAGE]
"""

import sys

from adl.compat import Sandbox, SandboxConfig


def main(image: str = "host") -> None:
    config = SandboxConfig(image=image, working_dir="/workspace", net_isolate=True)
    sandbox = Sandbox(config, name="worker-0")
    print(sandbox.run("echo hello world"))
    sandbox.write_file("/workspace/script.sh", "echo from a file: $1\n")
    print(sandbox.run(["sh", "script.sh", "$1"]))
    print(sandbox.run("sleep 1000", timeout=1))
    handle = sandbox.run_background("while :; do date; sleep 0.1; done")
    print(sandbox.run("sleep 0.3; echo meanwhile"))
    print(len(sandbox.stop_background(handle).splitlines()) > 1)
    sandbox.reset()
    print(sandbox.run("ls"))
    sandbox.delete()


if __name__ == "__main__":
    main(*sys.argv[1:])
