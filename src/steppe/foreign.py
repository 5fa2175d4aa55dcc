"""Folders that other libraries wrote, told by the names in them; nothing is opened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_RLLIB_NAMES = frozenset(["rllib_checkpoint.json", "algorithm_state.pkl", ".is_checkpoint", ".tune_metadata"])
_RLLIB_FILE = re.compile(r"checkpoint-\d+(\.tune_metadata)?")
_RLLIB_FOLDER = re.compile(r"checkpoint_\d+|learner|learner_group|env_runner|policies")
_PICKLE_SUFFIXES = frozenset([".pkl", ".pickle", ".pt", ".pth", ".joblib"])


def what_it_is(path: Path) -> str:
    """A sentence about a folder or file that others wrote, and what to do; "" if nothing tells."""
    names = list(_names(path))
    rllib = [name for name in names if _is_rllib(name)]
    pickles = [name for name in names if _is_pickle(name)]
    if rllib:
        tune = rllib[0].startswith("checkpoint_")
        kind = f"{'a folder of Tune with RLlib checkpoints' if tune else 'an RLlib checkpoint'} ({rllib[0]})"
    elif pickles:
        kind = f"made of pickle files ({pickles[0]})"
    else:
        return ""
    return (
        f"{path} is {kind}. steppe never unpickles, because a pickle can run any code: "
        "train again, or export the weights with the program that wrote it"
    )


def _names(path: Path) -> Iterator[str]:
    """Files by name, and those in the folders that RLlib makes as ``folder/name``."""
    if not path.is_dir():
        yield path.name
        return
    for entry in sorted(path.iterdir()):
        if not entry.is_dir():
            yield entry.name
        elif _RLLIB_FOLDER.fullmatch(entry.name):
            yield from (f"{entry.name}/{inner.name}" for inner in sorted(entry.iterdir()) if inner.is_file())


def _is_rllib(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return file in _RLLIB_NAMES or bool(_RLLIB_FILE.fullmatch(file)) or (bool(folder) and _is_pickle(file))


def _is_pickle(name: str) -> bool:
    return Path(name).suffix in _PICKLE_SUFFIXES
