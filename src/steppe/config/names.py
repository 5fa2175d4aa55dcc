"""Names that fields had before, as programs of other libraries still write them."""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "callbacks": "callbacks_class",
    "evaluation_num_workers": "evaluation_num_env_runners",
    "evaluation_num_episodes": "evaluation_duration",
    "horizon": "max_episode_steps",
    "lambda": "lambda_",
    "metrics_smoothing_episodes": "metrics_num_episodes_for_smoothing",
    "min_iter_time_s": "min_time_s_per_iteration",
    "min_sample_timesteps_per_reporting": "min_sample_timesteps_per_iteration",
    "min_time_s_per_reporting": "min_time_s_per_iteration",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_rollout_workers": "num_env_runners",
    "num_sgd_iter": "num_epochs",
    "num_workers": "num_env_runners",
    "sample_batch_size": "rollout_fragment_length",
    "sgd_minibatch_size": "minibatch_size",
    "timesteps_per_iteration": "min_sample_timesteps_per_iteration",
    "train_batch_size_per_learner": "train_batch_size",
}
"""Old names of fields, in every algorithm that has the field."""

SCHEDULE_ALIASES: dict[str, str] = {"lr_schedule": "lr", "entropy_coeff_schedule": "entropy_coeff"}
"""Old names under which a schedule used to stand beside the constant; given, it wins over the constant."""

GROUPS: tuple[str, ...] = ("model", "multiagent")
"""Old keys that hold a dict of fields."""

NO_EFFECT: dict[str, str] = {
    "eager_tracing": "there is one framework, JAX",
    "framework": "there is one framework, JAX",
    "local_tf_session_args": "there is one framework, JAX",
    "log_sys_usage": "the run's record always holds it",
    "num_cpus_for_driver": "nothing is reserved in one process",
    "num_cpus_per_worker": "nothing is reserved in one process",
    "num_gpus": "JAX uses the accelerator that it finds",
    "num_gpus_per_worker": "acting needs no accelerator",
    "simple_optimizer": "there is one optimizer",
    "tf_session_args": "there is one framework, JAX",
}
"""Old keys that are accepted and change nothing, with the reason."""
