"""The seeds' programs: what was damaged when their pages were scraped, how it is repaired, and what waits.

``seeds/damaged`` holds each program as the page has it, ``seeds/repaired`` as its author wrote it. Apart from
indentation and empty lines, which the scraping lost, they differ by the ``EDITS`` below and by nothing else
(a test proves it). What runs is the repaired text with its *import lines* turned by ``translated``.
"""

import re
from pathlib import Path
from typing import NamedTuple

SEEDS = Path(__file__).parent / "seeds"


class Edit(NamedTuple):
    """Lines as they were scraped, as they were written, and why they are taken to be so."""

    damaged: str
    repaired: str
    why: str


class Waiting(NamedTuple):
    """A block of code on a page that does not run here: its first and last line, and what it waits for."""

    first: str
    last: str
    feature: str


LOST_LINE = "a line is missing"
LOST_ELSE = "`else:` is missing"
GLUED = "two lines were glued together"
CLOSING = "closing brackets are missing"
INFO = "`self.info` was taken for the address of a page and removed"
PLACEHOLDER = "a placeholder is filled in"
MAPPING = f"{CLOSING}, and the key of the function that the text names: policy_mapping_fn"

EDITS = {
    "example_env": [
        Edit(
            "RT_MAX = 10",
            "RT_MAX = 10\nMOVE_LF = 0\nMOVE_RT = 1\n"
            "MAX_STEPS = 10\nREWARD_AWAY = -2\nREWARD_STEP = -1\nREWARD_GOAL = MAX_STEPS",
            "two blocks of constants are missing; the printed rewards and lengths tell their values",
        ),
        Edit('"render.modes": ["human"]', '"render.modes": ["human"]\n}', CLOSING),
        Edit(
            "self.init_positions = list(range(self.LF_MIN, self.RT_MAX))",
            "self.init_positions = list(range(self.LF_MIN, self.RT_MAX))\n"
            "self.init_positions.remove(self.goal)",
            f"{LOST_LINE}: the text says that an agent never starts at the goal",
        ),
        Edit(
            "# (e.g., for debugging)",
            "# (e.g., for debugging)\nself.seed()\nself.reset()",
            f"{LOST_LINE}: the text says that both are called",
        ),
        Edit("self.done = False = {}", "self.done = False\nself.info = {}", f"{GLUED}, {INFO}"),
        Edit(
            "self.done = True;\nassert self.action_space.contains(action)",
            "self.done = True;\nelse:\nassert self.action_space.contains(action)",
            LOST_ELSE,
        ),
        Edit(
            "// insert simulation logic to handle an action ... try:\n"
            "assert self.observation_space.contains(self.state)\n"
            "except AssertionError:\n"
            'print("INVALID STATE", self.state)\n'
            "return [self.state, self.reward, self.done,]\n",
            "",
            "the logic that is shown afterwards belongs here; the rest of the method follows it",
        ),
        *[
            edit
            for move, there in (("-= 1", "<"), ("+= 1", ">"))
            for edit in (
                Edit(f"self.position {move}", f"else:\nself.position {move}", LOST_ELSE),
                Edit(
                    f"elif self.position {there} self.goal:\n# moving away from goal\n"
                    "self.reward = self.REWARD_AWAY\n",
                    f"elif self.position {there} self.goal:\n# moving away from goal\n"
                    "self.reward = self.REWARD_AWAY\nelse:\n",
                    LOST_ELSE,
                ),
            )
        ],
        Edit(
            'self.state = self.position["dist"] = self.goal - self.position',
            'self.state = self.position\nself.info["dist"] = self.goal - self.position\n'
            "try:\n"
            "assert self.observation_space.contains(self.state)\n"
            "except AssertionError:\n"
            'print("INVALID STATE", self.state)\n'
            "return [self.state, self.reward, self.done, self.info]",
            f"{GLUED}, {INFO}; then the end of the method, cut out above",
        ),
        Edit(
            's = "position: {:2d} reward: {:2d} info: {}"',
            's = "position: {:2d}  reward: {:2d}  info: {}"',
            "double spaces became single ones; the first line of the printed rollout still has them",
        ),
        Edit(
            "print(s.format(self.state, self.reward,",
            "print(s.format(self.state, self.reward, self.info))",
            INFO,
        ),
        Edit("def close (self):", "def close (self):\npass", f"{LOST_LINE}: the text says `pass`"),
    ],
    "setup": [
        Edit(
            'from setuptools import setupsetup(name="gym_example",',
            'from setuptools import setup\nsetup(name="gym_example",\n'
            'version="0.0.1",\ninstall_requires=["gym"])',
            f"{GLUED}, and the rest is missing",
        )
    ],
    "register": [
        Edit(
            "from gym.envs.registration import registerregister(",
            "from gym.envs.registration import register\nregister(\n"
            'id="example-v0",\nentry_point="gym_example.envs:Example_v0",\n)',
            f"{GLUED}, and the rest is missing; the text names the key, the class and the folder",
        )
    ],
    "envs_init": [],
    "sample": [
        Edit(
            "def run_one_episode (env):",
            "def run_one_episode (env):\nenv.reset()",
            f"{LOST_LINE}: the text says that it resets the environment",
        ),
        Edit("if done:", "if done:\nbreak", LOST_LINE),
        Edit("history = []for _ in range(10000):", "history = []\nfor _ in range(10000):", GLUED),
        Edit(
            "sum_reward = run_one_episode(env)",
            "sum_reward = run_one_episode(env)\nhistory.append(sum_reward)",
            f"{LOST_LINE}: the mean is taken over `history`",
        ),
    ],
    "train": [
        Edit("import rayray.init", "import ray\nray.init", GLUED),
        Edit("as ppoconfig = ppo", "as ppo\nconfig = ppo", GLUED),
        Edit(
            "chkpt_file =\nn + 1,",
            "chkpt_file = agent.save(chkpt_root)\nprint(status.format(\nn + 1,\n"
            'result["episode_reward_min"],\nresult["episode_reward_mean"],\nresult["episode_reward_max"],\n'
            'result["episode_len_mean"],\nchkpt_file\n))',
            "all that looks like an address is missing; the printed lines show what was there",
        ),
        Edit("import gymagent.restore", "import gym\nagent.restore", GLUED),
        Edit(
            "sum_reward += reward",
            "sum_reward += reward\nenv.render()",
            f"{LOST_LINE}: the text says that the state is rendered",
        ),
    ],
    "corridor": [
        Edit("return 0, 1.0, True, {}", "return 0, 1.0, True, {}\nelse:", LOST_ELSE),
        Edit(
            '"corridor_length": 5,',
            '"corridor_length": 5,\n},\n}\nray.init()',
            f"{CLOSING}, and the line that `import ray` is for",
        ),
        Edit("for _ in range(3):", "for _ in range(3):\nprint(trainer.train())", LOST_LINE),
    ],
    "my_env": [
        Edit("<gym.Space>", "gym.spaces.Discrete(3)", PLACEHOLDER),
        Edit("<gym.Space>", "gym.spaces.Box(-1.0, 1.0, (2,))", PLACEHOLDER),
        Edit("<obs>", "self.observation_space.sample()", PLACEHOLDER),
        Edit(
            "<obs>, <reward: float>, <done: bool>, <info: dict>",
            "self.observation_space.sample(), float(action), action == 2, {}",
            PLACEHOLDER,
        ),
        Edit(
            "trainer = ppo.PPOTrainer(env=MyEnv",
            "ray.init()\ntrainer = ppo.PPOTrainer(env=MyEnv",
            f"{LOST_LINE}, which `import ray` is for",
        ),
        Edit(
            '"env_config": {},  # config to pass to env class',
            '"env_config": {},  # config to pass to env class\n})',
            CLOSING,
        ),
        Edit("while True:", "while True:\nprint(trainer.train())", LOST_LINE),
    ],
    "env_creator": [Edit("MyEnv(...)", "MyEnv(env_config)", PLACEHOLDER)],
    "multi_env": [],
    "pettingzoo": [],
    "traffic": [
        Edit('> print(env.reset())\n"car_1"', '> print(env.reset())\n{\n"car_1"', LOST_LINE),
        Edit('"traffic_light_1": [[...]],', '"traffic_light_1": [[...]],\n}', LOST_LINE),
    ],
    "two_cars": [
        Edit("lambda agent_id:", '},\n"policy_mapping_fn":\nlambda agent_id:', MAPPING),
        Edit(
            "# Randomly choose from car policies",
            "# Randomly choose from car policies\n},\n})",
            CLOSING,
        ),
        Edit("while True:", "while True:\nprint(trainer.train())", LOST_LINE),
    ],
    "groups": [
        Edit(
            "with_agent_groups(", "with_agent_groups(\nself,", f"{LOST_LINE}: it is a method, and uses `self`"
        ),
        Edit("... })", '... })\n"""', "the closing quotes are missing"),
    ],
    "policy_server": [
        Edit(
            "PolicyServerInput(ioctx, SERVER_ADDRESS, SERVER_PORT)",
            "PolicyServerInput(ioctx, SERVER_ADDRESS, SERVER_PORT)\n),",
            CLOSING,
        ),
        Edit('"input_evaluation": [],', '"input_evaluation": [],\n}', CLOSING),
    ],
    "policy_client": [],
    "centralized_critic": [
        Edit("for agent_id in agents],", "for agent_id in agents],\naxis=1)", CLOSING),
    ],
    "hierarchy": [
        *[Edit("(custom_policy or None, ...)", "(None, None, None, {})", PLACEHOLDER)] * 3,
        Edit("lambda agent_id:", '},\n"policy_mapping_fn":\nlambda agent_id:', MAPPING),
        Edit('else "top_level"', 'else "top_level",', "a comma is missing: the next key follows"),
        Edit('["top_level"],', '["top_level"],\n},', CLOSING),
    ],
}
"""For each program its edits, in the order of the text."""

