"""A search on Ray: what it draws, where its trials go on, and real ones, ended, copied, killed, refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.errors import ConfigError
from steppe.tune import choice, lograndint, loguniform, randint, tune, uniform
from steppe.tune.search import read_search

for needed in ("ray", "pandas", "pyarrow"):
    pytest.importorskip(needed, reason="Ray Tune is not installed: pip install 'steppe[ray-tune]'")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray

    from steppe.tune import ray as on_ray

SOURCE = Path(steppe.__file__).parents[1]
RUN = {"run_id": "a", "status": "interrupted", "checkpoints": []}
PARAMS = {"env_config.value": uniform(-1, 1), "lr": loguniform(1e-5, 1e-2)}


@pytest.fixture
def config(known):
    """Iterations of 32 steps, each with episodes that end."""
    return steppe.PPOConfig(
        env=f"{known}:Known",
        env_config={"value": 1},
        train_batch_size=32,
        minibatch_size=32,
        num_epochs=1,
        num_envs_per_env_runner=2,
        fcnet_hiddens=[4],
        seed=0,
    )


@pytest.fixture(scope="module")
def own_ray():
    """One Ray for all searches of this module, of two processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="error")
        yield
        ray.shutdown()


# --- what is drawn ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(0.1, 10))
def test_draws_and_what_is_near_are_what_may_be_chosen(seed, low, width):
    rng = random.Random(seed)
    for domain in (uniform(low, low + width), loguniform(low, low + width)):
        assert low <= domain.draw(rng) <= low + width
        assert [domain.nearest(x) for x in (-1.0, low, low + 99)] == [low, low, low + width]
    for domain in (randint(3, 3 + 1 + seed), lograndint(3, 3 + 1 + seed)):
        drawn = domain.draw(rng)
        assert isinstance(drawn, int)
        assert 3 <= drawn <= 3 + seed
        assert domain.nearest(1e9) == 3 + seed
    assert choice(1, 2).draw(rng) in (1, 2)
    assert choice([1], "x").nearest("x") == "x"


def test_each_order_of_magnitude_is_as_likely_as_the_others():
    rng = random.Random(0)
    drawn = [loguniform(1e-4, 1.0).draw(rng) for _ in range(4000)]
    for low in (1e-4, 1e-3, 1e-2, 1e-1):
        assert sum(low <= x < 10 * low for x in drawn) == pytest.approx(1000, abs=110)  # four deviations
    whole = [lograndint(1, 100).draw(rng) for _ in range(4000)]
    assert sum(x < 10 for x in whole) == pytest.approx(2000, abs=130)


def test_a_trial_draws_by_the_seed_and_its_number_alone(tmp_path):
    first = [on_ray._settings(tmp_path, number, PARAMS, 5) for number in (1, 2, 3)]
    assert first == [on_ray._settings(tmp_path, number, PARAMS, 5) for number in (1, 2, 3)]
    assert len({settings["lr"] for settings in first}) == 3
    assert on_ray._settings(tmp_path, 1, PARAMS, 6) != first[0]


