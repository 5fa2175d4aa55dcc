"""One policy for an ensemble of envs: which one a copy is depends on its place in the run."""

import gymnasium

import steppe

HALF_LENGTHS = (0.25, 0.5, 1.0)  # metres: half of the pole


class MultiEnv(gymnasium.Env):
    """CartPole with a short, a normal or a long pole."""

    def __init__(self, env_config):
        self.env = gymnasium.make("CartPole-v1")
        self.kind = (env_config.worker_index + env_config.vector_index) % len(HALF_LENGTHS)
        cart = self.env.unwrapped
        cart.length = HALF_LENGTHS[self.kind]
        cart.polemass_length = cart.masspole * cart.length
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        return self.env.step(action)

    def close(self):
        self.env.close()


class ByKind(steppe.Callbacks):
    """The reward for each kind of pole."""

    def on_episode_end(self, *, base_env, episode):
        kind = base_env.get_sub_environments()[episode.env_index].kind
        episode.custom_metrics[f"pole_{HALF_LENGTHS[kind]}"] = episode.total_reward


def config():
    steppe.register_env("multienv", lambda env_config: MultiEnv(env_config))
    return steppe.PPOConfig(env="multienv", callbacks_class=ByKind, seed=0)


def main(iterations=10, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            means = {name: mean for name, mean in result["custom_metrics"].items() if name.endswith("_mean")}
            print(result["timesteps_total"], means)
    return result


if __name__ == "__main__":
    main()
