"""A sandbox: commands, files, limits of time, a reset.

python examples/basic.py
"""

import adl


def main() -> None:
    with adl.Sandbox(env={"STAGE": "test"}, cwd="/tmp") as sandbox:
        # A str is a script; a sequence is a program with its arguments, without a shell.
        print(sandbox.run("echo hello from $(uname -n), stage $STAGE").stdout_text, end="")
        print(sandbox.run(["sort", "-n"], input="3\n1\n2\n").stdout_text.split())

        # What a command does is told, whatever that is.
        result = sandbox.run("echo partial; sleep 1000 & setsid sleep 1000", timeout=0.5)
        print(result.reason.value, result.stdout, f"{result.duration:.1f} s")

        # Errors are Python's own where these say it.
        try:
            sandbox.run(["no-such-program"])
        except FileNotFoundError as error:
            print(error)

        # Files are read and written inside, by the rights of a user there.
        sandbox.write_file("script.py", "import sys; print(sum(map(int, sys.stdin)))\n")
        print(sandbox.run(["python3", "script.py"], input="1\n2\n3\n").stdout_text, end="")

        # As new, whatever was done.
        sandbox.run("rm -rf /usr /etc")
        sandbox.reset()
        print(sandbox.run("ls /tmp | wc -l").stdout_text, end="")


if __name__ == "__main__":
    main()
