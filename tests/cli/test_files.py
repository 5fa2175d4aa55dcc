"""A file of settings is read as it was meant, or refused with its line; the config checks what it says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.cli.files import FileSettings, read_settings
from steppe.cli.flags import merged
from steppe.errors import ConfigError

TUNED = """
corridor:
    run: PPO
    env: CartPole-v1
    stop: {timesteps_total: 2e5, episode_reward_mean: -1.5, time_total_s: 90, training_iteration: 7}
    checkpoint_freq: 5
    checkpoint_at_end: true
    num_samples: 1
    config:
        num_sgd_iter: 2
        model: {fcnet_hiddens: [8, 8]}
"""


@pytest.fixture
def written(tmp_path):
    def write(text, name="my.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path):
    with pytest.raises(ConfigError) as error:
        read_settings(path)
    return str(error.value).replace(f"{path.parent}/", "")


SAME = {
    "a.toml": 'algo = "PPO"\nlr = 1e-3\n[env_config]\nsize = 5\n[stop]\ntotal_steps = 1000\n',
    "a.yaml": "algo: PPO\nlr: 1e-3\nenv_config: {size: 5}\nstop: {total_steps: 1e3}\n",
    "a.yml": "algo: PPO\nlr: 0.001\nenv_config:\n  size: 5\nstop:\n  timesteps_total: 1000\n",
    "a.JSON": '{"algo": "PPO", "lr": 1e-3, "env_config": {"size": 5}, "stop": {"total_steps": 1000}}',
}


@pytest.mark.parametrize("name", SAME)
def test_every_kind_of_file_says_the_same(written, name):
    expected = FileSettings("PPO", {"total_steps": 1000}, {"lr": 0.001, "env_config": {"size": 5}})
    assert read_settings(written(SAME[name], name)) == expected


def test_a_file_may_be_empty_and_may_begin_with_a_byte_order_mark(written):
    for name in ("a.toml", "a.yaml"):
        assert read_settings(written("", name)) == FileSettings(None, {}, {})
    assert read_settings(written("\ufefflr: 1.0")).settings == {"lr": 1.0}


def test_a_tuned_example(written):
    assert read_settings(written(TUNED)) == FileSettings(
        "PPO",
        {"total_steps": 200_000, "stop_reward": -1.5, "stop_time": 90.0, "stop_iters": 7},
        {
            "num_sgd_iter": 2,
            "model": {"fcnet_hiddens": [8, 8]},
            "env": "CartPole-v1",
            "checkpoint_freq": 5,
        },
    )
    assert read_settings(written("x: {run: PPO}")) == FileSettings("PPO", {}, {})


def test_an_env_may_have_any_argument(written):
    text = "env_config: {run: far, config: 3, stop: now}"
    assert read_settings(written(text)).settings == {"env_config": {"run": "far", "config": 3, "stop": "now"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e6", 1e6),
        ("-2E+3", -2000.0),
        ("2.5e3", 2500.0),
        (".5e1", 5.0),
        ("1_0e1", 100.0),
        ("5", 5),
        ("0.5", 0.5),
        ("[[0, 1e-3], [1e6, 0]]", [[0, 1e-3], [1e6, 0]]),
        ("'1e-3'", "1e-3"),
        ("e-3", "e-3"),
        ("1e", "1e"),
        ("v1e3", "v1e3"),
        ("1e3x", "1e3x"),
        ("~", None),
    ],
)
def test_numbers_of_yaml(written, text, value):
    read = read_settings(written(f"x: {text}")).settings["x"]
    assert (read, type(read)) == (value, type(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_comes_back(tmp_path_factory, x):
    path = tmp_path_factory.getbasetemp() / "numbers.yaml"
    path.write_text(f"x: {x!r}\ny: {x:e}\n")
    assert read_settings(path).settings == {"x": x, "y": float(f"{x:e}")}


TEXT = st.text("abe019+-.:#'\" é{[~")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, PLAIN, max_size=3))
def test_json_is_read_alike_under_both_names(tmp_path_factory, content):
    """JSON is YAML too: its numbers are numbers there, and what it quotes stays text."""
    for name in ("x.yaml", "x.json"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_text(json.dumps({"env_config": content}, ensure_ascii=False), encoding="utf-8")
        read = read_settings(path).settings["env_config"]
        assert json.dumps(read) == json.dumps(content)  # 1.0 is not 1 there


# --- what is refused --------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_or_of_another_kind(written, tmp_path):
    written("", "tuned.yaml")
    assert refused(tmp_path / "tunde.yaml").startswith("tunde.yaml: no such file. Did you mean ")
    assert refused(tmp_path / "tunde.yaml").endswith("tuned.yaml?")
    assert refused(tmp_path / "zzz.toml") == "zzz.toml: no such file."
    assert refused(tmp_path / "nowhere" / "a.toml").endswith("no such file.")
    assert refused(written("", "a.ini")) == "a.ini: a file of settings ends in .toml, .yaml, .yml, .json"
    (tmp_path / "folder.toml").mkdir()
    assert refused(tmp_path / "folder.toml") == "folder.toml is a folder; --config takes a file"
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")
    assert refused(tmp_path / "bytes.toml").startswith("bytes.toml is no text in UTF-8: ")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.toml", "lr = 1\nlr = \n", 2),
        ("a.toml", "lr = 1\n\nx = [1,", 3),
        ("a.toml", "lr = 1\nlr = 2\n", 2),
        ("a.toml", "x = '", 1),
        ("a.yaml", "lr: 1\nmodel: {a: [1}\n", 2),
        ("a.yaml", "lr: 1\nseed: 1\n'lr': 2\n", 3),
        ("a.yaml", "lr: 1\n\tx: 2\n", 2),
        ("a.yaml", "lr: 1\nx: !!python/object/apply:os.system ['true']\n", 2),
        ("a.json", '{"lr": 1,\n"x": }', 2),
    ],
)
def test_bad_syntax_names_its_line(written, name, text, line):
    said = refused(written(text, name))
    assert said.startswith(f"{name}:{line}: ")
    assert len(said) > len(f"{name}:{line}: ") + 5
    assert "\n" not in said


def test_a_key_that_stands_twice_is_named(written):
    twice = "x:\n  run: PPO\n  config:\n    model: {a: 1}\n    lr: 1\n    model: {b: 2}\n"
    assert refused(written(twice)) == "my.yaml:6: 'model' stands here and on line 4; keep one"
    assert refused(written("env_config:\n- {a: 1, a: 1}")).startswith("my.yaml:2: 'a' stands here and on")
    text = '{"env_config": {"lr": 0.1, "lr": 0.2}}'
    assert refused(written(text, "a.json")) == "a.json: 'lr' stands twice, 0.1 and 0.2; keep one"


def test_anchors_and_what_they_merge_are_no_keys_twice(written):
    text = """