def test_a_trial_that_goes_on_keeps_the_settings_of_its_newest_run(tmp_path):
    for name, value in (("trial-1", 1), ("trial-1-9", 2), ("trial-1-10", 3), ("trial-10", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({**RUN, "settings": {"lr": value}}))
    (tmp_path / "trial-1-11").mkdir()  # killed before it was a run
    assert on_ray._newest(tmp_path, 1) == tmp_path / "trial-1-10"
    assert on_ray._settings(tmp_path, 1, PARAMS, 5) == {"lr": 3}
    assert on_ray._newest(tmp_path, 10) == tmp_path / "trial-10"
    assert on_ray._newest(tmp_path, 2) is None


# --- how Ray Tune is told ---------------------------------------------------------------------------------


def test_halving_has_the_marks_of_a_search_here():
    halving = on_ray._scheduler("asha", PARAMS)
    assert (halving._time_attr, halving._max_t) == ("mark", 20)
    (bracket,) = halving._brackets
    assert sorted(milestone for milestone, _ in bracket._rungs) == [4, 8, 16]


def test_a_population_explores_within_what_may_be_chosen():
    from ray.tune.schedulers.pbt import _explore

    params = {
        "lr": loguniform(1e-3, 1e-2),
        "n": randint(4, 6),
        "kind": choice("a", "b", "c"),
        "x": choice([1], [2]),
    }
    population = on_ray._scheduler("pbt", params)
    assert (population._time_attr, population._perturbation_interval) == ("mark", 4)
    seen = set()
    for _ in range(200):
        begun = {"settings": {"lr": 1e-2, "n": 5, "kind": "b", "x": [1]}}
        made, _ = _explore(
            begun, population._hyperparam_mutations, 0.25, (1.2, 0.8), population._custom_explore_fn
        )
        own = made["settings"]
        assert 1e-3 <= own["lr"] <= 1e-2
        assert own["n"] in (4, 5)
        assert own["x"] in ([1], [2])
        seen.add((own["n"], own["kind"]))
    assert seen == {(n, kind) for n in (4, 5) for kind in "abc"} or len(seen) >= 5


def test_a_trial_goes_on_in_its_folder_and_beside_it_from_another(tmp_path, monkeypatch):
    """The checkpoint that Ray Tune gives is a trial's own, or that of a better one."""
    from steppe import checkpoint

    def saved(name, run_dir):
        meta = {"run_id": name, "config": {"run_dir": str(run_dir)}}
        return checkpoint.save(tmp_path / "ray" / name, {"own": {}}, meta)

    def placed(at):
        gives = None if at is None else SimpleNamespace(path=str(at))
        monkeypatch.setattr(on_ray.ray_tune, "get_checkpoint", lambda: gives)
        return on_ray._place(tmp_path, 1)

    first = tmp_path / "trial-1"
    assert placed(None) == (first, None)
    first.mkdir()
    (first / "run.json").write_text(json.dumps(RUN))
    own, others = saved("a", first), saved("b", tmp_path / "trial-2")
    assert placed(own) == (first, own)
    assert placed(others) == (tmp_path / "trial-1-2", others)
    (tmp_path / "trial-1-2").mkdir()
    (tmp_path / "trial-1-2" / "begun").touch()  # killed before it was a run
    assert placed(others) == (tmp_path / "trial-1-2", others)
    assert not (tmp_path / "trial-1-2").exists()
    (tmp_path / "trial-1-2").mkdir()
    (tmp_path / "trial-1-2" / "run.json").write_text(json.dumps(RUN))
    assert placed(others) == (tmp_path / "trial-1-3", others)
    assert placed(saved("c", tmp_path / "trial-1-2"))[0] == tmp_path / "trial-1-2"


def test_a_trial_that_was_cut_off_goes_on_or_begins_again(tmp_path, monkeypatch):
    """Without Ray Tune's checkpoint: the search was killed, or the process."""
    monkeypatch.setattr(on_ray.ray_tune, "get_checkpoint", lambda: None)
    run = tmp_path / "trial-1"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(RUN))
    assert on_ray._place(tmp_path, 1) == (run, None)  # no checkpoint yet
    assert not run.exists()
    (run / "checkpoints" / "64").mkdir(parents=True)
    (run / "checkpoints" / "64" / "manifest.json").write_text("{}")
    kept = {**RUN, "checkpoints": [{"steps": 64, "reward": None}]}
    (run / "run.json").write_text(json.dumps(kept))
    assert on_ray._place(tmp_path, 1) == (run, run / "checkpoints" / "64")
    (run / "run.json").write_text(json.dumps({**kept, "status": "finished"}))
    assert on_ray._place(tmp_path, 1) == (run, None)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"on": "slurm"}, "on='slurm' must be one of here, ray"),
        ({"pruner": "median"}, "pruner='median' must be one of asha, pbt, none where on='ray'"),
        ({"on": "here", "pruner": "pbt"}, "pruner='pbt' must be one of median, asha, none where on='here'"),
        ({"params": lambda trial: {}}, "params is a function, which asks Optuna"),
        (
            {"pruner": "pbt", "params": {"fcnet_hiddens": choice([4], [8])}},
            "whose networks fcnet_hiddens shapes: search it with 'asha'",
        ),
    ],
)
def test_what_ray_cannot_do_is_refused_in_words(config, given, said):
    with pytest.raises(ConfigError) as error:
        tune(config, **{"params": PARAMS, "on": "ray", **given})
    assert said in str(error.value)
    assert not Path("runs").exists()


