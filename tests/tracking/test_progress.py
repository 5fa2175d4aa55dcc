"""The display: what stands on a terminal and in a log; words where there is no number yet, never NaN."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group

from steppe.tracking.progress import ASCII, Display, sparkline

NAN = math.nan
NAME = "ppo-3 · PPO · corridor · runs/corridor/ppo-3"


def result(**changes):
    base = {
        "episode_reward_mean": 21.534,
        "episode_reward_min": -3.0,
        "episode_reward_max": 12345.0,
        "episode_len_mean": 23.4,
        "episodes_this_iter": 12,
        "episodes_total": 1234,
        "timesteps_this_iter": 4000,
        "timesteps_total": 40_000,
        "training_iteration": 10,
        "env_health": {},
        "reward_per_step": 0.97,
        "time": {
            "total_s": 9.0,
            "iteration_s": 0.5,
            "env": 0.1,
            "inference": 0.1,
            "learning": 0.2,
            "other": 0.0,
        },
    }
    return base | changes


def before_first(**changes):
    means = {f"episode_{key}": NAN for key in ("reward_mean", "reward_min", "reward_max", "len_mean")}
    return result(episodes_this_iter=0, episodes_total=0, **means, **changes)


def lines_of(display, shown, width=80):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(Group(display.render(shown, width)))  # alone, print would join it with others and wrap it
    return console.export_text().splitlines()


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_plain_line():
    out = io.StringIO()
    with Display(NAME, 100_000, out) as display:
        display.update(result(training_iteration=9, timesteps_this_iter=2000))
        display.update(result(env_health={"E106 obs": 3, "E401": 2}))
    first, second = out.getvalue().splitlines()
    assert first == (
        "iteration=9 steps=40000 total_steps=100000 episodes=1234 reward_mean=21.534 reward_min=-3 "
        "reward_max=12345 length_mean=23.4 steps_per_s=4000 steps_per_s_overall=4000 "
        "env=25 inference=25 learning=50 other=0"
    )
    assert "steps_per_s=8000 steps_per_s_overall=6000 " in second
    assert second.endswith(" other=0 env_health=5")


def evaluation(mean):
    return {"episode_reward_mean": mean, "episode_reward_min": 1.0, "episode_reward_max": 3.0}


def test_plain_line_with_an_evaluation():
    out = io.StringIO()
    display = Display(NAME, None, out)
    display.update(result(evaluation=evaluation(2.5)))
    display.update(result(evaluation=evaluation(NAN)))
    display.update(result())
    first, second, third = out.getvalue().splitlines()
    assert " length_mean=23.4 evaluation_reward_mean=2.5 steps_per_s=" in first
    assert "evaluation" not in second + third


def test_the_last_evaluation_stays_on_screen():
    display = Display(NAME, None, Terminal())
    display.update(result(evaluation=evaluation(2.5)))
    display.update(result(timesteps_total=44_000))
    assert lines_of(display, result())[6] == "evaluation 2.5 (min 1, max 3) · after 40,000 steps"
    display.close()


def test_a_terminal_shows_at_once_that_it_runs():
    stream, pipe, quiet = Terminal(), io.StringIO(), Terminal()
    for out in (stream, pipe, quiet):
        with Display(NAME, None, out, quiet=out is quiet) as display:
            display.begin(4000)
    assert NAME in stream.getvalue()
    assert "the first figures come after 4,000 steps" in stream.getvalue()
    assert pipe.getvalue() + quiet.getvalue() == ""


def test_plain_line_before_an_episode_has_ended():
    out = io.StringIO()
    display = Display(NAME, None, out)
    display.update(before_first(training_iteration=9))
    display.update(before_first(training_iteration=10))
    first, second = out.getvalue().splitlines()
    assert first == (
        "iteration=9 steps=40000 episodes=0 reward_per_step=0.97 steps_per_s=8000 steps_per_s_overall=8000 "
        "env=25 inference=25 learning=50 other=0"
    )
    assert second.endswith(
        'note="episodes: none in 10 iterations; max_episode_steps in the config ends them"'
    )


def test_six_lines_on_a_terminal():
    display = Display(NAME, 100_000, io.StringIO())
    for reward in (0.0, 7.0, 14.0):
        display.update(result(episode_reward_mean=reward, timesteps_this_iter=1000))
    assert lines_of(display, result()) == [
        "ppo-3 · PPO · corridor · runs/corridor/ppo-3",
        "steps      ████████░░░░░░░░░░░░ 40,000 of 100,000 · 40% · 0:30 left",
        "reward     21.53 (min -3, max 12,345)  ▁▅█",
        "episodes   1,234 ended · 12 now · length 23.4",
        "speed      8,000 steps/s now · 2,000 overall",
        "time       env 25% · inference 25% · learning 50% · other 0%",
    ]


def test_oddities_of_the_env_are_a_seventh_line():
    lines = lines_of(Display(NAME, None, io.StringIO()), result(env_health={"E106 obs": 3000, "E401": 1}))
    assert lines[1] == "steps      40,000"
    assert lines[6:] == ["env health E106 obs: 3,000, E401: 1"]


def test_words_before_an_episode_has_ended():
    display = Display(NAME, None, io.StringIO())
    assert lines_of(display, before_first(training_iteration=9))[2:4] == [
        "reward     no episode has ended yet; reward per step 0.97",
        "episodes   0 ended",
    ]
    assert lines_of(display, before_first(training_iteration=10))[2:4] == [
        "reward     no episode has ended yet; reward per step 0.97",
        "episodes   none in 10 iterations; max_episode_steps in the config ends them",
    ]


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    rewards=st.lists(NUMBERS, min_size=1, max_size=4),
    total=st.none() | st.integers(1, 10**12),
    steps=st.integers(0, 10**13),
    seconds=st.floats(0, 1e6),
    phases=st.lists(st.floats(0, 1e6), min_size=4, max_size=4),
    width=st.integers(20, 200),
)
def test_nan_is_never_shown_and_lines_never_wrap(rewards, total, steps, seconds, phases, width):
    out = io.StringIO()
    display = Display("run", total, out)
    time = {
        "total_s": 1.0,
        "iteration_s": seconds,
        **dict(zip(("env", "inference", "learning", "other"), phases, strict=True)),
    }
    for reward in rewards:
        shown = result(episode_reward_mean=reward, episode_reward_min=NAN, timesteps_total=steps, time=time)
        display.update(shown)
        lines = lines_of(display, shown, width)
        assert len(lines) == 6
        assert max(map(len, lines)) <= width
        words = {word.strip("(),:;") for word in " ".join(lines).split()}
        assert not words & {"nan", "inf", "-inf"}
    assert "nan" not in out.getvalue()
    assert "=inf" not in out.getvalue()


def test_curve_holds_the_last_forty_rewards_and_fits():
    display = Display("run", None, io.StringIO())
    for reward in range(100):
        display.update(result(episode_reward_mean=float(reward)))
    assert lines_of(display, result(), 200)[2].count("▁") == 3
    assert len(lines_of(display, result(), 200)[2].split("  ")[-1]) == 40
    assert len(lines_of(display, result(), 60)[2]) == 60


@pytest.mark.parametrize(
    ("values", "curve"),
    [
        ([], ""),
        ([NAN], ""),
        ([5.0], "▄"),
        ([2.0, 2.0], "▄▄"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7.0, NAN, 0.0, math.inf, 7.0], "█▁█"),
        ([-1.7e308, 1.7e308], "▁█"),
        ([1.0, 1.0 + 2**-52], "▁█"),
    ],
)
def test_sparkline(values, curve):
    assert sparkline(values) == curve


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3725, "1:02:05"), (360_000, "100:00:00")]
)
def test_time_left(seconds, text):
    display = Display("run", 40_000 + seconds, io.StringIO())
    one_a_second = result(timesteps_this_iter=1)
    one_a_second["time"]["iteration_s"] = 1.0
    display.update(one_a_second)
    assert lines_of(display, one_a_second, 120)[1].endswith(f" {text} left")


def test_past_the_end_nothing_is_left():
    display = Display("run", 30_000, io.StringIO())
    display.update(result())
    assert lines_of(display, result())[1] == "steps      " + "█" * 20 + " 40,000 of 30,000 · 100%"


def test_terminal_is_redrawn_in_place_and_messages_stay():
    terminal = Terminal()
    with Display(NAME, 100_000, terminal) as display:
        display.message("hello before")
        display.update(result())
        display.message("[saved] checkpoint")
        display.update(result(timesteps_total=50_000))
    display.close()
    text = terminal.getvalue()
    assert text.startswith("hello before\n")
    assert "[saved] checkpoint" in text
    assert "\x1b[1A" in text  # goes up instead of scrolling
    assert "50,000 of 100,000" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_message_without_a_terminal_is_a_line():
    out = io.StringIO()
    display = Display(NAME, None, out)
    display.message("hello")
    assert out.getvalue() == "hello\n"


def test_quiet_shows_nothing():
    out = Terminal()
    with Display(NAME, None, out, quiet=True) as display:
        display.update(result())
        display.message("hello")
    assert out.getvalue() == ""


def test_a_stream_without_unicode_gets_ascii():
    raw = io.BytesIO()
    display = Display("run", 100_000, io.TextIOWrapper(raw, encoding="ascii"))
    display.update(result())
    display.update(result(episode_reward_mean=0.0))
    lines = lines_of(display, result())
    assert "\n".join(lines).isascii()
    assert lines[1].startswith("steps      ########------------ ")
    assert lines[2].endswith(ASCII.levels[-1] + ASCII.levels[0])


def test_standard_output_is_the_default(capsys):
    Display("run", None).update(result())
    assert capsys.readouterr().out.startswith("iteration=10 ")
