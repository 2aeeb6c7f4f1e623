"""An environment for reinforcement learning, by Gymnasium's interface: an agent in a shell.

An episode begins as new, by a reset of the sandbox in about a millisecond; a step is a command with
a limit of time and of output. The reward is what a check says that the agent never sees.

pip install gymnasium; python examples/rl_environment.py
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces

import adl

CHECK = "[ -x /work/greet ] && [ \"$(/work/greet adl)\" = 'hello adl' ]"
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n\t"


class ShellEnv(gymnasium.Env[str, str]):
    """Write a program /work/greet that greets whom it is given."""

    def __init__(self, max_steps: int = 10) -> None:
        self.action_space = spaces.Text(1000, charset=CHARACTERS)
        self.observation_space = spaces.Text(4000, min_length=0, charset=CHARACTERS)
        self.max_steps = max_steps
        self.steps = 0
        self.sandbox = adl.Sandbox(timeout=5)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.sandbox.reset()
        self.sandbox.files.makedirs("/work")
        self.steps = 0
        return "Write a program /work/greet: `/work/greet adl` prints `hello adl`.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        result = self.sandbox.run(
            action, cwd="/work", stderr=adl.STDOUT, keep_output=(1900, 1900), output_limit=1 << 20
        )
        seen = "".join(letter for letter in result.stdout_text if letter in CHARACTERS)
        solved = self.sandbox.run(CHECK).success
        info = {"reason": result.reason.value, "returncode": result.returncode}
        return seen[:4000], float(solved), solved, self.steps >= self.max_steps, info

    def close(self) -> None:
        self.sandbox.delete()


def main() -> None:
    env = ShellEnv()
    print(env.reset(seed=1)[0])
    for action in (
        "ls -la",
        "printf '#!/bin/sh\\necho hello $1\\n' > greet",
        "chmod +x greet; ./greet you",
    ):
        seen, reward, terminated, truncated, info = env.step(action)
        print(f"$ {action}\n{seen}-> reward {reward}, {info}")
        if terminated or truncated:
            break
    env.close()


if __name__ == "__main__":
    main()
