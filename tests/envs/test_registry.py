"""Every spelling of `env` builds what it says, with the right arguments; what cannot fit says what would."""

import pickle
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.envs.context import EnvContext
from steppe.envs.registry import build, check, creator_of, env_name, make, register_env
from steppe.errors import ConfigError, SpaceError


class Corridor(gymnasium.Env):
    made = 0

    def __init__(self, env_config):
        type(self).made += 1
        self.ctx = env_config
        self.observation_space, self.action_space = spaces.Discrete(9), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 1, 1.0, False, False, {}


class Keywords(Corridor):
    def __init__(self, size=5, *, slip=0.0):
        super().__init__({"size": size, "slip": slip})


class Nothing(Corridor):
    def __init__(self):
        super().__init__(None)


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr("steppe.envs.registry.REGISTERED", {})


def test_the_context_is_a_dict_with_a_place():
    ctx = EnvContext({"a": 1}, worker_index=2, vector_index=3, num_workers=4)
    assert ctx == {"a": 1}
    assert (ctx.worker_index, ctx.vector_index, ctx.num_workers, ctx.remote) == (2, 3, 4, False)
    ctx.set_defaults({"a": 9, "b": 2})
    assert ctx == {"a": 1, "b": 2}
    copy = ctx.copy_with_overrides(vector_index=0, remote=True)
    assert copy == ctx
    assert copy is not ctx
    assert (copy.worker_index, copy.vector_index, copy.num_workers, copy.remote) == (2, 0, 4, True)
    assert ctx.copy_with_overrides({"c": 3}) == {"c": 3}
    again = pickle.loads(pickle.dumps(copy))
    assert again == copy
    assert (again.vector_index, again.num_workers, again.remote) == (0, 4, True)
    assert "vector_index=0" in repr(copy)
    assert EnvContext() == {}


def test_a_class_gets_the_context():
    env = make(Corridor, {"corridor_length": 5})
    assert env.ctx == {"corridor_length": 5}
    assert (env.ctx.worker_index, env.ctx.vector_index) == (0, 0)


def positional_only(anything, /):
    return Corridor(anything)


def optional_config(size=3, config=None):
    return Corridor(config)


def optional_ctx(*, ctx=None):
    return Corridor(ctx)


@pytest.mark.parametrize(
    "creator", [positional_only, optional_config, optional_ctx, lambda c, extra=1: Corridor(c)]
)
def test_functions_that_take_a_context(creator):
    env = make(creator, {"a": 1})
    assert env.ctx == {"a": 1}
    assert isinstance(env.ctx, EnvContext)


def test_other_parameters_are_filled_by_name():
    assert make(Keywords, {"size": 7, "slip": 0.1}).ctx == {"size": 7, "slip": 0.1}
    assert make(Keywords).ctx == {"size": 5, "slip": 0.0}
    assert make(lambda width, height: Corridor((width, height)), {"height": 1, "width": 2}).ctx == (2, 1)
    assert make(lambda **options: Corridor(options), {"x": 1}).ctx == {"x": 1}
    assert make(Nothing).ctx is None


@pytest.mark.parametrize(
    ("creator", "config", "says"),
    [
        (Keywords, {"sizze": 7}, r"Keywords\(size=5, \*, slip=0.0\).*'sizze'"),
        (Nothing, {"a": 1}, r"Nothing\(\).*'a'"),
        (lambda a, b: None, {"a": 1}, r"env\(a, b\).*'b'"),
        (lambda config, b: None, {"a": 1}, r"env\(config, b\)"),
        ("CartPole-v1", {"lenght": 1}, r"CartPole-v1\(.*render_mode.*'lenght'"),
    ],
)
def test_what_cannot_fit_shows_the_signature(creator, config, says):
    with pytest.raises(ConfigError, match=says):
        make(creator, config)


def test_a_registered_name_wins_and_can_be_replaced():
    register_env("CartPole-v1", lambda ctx: Corridor({"mine": 1}))
    assert make("CartPole-v1").ctx == {"mine": 1}
    register_env("CartPole-v1", Nothing)
    assert make("CartPole-v1").ctx is None
    assert steppe.make("CartPole-v1").ctx is None
    for bad in ((3, Corridor), ("", Corridor), ("x", 3)):
        with pytest.raises(ConfigError, match="register_env"):
            register_env(*bad)


def test_a_gymnasium_id_gets_keywords():
    env = make("Pendulum-v1", {"g": 3.0, "max_episode_steps": 5})
    assert env.unwrapped.g == 3.0
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(5)] == [False] * 4 + [True]


def test_a_legacy_env_registered_with_gymnasium():
    class Old(Corridor):
        def __init__(self):
            super().__init__(None)

        def reset(self):
            return 0

        def step(self, action):
            return [1, 1.0, False, {}]

    gymnasium.register("SteppeOld-v0", Old, max_episode_steps=2)
    try:
        env = build("SteppeOld-v0", num_envs=2, run_seed=0)
        env.poll()
        for slots in ([0, 1], [0, 1]):
            env.send_actions(np.array(slots), np.zeros(2, np.int64))
            (step,) = env.poll()
    finally:
        del gymnasium.registry["SteppeOld-v0"]
    assert step.truncated.tolist() == [False, False, True, True]


