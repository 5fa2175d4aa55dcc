"""What processes of a run tell each other: versions, and code that is not everywhere."""

import os
import socket
import sys
from types import SimpleNamespace

import pytest

import steppe
from steppe.processes import enter, sent_from, versions


def test_versions_are_those_of_this_process():
    told = versions()
    assert told["steppe"] == steppe.__version__
    assert told["Python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    with sent_from(told):
        pass


@pytest.mark.parametrize("name", ["Python", "steppe"])
def test_another_version_is_refused_with_both_hosts_and_what_to_do(name):
    ours = versions()
    said = rf"^host '{ours['host']}' has {name} {ours[name]}, and 'far', where .* has 0\.9: install the same"
    with pytest.raises(steppe.ConfigError, match=said), sent_from({**ours, "host": "far", name: "0.9"}):
        raise AssertionError("came in")


def test_a_process_that_tells_no_version_is_refused():
    with pytest.raises(steppe.ConfigError, match="has None"), sent_from({"host": "far"}):
        pass


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'maze'"), steppe.ConfigError("no file")]
)
def test_code_that_is_not_on_this_host_is_said_with_what_to_do(error):
    theirs = {**versions(), "host": "far"}
    said = r"lacks what is on 'far': [Nn]o .*working_dir"
    with pytest.raises(steppe.ConfigError, match=said) as failed, sent_from(theirs):
        raise error
    assert failed.value.__cause__ is error


def test_on_the_same_host_and_of_code_that_is_there_errors_are_as_they_were():
    with pytest.raises(ModuleNotFoundError, match=r"^no maze$"), sent_from(versions()):
        raise ModuleNotFoundError("no maze")
    with pytest.raises(ZeroDivisionError), sent_from({**versions(), "host": "far"}):
        raise ZeroDivisionError


def refusal(error, *nodes):
    """What is said where a Ray listens whose nodes of this host are these, and which raises ``error``."""

    def init(address, **options):
        raise error

    services = SimpleNamespace(find_node_ids=lambda: nodes)
    ray = SimpleNamespace(
        is_initialized=lambda: False, init=init, _private=SimpleNamespace(services=services)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(steppe.ConfigError) as failed:
            enter(ray, address)
    assert repr(address) in str(failed.value)
    assert "RAY_gcs_server_port_wait_time_s" not in os.environ
    return str(failed.value)


def test_a_host_that_has_not_joined_is_said_before_ray_waits_for_it():
    said = refusal(AssertionError("asked"))
    assert f"host '{versions()['host']}' is not one of that Ray's: join it (ray start --address=127." in said


def test_what_ray_has_against_this_program_is_said_in_its_words():
    mismatch = RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.12.1\n")
    assert refusal(mismatch, "a").endswith(
        "joined: Version mismatch: The cluster was started with: Python: 3.12.1"
    )
    wrapped = ConnectionError("Failed to connect to Ray cluster")
    wrapped.__cause__ = RuntimeError("a long story\nray.AuthenticationError: RPC error: no token.\n")
    assert refusal(wrapped, "a").endswith("cannot be joined: RPC error: no token.")
