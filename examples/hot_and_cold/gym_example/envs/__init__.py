from gym_example.envs.example_env import Example_v0 as Example_v0