FILE = """
    import gymnasium
    import sibling_of_{name}
    from gymnasium import spaces

    instance = 3

    class Maze(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)
        size = sibling_of_{name}.SIZE

        def __init__(self, env_config):
            self.ctx = env_config

        def reset(self, *, seed=None, options=None):
            return 0, {{}}

        def step(self, action):
            return 0, 0.0, False, False, {{}}

    a_maze = Maze(None)
"""


@pytest.fixture
def file(tmp_path):
    name = tmp_path.name.replace("-", "_")
    (tmp_path / f"sibling_of_{name}.py").write_text("SIZE = 11\n")
    path = tmp_path / f"mazes_{name}.py"
    path.write_text(textwrap.dedent(FILE.format(name=name)))
    return path


def test_a_file_is_imported_with_its_siblings(file, monkeypatch):
    before = list(sys.path)
    env = make(f"{file}:Maze", {"a": 1})
    assert (env.ctx, env.size) == ({"a": 1}, 11)
    assert sys.path == before
    assert type(make(f"{file}:Maze")) is type(env)
    monkeypatch.chdir(file.parent)
    assert type(make(f"{file.name}:Maze")) is type(env)


def test_a_module_is_imported(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    assert make(f"{file.stem}:Maze").size == 11
    with pytest.raises(ConfigError, match="'Mazze' is not in there; there is Maze"):
        make(f"{file.stem}:Mazze")
    with pytest.raises(ConfigError, match="name a class or a function"):
        make(f"{file.stem}:instance")
    with pytest.raises(ConfigError, match="name a class or a function"):
        make(f"{file.stem}:a_maze")


def test_a_gymnasium_id_with_a_module_before_it():
    assert make("gymnasium.envs.classic_control:CartPole-v1").spec.id == "CartPole-v1"


def test_a_file_or_module_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r'is a file: add the class or function in it, "maze\.py:Class"'):
        make("maze.py")
    with pytest.raises(ConfigError, match=r"no file .*nothing\.py"):
        make(f"{tmp_path}/nothing.py:Maze")
    with pytest.raises(ConfigError, match="no module 'steppe_nothing'"):
        make("steppe_nothing.envs:Maze")
    (tmp_path / "breaks.py").write_text("import steppe_not_installed\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="steppe_not_installed"):
            make(f"{tmp_path}/breaks.py:Maze")


def test_an_import_that_fails_inside_a_module_is_the_user_s(tmp_path, monkeypatch):
    (tmp_path / "steppe_breaks.py").write_text("import steppe_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="steppe_not_installed"):
        make("steppe_breaks:Maze")


def test_unknown_names_have_suggestions():
    register_env("corridor", Corridor)
    with pytest.raises(ConfigError, match="did you mean 'corridor'"):
        make("coridor")
    with pytest.raises(ConfigError, match="did you mean 'CartPole-v"):
        make("CartPole")
    with pytest.raises(ConfigError, match=r"steppe\.register_env"):
        make("qqqqqqqqqqqq")


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (None, "env is None"),
        (3, "give the class or a function"),
        (Corridor({}), "give the class or a function"),
        (lambda: None, "env made None"),
        (lambda: Corridor, "that is not an env"),
        (lambda: object(), "that is not an env"),
    ],
)
def test_things_that_are_no_env(thing, says):
    with pytest.raises(ConfigError, match=says):
        make(thing)


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("ALE/Pong-v5", "ALE-Pong-v5"),
        ("module:Env-v0", "Env-v0"),
        ("some/file.py:Maze", "Maze"),
        (Corridor, "Corridor"),
        (optional_ctx, "optional_ctx"),
        (lambda ctx: None, "env"),
        (None, "external"),
        ("../..", "env"),
    ],
)
def test_names_for_folders(env, name):
    assert env_name(env) == name


def test_a_module_is_imported_for_the_name_that_it_registers(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "has_mazes.py").write_text(
        "import steppe\n"
        "from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv as Maze\n"
        "steppe.register_env('Maze-v0', CartPoleEnv)\n"
        "steppe.register_env('Maze', CartPoleEnv)\n"
    )
    assert type(make("has_mazes:Maze-v0").unwrapped).__name__ == "CartPoleEnv"
    assert type(make("has_mazes:Maze").unwrapped).__name__ == "PendulumEnv", "what is in it comes first"


def test_a_registered_name_with_a_colon_is_a_name_as_a_whole():
    register_env("a:b", Corridor)
    assert env_name("a:b") == "a-b"


