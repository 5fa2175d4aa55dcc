"""What is chosen from: its text and its object are one, and no text is ever run."""

import math

import optuna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steppe.errors import ConfigError
from steppe.tune import choice, lograndint, loguniform, parse, randint, uniform
from steppe.tune.space import Choice, Range

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
whole = st.integers(1, 10**6)
number = st.floats(1e-6, 1e6)


@st.composite
def domains(draw):
    kind = draw(st.sampled_from([choice, uniform, loguniform, randint, lograndint]))
    if kind is choice:
        return choice(*draw(st.lists(plain, min_size=1, max_size=4, unique_by=repr)))
    low, high = sorted(draw(st.tuples(*[whole if "randint" in kind.__name__ else number] * 2)))
    return kind(low, high + 1)


@given(domains())
@example(choice(None, True, 1, "a b", [64, 64]))
def test_a_domain_and_its_text_are_one(domain):
    assert parse(str(domain)) == domain


@given(domains())
def test_what_is_chosen_is_in_the_domain(domain):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    value = domain.suggest(trial, "x")
    if isinstance(domain, Choice):
        assert value in domain.values
    else:
        assert isinstance(value, int) == domain.whole
        assert domain.low <= value <= domain.high - domain.whole


def test_texts_that_people_write():
    assert parse("loguniform(1e-5,1e-2)") == Range(1e-5, 1e-2, log=True)
    assert parse(" lograndint(1e2, 1e4)") == Range(100, 10_000, log=True, whole=True)
    assert parse("choice(tanh, relu, None)") == choice("tanh", "relu", None)
    assert parse("uniform(-1, 1)") == uniform(-1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5", "a name with values in parentheses is expected"),
        ("loguniforme(1e-5, 1e-2)", "did you mean 'loguniform'?"),
        ("gauss(0, 1)", "there are choice, uniform, loguniform, randint, lograndint"),
        ("uniform(1)", "uniform takes two numbers, not 1"),
        ("uniform(1, 2", "was never closed"),
        ("uniform(low=1, high=2)", "a name with values in parentheses"),
        ("os.system('ls')", "a name with values in parentheses"),
        ("", "Write for example loguniform(1e-5, 1e-2)"),
        ("(" * 5000, "says nothing to choose from"),
        ("choice()", "choice() needs values"),
        ("choice(1, 1)", "has 1 twice"),
        ("choice(1e999)", "give plain values"),
        ("choice({1, 2})", "give plain values"),
        ("uniform(2, 1)", "the first number must be below the second"),
        ("uniform(a, 1)", "'a' must be a number"),
        ("uniform(True, 2)", "True must be a number"),
        ("uniform(0, 1e999)", "inf must be a number"),
        ("randint(1.5, 3)", "1.5 must be a whole number"),
        ("loguniform(0, 1)", "orders of magnitude begin above 0"),
    ],
)
def test_other_texts_say_what_is_expected(text, said):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert said in str(error.value)


def test_nothing_in_a_text_is_run(tmp_path):
    with pytest.raises(ConfigError, match="says nothing to choose from"):
        parse(f"choice(open({str(tmp_path / 'made')!r}, 'w'))")
    assert not (tmp_path / "made").exists()


def test_whole_numbers_stay_below_their_end_and_orders_of_magnitude_are_equally_likely():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(300)]
    assert {randint(1, 4).suggest(trial, "n") for trial in trials} == {1, 2, 3}
    logs = [math.log10(loguniform(1e-4, 1e-2).suggest(trial, "lr")) for trial in trials]
    assert sum(log < -3 for log in logs) / 300 == pytest.approx(0.5, abs=0.1)