def test_without_ray_tune_the_install_line_is_said(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pandas" else name)
    with pytest.raises(ConfigError, match=r"pandas is missing: pip install 'steppe\[ray-tune\]'"):
        tune(config, PARAMS, on="ray")


# --- real ones --------------------------------------------------------------------------------------------


def test_trials_side_by_side_are_runs_and_the_worse_ones_end_early(config, own_ray):
    """What an episode pays is known. Which trials are ended depends on which come first; never the best."""
    seen = []
    found = tune(
        config, PARAMS, trials=5, steps=320, on="ray", progress=lambda found: seen.append(len(found.trials))
    )
    assert seen == [0, 1, 2, 3, 4, 5]
    assert [trial.number for trial in found.trials] == [1, 2, 3, 4, 5]
    for trial in found.trials:
        assert trial.score == pytest.approx(5 * trial.settings["env_config.value"], rel=1e-6)
        assert trial.settings == on_ray._settings(Path("none"), trial.number, PARAMS, 0)
        run = json.loads((trial.path / "run.json").read_text())
        assert run["status"] == {"finished": "finished", "stopped early": "interrupted"}[trial.status]
        assert run["steps"] == trial.steps
        assert (trial.steps == 320) == (trial.status == "finished")
        assert steppe.load_policy(trial.path / "latest") is not None
    best = max(found.trials, key=lambda trial: trial.score)
    assert (found.best, best.status) == (best, "finished")
    assert read_search(found.path)["status"] == "finished"
    assert not (found.path / "ray").exists()


@pytest.mark.slow
def test_a_population_takes_over_what_did_better_and_changes_it(config, own_ray):
    """The third pays most: others go on from its checkpoints, or from those of whoever did so."""
    found = tune(config, PARAMS, trials=3, steps=320, on="ray", pruner="pbt", per_trial={"CPU": 0.5})
    assert [trial.status for trial in found.trials] == ["finished"] * 3
    copies = [path for path in found.path.glob("trial-*-*") if path.is_dir()]
    assert copies
    for copy in copies:
        run, meta = (
            json.loads((copy / "run.json").read_text()),
            json.loads((copy / "params.json").read_text()),
        )
        assert meta["lr"] == run["settings"]["lr"]
        rows = [json.loads(line) for line in (copy / "result.jsonl").read_text().splitlines()]
        # It goes on from a checkpoint of a mark that others had reached, and the steps count on.
        assert rows[0]["timesteps_total"] > 32
        assert rows[0]["training_iteration"] == rows[0]["timesteps_total"] // 32
        origin = json.loads((found.path / f"trial-{copy.name.split('-')[1]}" / "run.json").read_text())
        assert run["settings"] != origin["settings"]
    for trial in found.trials:
        assert json.loads((trial.path / "run.json").read_text())["steps"] == trial.steps == 320


@pytest.mark.slow
def test_trials_without_a_score_failed_and_the_search_goes_on(config, known, own_ray):
    config = config.copy(env=f"{known}:Endless")
    found = tune(config, {"lr": choice(1e-3, 1e-4)}, trials=2, steps=32, on="ray")
    assert [(trial.status, trial.score, trial.steps) for trial in found.trials] == [("failed", None, 32)] * 2
    assert "episode_reward_mean was never a number in 32 steps" in found.trials[0].why


FAILS = '''
import os
from pathlib import Path
from known import Known


class Fails(Known):
    """Does in its third step what it is told to."""

    def step(self, action):
        if self.t == 2:
            if self.value > 0 and not Path("killed").exists():
                Path("killed").touch()
                os.kill(os.getpid(), 9)
            if self.value < 0:
                raise KeyError("no third step")
        return super().step(action)
'''


@pytest.fixture
def fails(known, monkeypatch):
    """``file.py`` with an env that fails where its value is below 0, and is killed once where it is above."""
    path = known.with_name("fails.py")
    path.write_text(FAILS)
    monkeypatch.syspath_prepend(known.parent)
    return path


@pytest.mark.slow
def test_an_exception_of_the_env_ends_the_search_as_it_is(config, fails, own_ray):
    with pytest.raises(KeyError, match="no third step") as error:
        tune(
            config.copy(env=f"{fails}:Fails"), {"env_config.value": choice(-1)}, trials=9, steps=320, on="ray"
        )
    assert any("raised in the process of trial" in note for note in error.value.__notes__)
    record = read_search(Path("runs/Fails/tune-1"))
    assert (record["status"], record["trials"]) == ("failed", [])


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_started_again(config, fails, own_ray):
    found = tune(
        config.copy(env=f"{fails}:Fails"), {"env_config.value": choice(1)}, trials=1, steps=64, on="ray"
    )
    assert Path("killed").exists()
    assert (found.best.score, found.best.steps) == (5, 64)


@pytest.mark.slow
def test_trials_may_have_runners_of_their_own(config, own_ray):
    """A trial and its runner take both CPUs; trials that waited for each other's runners would never end."""
    found = tune(config.copy(num_env_runners=1), PARAMS, trials=2, steps=64, on="ray", pruner="none")
    assert [(trial.status, trial.steps) for trial in found.trials] == [("finished", 64)] * 2
    assert json.loads((found.trials[0].path / "params.json").read_text())["num_env_runners"] == 1


def test_a_trial_that_needs_more_than_there_is_is_refused_at_once(config, own_ray):
    with pytest.raises(ConfigError, match=r"a trial needs 3 CPU, with its runners, and this Ray has 2: give"):
        tune(config.copy(num_env_runners=2), PARAMS, trials=1, steps=32, on="ray")
    with pytest.raises(ConfigError, match="a trial needs 1 GPU"):
        tune(config, PARAMS, trials=1, steps=32, on="ray", per_trial={"GPU": 1})


@pytest.mark.slow
def test_a_search_can_be_made_longer(config, own_ray):
    first = tune(config, PARAMS, trials=1, steps=32, on="ray")
    longer = tune(config, PARAMS, trials=3, steps=32, on="ray", resume=first.path)
    assert longer.trials[0] == first.trials[0]
    assert sorted(trial.number for trial in longer.trials) == [1, 2, 3]
    with pytest.raises(ConfigError, match="another on"):
        tune(config, PARAMS, trials=4, steps=32, pruner="asha", resume=first.path)
    assert len(tune(config, PARAMS, trials=2, steps=32, on="ray", resume=first.path).trials) == 3


@pytest.mark.slow
def test_a_killed_search_goes_on_from_the_checkpoints_of_its_trials(known):
    """On a Ray of its own, which ends with it; the command says the same of it as of a search here."""
    small = [
        "--train-batch-size",
        "32",
        "--minibatch-size",
        "32",
        "--num-epochs",
        "1",
        "--fcnet-hiddens",
        "[4]",
    ]
    args = ["--param", "env_config.value=uniform(-1, 1)", "--trials", "2", "--steps", "16k", "--seed", "0"]
    command = [sys.executable, "-c", "from steppe.cli import main; main()", "tune"]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    path = Path("runs/Known/tune-1")
    begun = [
        *command,
        f"{known}:Known",
        *small,
        *args,
        "--on",
        "ray",
        "--pruner",
        "none",
        "--per-trial",
        "CPU=0.5",
    ]
    latest = [path / f"trial-{number}" / "latest" for number in (1, 2)]
    with subprocess.Popen(begun, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"search in {path}, 0 trials so far\n"
        while not all(link.exists() for link in latest):
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = [int(link.resolve().name) for link in latest]
    assert all(0 < steps < 16_000 for steps in kept)
    done = subprocess.run([*command, "--resume", str(path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train on with the best settings: steppe train --config runs/Known/tune-1/trial-" in done.stdout
    record = read_search(path)
    assert (record["on"], record["status"], record["per_trial"]) == ("ray", "finished", {"CPU": 0.5})
    assert sorted(trial["number"] for trial in record["trials"]) == [1, 2]
    for steps, number in zip(kept, (1, 2), strict=True):
        rows = (path / f"trial-{number}" / "result.jsonl").read_text().splitlines()
        assert [json.loads(row)["timesteps_total"] for row in rows] == list(range(32, 16_001, 32))
        log = (path / f"trial-{number}" / "log.txt").read_text()
        assert "not exact" not in log
        assert steps % 32 == 0