def test_exactly_m_envs_are_built_each_with_its_place_and_seed():
    Corridor.made, contexts = 0, []

    def creator(ctx):
        contexts.append(ctx)
        return Corridor(ctx)

    envs = [build(creator, {"a": 1}, num_envs=3, worker_index=w, num_workers=2, run_seed=5) for w in (1, 2)]
    assert Corridor.made == 6
    assert [(c.worker_index, c.vector_index, c.num_workers) for c in contexts] == [
        (w, i, 2) for w in (1, 2) for i in range(3)
    ]
    assert all(ctx == {"a": 1} for ctx in contexts)
    assert contexts[0] is not contexts[1]
    seeds = [info.seed for env in envs for info in env.poll()[0].opened]
    assert len(set(seeds)) == 6
    again = build(creator, num_envs=3, worker_index=9, seed_runner=1, run_seed=5)
    assert [info.seed for info in again.poll()[0].opened] == seeds[:3]
    other = build(creator, num_envs=3, worker_index=1, run_seed=6)
    assert not {info.seed for info in other.poll()[0].opened} & set(seeds)


def test_given_spaces_win_and_missing_ones_are_named():
    class Bare(Corridor):
        def __init__(self):
            pass

    with pytest.raises(SpaceError, match="Bare has no observation_space"):
        build(Bare, num_envs=1, run_seed=0)
    env = build(
        Bare, num_envs=1, run_seed=0, observation_space=spaces.Discrete(3), action_space=spaces.Discrete(2)
    )
    assert env.poll()[0].obs.tolist() == [0]


def test_what_the_constructor_raises_comes_out_and_the_others_are_closed():
    mistake, closed = KeyError("size"), []

    class Fails(Corridor):
        def __init__(self, env_config):
            super().__init__(env_config)
            if env_config.vector_index == 2:
                raise mistake

        def close(self):
            closed.append(self.ctx.vector_index)

    with pytest.raises(KeyError) as caught:
        build(Fails, num_envs=4, run_seed=0)
    assert caught.value is mistake
    assert caught.value.__notes__ == ["steppe: while building Fails, runner 0, env 2"]
    assert sorted(closed) == [0, 1]


def test_an_ensemble_may_differ_in_all_but_its_spaces():
    class Wide(Corridor):
        def __init__(self, env_config):
            super().__init__(env_config)
            self.observation_space = spaces.Discrete(99)

    with pytest.raises(ConfigError, match=r"env 1 \(Wide\) has observation_space Discrete\(99\)"):
        build(lambda ctx: (Wide if ctx.vector_index else Corridor)(ctx), num_envs=2, run_seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        build(Corridor, num_envs=0, run_seed=0)


def test_a_creator_is_looked_up_before_anything_is_built():
    Corridor.made = 0
    creator = creator_of(Corridor)
    assert Corridor.made == 0
    assert creator(EnvContext({"b": 1})).ctx == {"b": 1}


@pytest.mark.parametrize(
    ("env", "config", "says"),
    [
        ("CartPole-v9", {}, "no env named 'CartPole-v9'; did you mean 'CartPole-v1'"),
        ("CartPole-v1", {"lenght": 1}, r"CartPole-v1\(.*render_mode.*'lenght'"),
        (Keywords, {"sizze": 7}, r"Keywords\(size=5, \*, slip=0.0\).*'sizze'"),
        (Keywords, {1: 7, "size": 3}, r"Keywords\(.*keywords must be strings.*has \[1, 'size'\]"),
        (Nothing, {"a": 1}, r"Nothing\(\).*'a'"),
        (Corridor(None), {}, "give the class or a function"),
        (None, {}, "env is None"),
    ],
)
def test_a_check_finds_what_building_would(env, config, says):
    Corridor.made = Keywords.made = 0
    for call in (check, make):
        with pytest.raises(ConfigError, match=says):
            call(env, config)
    assert (Corridor.made, Keywords.made) == (0, 0)


@pytest.mark.parametrize(
    ("env", "config"),
    [("CartPole-v1", {"max_episode_steps": 3}), (Keywords, {"size": 2}), (Corridor, {1: 2}), (Nothing, None)],
)
def test_a_check_of_what_fits_builds_nothing(env, config):
    Corridor.made = Keywords.made = Nothing.made = 0
    check(env, config)
    assert (Corridor.made, Keywords.made, Nothing.made) == (0, 0, 0)


def test_what_an_env_does_to_its_config_is_its_own_business():
    class Greedy(Corridor):
        def __init__(self, env_config):
            super().__init__(env_config)
            env_config["map"]["size"] += 1
            env_config["seen"].append(env_config.vector_index)
            env_config["pair"][0].append(1)

    shared, seen = object(), []
    config = {"map": {"size": 0}, "seen": [], "pair": ([],), "shared": shared}
    build(Greedy, config, num_envs=3, run_seed=0, created=lambda env, ctx: seen.append(dict(ctx)))
    one = {"map": {"size": 1}, "pair": ([1],), "shared": shared}
    assert seen == [{**one, "seen": [i]} for i in range(3)]
    assert config == {"map": {"size": 0}, "seen": [], "pair": ([],), "shared": shared}
    make(Greedy, config)
    assert config["map"] == {"size": 0}
