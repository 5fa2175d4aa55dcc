from gymnasium.envs.registration import register

# Gymnasium's wrappers expect its own interface; without them gym.make() hands out the env as it is written.
register(
    id="example-v0",
    entry_point="gym_example.envs:Example_v0",
    disable_env_checker=True,
    order_enforce=False,
)