base: &base {size: 1, slip: 2}
far: &far {<<: *base, size: 3}
env_config: {<<: *far, slip: 4}
again: *far
<<: *far
"""
    settings = read_settings(written(text)).settings
    assert settings["env_config"] == {"size": 3, "slip": 4}
    assert settings["again"] == {"size": 3, "slip": 2}
    assert settings["slip"] == 2
    loop = written("env_config:\n  x: &me {a: [*me]}")
    assert refused(loop) == "my.yaml:2: this holds an alias of itself"


def test_aliases_of_aliases_are_looked_at_once(written):
    rows = "\n".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
    assert len(read_settings(written(f"env_config:\n  a0: &a0 [1]\n{rows}")).settings["env_config"]) == 30


def test_keys_need_not_be_text(written):
    assert read_settings(written("env_config: {1: a, 2: b}")).settings == {"env_config": {1: "a", 2: "b"}}


def test_other_faults_of_a_text_are_said_without_a_line(written):
    assert refused(written("x: 2020-13-45")) == "my.yaml: month must be in 1..12"
    assert refused(written("x: \x00")).startswith("my.yaml: unacceptable character")
    assert refused(written("- lr")) == "my.yaml holds a list, not settings by name"
    assert refused(written("null", "a.json")) == "a.json holds a NoneType, not settings by name"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("algo: 3", "my.yaml: algo=3 must be the name of an algorithm"),
        ("x: {run: 3}", "my.yaml: x.run=3 must be the name of an algorithm"),
        ("stop: {timesteps_totl: 5}", "unknown key stop.timesteps_totl. Did you mean 'timesteps_total'?"),
        ("x: {run: PPO, stop: {zzz: 5}}", "unknown key x.stop.zzz. Known are total_steps, timesteps_total,"),
        ("x: {run: PPO, confg: {}}", "unknown key x.confg. Did you mean 'config'?"),
        ("x: {run: PPO, config: 5}", "x.config=5 must hold settings by name"),
        ("x: {run: PPO, num_samples: 3}", "x.num_samples=3: one run is trained at a time"),
        ("x: {run: PPO}\ny: {run: PPO}", "one experiment is trained at a time, and here are x, y; keep one"),
        ("x: {run: PPO}\nlr: 5", "here are x, lr; keep one"),
        ("x: {env: a, config: {env: b}}", "x.env='a' and x.config.env='b' disagree; keep one"),
        (
            "config: {lr: 1}",
            "config at the top: write the settings themselves there, beside algo and stop; or",
        ),
        ("run: PPO\nenv: E-v0", "run at the top: write the settings themselves there, beside algo and stop"),
        ("run: PPO\nconfig: {lr: 1}", "run and config at the top: write the settings themselves there"),
        (
            "x: {run: PPO, config: {lr: {grid_search: [1, 2]}}}",
            "lr={'grid_search': [1, 2]}: one run has one value",
        ),
        ("env_config: {size: {grid_search: [1, 2]}}", "env_config.size={'grid_search': [1, 2]}: one run has"),
        ("stop: 5", "stop=5 must be a table"),
        ("stop: {timesteps_total: 1.5}", "stop.timesteps_total: '1.5' is not a count"),
        ("stop: {timesteps_total: true}", "stop.timesteps_total: 'True' is not a count"),
        ("stop: {episode_reward_mean: .nan}", "stop.episode_reward_mean: 'nan' is not a number"),
        ("stop: {time_total_s: soon}", "stop.time_total_s: 'soon' is not a time such as"),
        (
            "stop: {total_steps: 5, timesteps_total: 6}",
            "stop says two things about total_steps, 5 and 6; keep one",
        ),
    ],
)
def test_what_it_says_wrongly_is_an_instruction(written, text, said):
    assert said in refused(written(text))
    assert refused(written(text)).startswith("my.yaml: ")


# --- a run's own file -------------------------------------------------------------------------------------


def test_the_settings_of_a_run_leave_its_folder_out(trained):
    found = {name: read_settings(trained / name) for name in ("config.toml", "params.json")}
    assert found["config.toml"] == found["params.json"]
    assert found["config.toml"].algo == "ppo"
    assert found["config.toml"].run == trained
    assert found["config.toml"].settings["train_batch_size"] == 64
    assert "run_dir" not in found["config.toml"].settings
    with pytest.raises(ConfigError, match=r"is a folder; its settings are .*config\.toml"):
        read_settings(trained)


def test_another_file_keeps_its_folder(written):
    assert read_settings(written("run_dir: here", "config.yaml")).settings == {"run_dir": "here"}


def test_dicts_are_merged_key_by_key():
    below = {"a": {"x": 1, "y": {"z": 1}}, "b": {"x": 1}, "c": 1}
    above = {"a": {"y": {"w": 2}}, "b": 2, "c": {"x": 2}, "d": 2}
    kept = json.dumps(below)
    assert merged(below, above) == {
        "a": {"x": 1, "y": {"z": 1, "w": 2}},
        "b": 2,
        "c": {"x": 2},
        "d": 2,
    }
    assert json.dumps(below) == kept
