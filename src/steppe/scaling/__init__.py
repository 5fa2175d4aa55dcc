"""How far a run goes with more runners: its costs measured here, a model of them, and what it predicts.

    from steppe.scaling import study

    record = study(steppe.PPOConfig(env="Pendulum-v1", num_envs_per_env_runner=64), seconds=5)
    record["points"]["sampling"]

:mod:`steppe.scaling.model` has the equations. See docs/scale.md.
"""

from steppe.scaling.studying import study as study
