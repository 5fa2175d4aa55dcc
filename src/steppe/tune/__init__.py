"""Search for good settings: many short trainings, each told what those before it found.

    from steppe.tune import loguniform, tune

    found = tune(steppe.PPOConfig(env="CartPole-v1"), {"lr": loguniform(1e-5, 1e-2)}, steps=50_000)
    found.best.settings

Needs Optuna, which the extra ``steppe[tune]`` installs. See docs/tuning.md.
"""

from steppe.tune.search import PRUNERS as PRUNERS
from steppe.tune.search import Search as Search
from steppe.tune.search import Trial as Trial
from steppe.tune.search import read_search as read_search
from steppe.tune.search import tune as tune
from steppe.tune.space import choice as choice
from steppe.tune.space import lograndint as lograndint
from steppe.tune.space import loguniform as loguniform
from steppe.tune.space import parse as parse
from steppe.tune.space import randint as randint
from steppe.tune.space import uniform as uniform