PRINTED: dict[str, list[str]] = {}
"""What programs printed in this test run, line by line; shown at its end."""

WAITING = {
    "variables shared between policies": Waiting(
        "with tf.variable_scope(",
        "<create the shared layers here>",
        "nothing: it is TensorFlow's way to say what PPOConfig(share=...) says here",
    ),
    "server and client on the command line": Waiting(
        "# Start the server by running:",
        "Sending batch of 1000 steps back to server.",
        "nothing: it is what one sees of two commands, which examples/serving has",
    ),
}
"""Blocks that do not run yet, and what they wait for. Each leaves this table with its feature."""


def damaged(name):
    return _lines((SEEDS / "damaged" / f"{name}.txt").read_text())


def repaired(name):
    return (SEEDS / "repaired" / f"{name}.txt").read_text()


def without_indentation(text):
    return _lines(text)


def edited(name):
    """The damaged program after its edits: each is found after the one before it."""
    text, at = damaged(name), 0
    for edit in EDITS[name]:
        found = text.find(edit.damaged, at)
        assert found >= 0, f"{name}: there is no {edit.damaged!r} after {text[:at][-60:]!r}"
        text = text[:found] + edit.repaired + text[found + len(edit.damaged) :]
        at = found + len(edit.repaired)
    return text


def translated(source):
    """The one rule for import lines: ``gym`` and ``ray`` are found under ``steppe.compat``."""
    source = re.sub(r"^(\s*)from (gym|ray)\b", r"\1from steppe.compat.\2", source, flags=re.MULTILINE)
    source = re.sub(
        r"^(\s*)import ((?:gym|ray)\.\S+ as)", r"\1import steppe.compat.\2", source, flags=re.MULTILINE
    )
    return re.sub(
        r"^(\s*)import ((?:gym|ray)(?:, (?:gym|ray))*)$",
        r"\1from steppe.compat import \2",
        source,
        flags=re.MULTILINE,
    )


def program(name):
    return translated(repaired(name))


def _lines(text):
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())
