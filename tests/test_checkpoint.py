"""Checkpoints keep every value bit by bit, notice every changed byte, and survive a crash at any moment.

The round trip is tried on drawn states of every supported kind; damage on every single byte of a small
checkpoint; crashes at every step of replacing one.
"""

import hashlib
import json
import math
import os
import pickle
import shutil
import struct
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steppe import checkpoint
from steppe.checkpoint import load, newest_intact, save, verify
from steppe.errors import CheckpointError
from tests.states import diff, state_hash

SMALL = {"learner": {"w": np.arange(3, dtype=np.float32), "step": 7}}
DTYPES = st.sampled_from(
    ["?", "u1", "i1", "<i2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8", ">f4", ">i8", "<c16", "<M8[s]", "<U3"]
)
ARRAYS = DTYPES.flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**53)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=5)
    | st.sampled_from([np.float32(0.1), np.int64(-3), np.bool_(True), np.uint8(255), np.float64("nan")])
)
KEYS = st.text(alphabet="$ab/'.", max_size=3)
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS | ARRAYS,
        lambda inner: (
            st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def same(a, b):
    """Equality written without the code under test: kinds, types, shapes and bytes."""
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return type(b) is float and struct.pack(">d", a) == struct.pack(">d", b)
    return type(a) is type(b) and a == b


def arrays_of(value):
    if isinstance(value, np.ndarray):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from arrays_of(inner)


@pytest.mark.parametrize("large", [1, checkpoint._LARGE], ids=["mapped", "read"])
@given(STATES)
@settings(max_examples=100)
def test_round_trip_keeps_every_bit(tmp_path_factory, large, state):
    path = save(tmp_path_factory.mktemp("c") / "c", {"owner": state}, {"run_id": "r"})
    with mock.patch.object(checkpoint, "_LARGE", large):
        owners, meta = load(path)
    assert same(state, owners["owner"])
    assert meta == {"run_id": "r"}
    assert state_hash(owners["owner"]) == state_hash(state)
    assert diff(state, owners["owner"]) == []
    assert all(array.flags.writeable for array in arrays_of(owners["owner"]))


@given(STATES, STATES)
def test_hash_differs_where_states_differ(a, b):
    assert (state_hash(a) == state_hash(b)) == (diff(a, b) == [])


def test_values_that_json_cannot_hold(tmp_path):
    odd_nan = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    state = {
        "big": -(10**5000),
        "edge": [2**53 - 1, 2**53, -(2**53)],
        "floats": [math.inf, -math.inf, math.nan, odd_nan, -0.0, 5e-324],
        "text": "\ud800\u2028\x00",
        "brain": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "strided": np.arange(12).reshape(3, 4)[:, ::2],
        "\ud800": np.zeros(1),
        "$array": ["x", "<f4", [1]],
        "__metadata__": np.ones((), np.uint8),
    }
    back = load(save(tmp_path / "c", {"owner": state}, {}))[0]["owner"]
    assert same(state, back)
    assert back["floats"][3] != back["floats"][3]
    assert back["strided"].tolist() == [[0, 2], [4, 6], [8, 10]]


@pytest.mark.skipif(os.name == "nt", reason="maps keep Windows from replacing a file")
def test_large_arrays_are_maps_that_change_nothing_and_outlive_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_LARGE", 800)
    numbers = np.arange(100)
    path = save(tmp_path / "c", {"owner": {"large": numbers, "small": numbers[:99]}}, {"run_id": "r"})
    first, second = (load(path)[0]["owner"] for _ in range(2))
    assert [isinstance(first[name].base, np.memmap) for name in ("large", "small")] == [True, False]
    first["large"][:] = 7
    verify(path)
    save(path, {"owner": {"large": -numbers, "small": numbers[:99]}}, {"run_id": "r"})
    assert second["large"].tolist() == numbers.tolist()
    assert load(path)[0]["owner"]["large"].tolist() == (-numbers).tolist()


def test_paths_that_look_alike_are_kept_apart(tmp_path):
    state = {"a/b": np.array([1]), "a": {"b": np.array([2])}, "a/b'": np.array([3])}
    back = load(save(tmp_path / "c", {"owner": state}, {}))[0]["owner"]
    assert [back["a/b"][0], back["a"]["b"][0], back["a/b'"][0]] == [1, 2, 3]


def test_layout_of_the_folder(tmp_path):
    path = save(tmp_path / "deep" / "c", {"learner": SMALL["learner"], "sampler": {}}, {"run_id": "r"})
    names = {
        "learner.json",
        "learner.safetensors",
        "sampler.json",
        "sampler.safetensors",
        "meta.json",
        "manifest.json",
    }
    assert path == tmp_path / "deep" / "c"
    assert set(os.listdir(path)) == names
    assert os.listdir(path.parent) == ["c"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["learner.json"]["size"] == (path / "learner.json").stat().st_size
    assert json.loads((path / "learner.json").read_text())["w"] == {"$array": ["learner/w", "<f4", [3]]}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"a": {"b": object()}}, "o/a/b is of type object"),
        ({"a": [b"x"]}, "o/a/0 is of type bytes"),
        ({"a": {1: 2}}, "o/a has the key 1 of type int"),
        ({"a": np.array([None])}, "o/a has dtype object"),
        ({"a": np.zeros(2, "i4,f4")}, "o/a has dtype"),
        ({"a": np.ma.array([1, 2], mask=[0, 1])}, "o/a is a masked array"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, state, text):
    with pytest.raises(CheckpointError, match=text):
        save(tmp_path / "c", {"o": state}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("names", [["../x"], ["a/b"], [".hidden"], [""], ["meta"], ["Manifest"], ["a", "A"]])
def test_owner_names_that_are_no_file_names(tmp_path, names):
    with pytest.raises(CheckpointError, match="owner"):
        save(tmp_path / "c", {name: {} for name in names}, {})
    assert os.listdir(tmp_path) == []


def test_every_changed_byte_is_found_and_its_file_named(tmp_path):
    path = save(tmp_path / "c", SMALL, {"run_id": "r"})
    tried = 0
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for i in range(len(whole)):
            changed = bytearray(whole)
            changed[i] ^= 1 << (i % 8)
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match=file.name):
                load(path)
            tried += 1
        file.write_bytes(whole)
    assert tried > 500
    verify(path)


def test_upper_case_hash_in_the_manifest_is_a_change(tmp_path):
    path = save(tmp_path / "c", SMALL, {})
    file = path / "manifest.json"
    head, tail = file.read_bytes().rsplit(b'"sha256": "', 1)
    file.write_bytes(head + b'"sha256": "' + tail.upper())
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        verify(path)


@pytest.mark.parametrize("name", ["learner.json", "learner.safetensors", "meta.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "empty"])
def test_missing_and_truncated_files(tmp_path, name, damage):
    path = save(tmp_path / "c", SMALL, {"run_id": "r"})
    file = path / name
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"truncated": whole[:-1], "longer": whole + b" ", "empty": b""}[damage])
    words = {"missing": "missing"}.get(damage, "bytes instead of|truncated")
    for read in (load, verify):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(path)
        assert name in str(caught.value)


def rewrite_manifest(path, **changes):
    """A manifest with other content and a right hash, by the documented rule."""
    file = path / "manifest.json"
    content = {**json.loads(file.read_text()), **changes}
    content["sha256"] = "0" * 64
    own = hashlib.sha256((json.dumps(content, indent=2) + "\n").encode()).hexdigest()
    file.write_text(json.dumps({**content, "sha256": own}, indent=2) + "\n")


def test_another_format_version_is_named(tmp_path):
    path = save(tmp_path / "c", SMALL, {})
    rewrite_manifest(path, version=99)
    with pytest.raises(
        CheckpointError, match=r"format steppe-checkpoint 99; this steppe reads steppe-checkpoint 1"
    ):
        load(path)


def test_a_manifest_cannot_point_outside_the_folder(tmp_path):
    path = save(tmp_path / "c", SMALL, {})
    files = json.loads((path / "manifest.json").read_text())["files"]
    for kind in ("json", "safetensors"):
        (path / f"learner.{kind}").rename(tmp_path / f"learner.{kind}")
        files[f"../learner.{kind}"] = files.pop(f"learner.{kind}")
    rewrite_manifest(path, owners=["../learner"], files=files)
    with pytest.raises(CheckpointError, match="makes no sense"):
        load(path)


def test_a_checkpoint_without_a_run_is_not_overwritten(tmp_path):
    path = save(tmp_path / "c", SMALL, {})
    with pytest.raises(CheckpointError, match="another run"):
        save(path, SMALL, {})


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        load(tmp_path / "empty")
    (tmp_path / "file").write_text("hello")
    with pytest.raises(CheckpointError, match="it is a file"):
        load(tmp_path / "file")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "app"}')
    with pytest.raises(CheckpointError, match="not written by steppe"):
        load(tmp_path / "web")


class Bomb:
    def __reduce__(self):
        return (Path("exploded").write_text, ("x",))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("algorithm_state.pkl", "an RLlib checkpoint"),
        ("checkpoint-10", "an RLlib checkpoint"),
        (".tune_metadata", "an RLlib checkpoint"),
        ("weights.pkl", "made of pickle files"),
    ],
)
def test_foreign_checkpoints_are_recognised_and_never_unpickled(tmp_path, name, kind):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    for path in (folder, folder / name):
        with pytest.raises(CheckpointError, match=f"{kind}.*never unpickles"):
            load(path)
    assert not Path("exploded").exists()


# --- overwriting --------------------------------------------------------------------------------------------


def test_the_same_run_replaces_its_checkpoint(tmp_path):
    path = save(tmp_path / "c", {"old": {"x": 1}}, {"run_id": "r"})
    save(path, {"new": {"x": 2}}, {"run_id": "r"})
    assert load(path)[0] == {"new": {"x": 2}}
    assert os.listdir(tmp_path) == ["c"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "c").mkdir()
    save(tmp_path / "c", SMALL, {"run_id": "r"})
    assert load(tmp_path / "c")[0]["learner"]["step"] == 7


def test_a_link_is_followed(tmp_path):
    save(tmp_path / "c", {"a": {"x": 1}}, {"run_id": "r"})
    (tmp_path / "latest").symlink_to("c")
    save(tmp_path / "latest", {"a": {"x": 2}}, {"run_id": "r"})
    assert (tmp_path / "latest").is_symlink()
    assert load(tmp_path / "latest")[0] == load(tmp_path / "c")[0] == {"a": {"x": 2}}


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda p: save(p, SMALL, {"run_id": "other"}), "another run"),
        (lambda p: save(p, SMALL, {}), "another run"),
        (lambda p: p.write_text("x"), "is a file"),
        (lambda p: (p.mkdir(), (p / "thesis.txt").write_text("x")), "no intact checkpoint .thesis.txt"),
        (lambda p: (save(p, SMALL, {"run_id": "r"}) / "notes.txt").write_text("x"), "also holds notes.txt"),
        (lambda p: (save(p, SMALL, {"run_id": "r"}) / "meta.json").write_text("{"), "no intact checkpoint"),
    ],
)
def test_anything_else_is_not_overwritten(tmp_path, prepare, text):
    path = tmp_path / "c"
    prepare(path)
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=text):
        save(path, {"learner": {}}, {"run_id": "r"})
    assert snapshot(tmp_path) == before


class CrashError(BaseException):
    """Stands for the power going out: nothing after it runs."""


def crash_after(monkeypatch, steps):
    """Let ``steps`` calls that change the disk happen, then none."""
    left = [steps]

    def guarded(call):
        def guard(*args, **kwargs):
            if left[0] == 0:
                raise CrashError
            left[0] -= 1
            return call(*args, **kwargs)

        return guard

    for owner, name in [
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "rmdir"),
        (Path, "write_bytes"),
        (shutil, "rmtree"),
    ]:
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    monkeypatch.setattr(checkpoint, "save_file", guarded(checkpoint.save_file))


@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_one(tmp_path, existing):
    seen = []
    for steps in range(40):
        path = tmp_path / str(steps) / "c"
        path.parent.mkdir()
        if existing:
            save(path, {"a": {"x": "old"}}, {"run_id": "r"})
        with pytest.MonkeyPatch.context() as patch:
            crash_after(patch, steps)
            try:
                save(path, {"a": {"x": "new"}}, {"run_id": "r"})
                crashed = False
            except CrashError:
                crashed = True
        seen.append(load(path)[0]["a"]["x"] if path.exists() or existing else "nothing")
        # A save after the crash works, whatever it left.
        save(path, {"a": {"x": "next"}}, {"run_id": "r"})
        assert load(path)[0]["a"]["x"] == "next"
        assert not (path.parent / ".c.old").exists()
        if not crashed:
            break
    assert not crashed
    first = "old" if existing else "nothing"
    changed = seen.index("new")
    assert seen == [first] * changed + ["new"] * (len(seen) - changed)
    assert changed >= 5


def test_a_copy_set_aside_by_a_crash_is_read_and_belongs_to_its_run(tmp_path):
    path = save(tmp_path / "c", SMALL, {"run_id": "r"})
    path.rename(tmp_path / ".c.old")
    verify(path)
    assert load(path)[1] == {"run_id": "r"}
    assert newest_intact(tmp_path) == path
    with pytest.raises(CheckpointError, match="another run"):
        save(path, SMALL, {"run_id": "s"})
    assert load(path)[1] == {"run_id": "r"}


def test_a_disk_error_leaves_the_old_one_and_no_litter(tmp_path, monkeypatch):
    path = save(tmp_path / "c", SMALL, {"run_id": "r"})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(path, {"learner": {}}, {"run_id": "r"})
    assert os.listdir(tmp_path) == ["c"]
    assert load(path)[0]["learner"]["step"] == 7


def test_everything_is_synced_before_it_is_moved_in(tmp_path, monkeypatch):
    log = []
    sync, rename = checkpoint._fsync, Path.rename
    monkeypatch.setattr(checkpoint, "_fsync", lambda p: (log.append(p.name), sync(p)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (log.append("rename"), rename(a, b))[1])
    save(tmp_path / "c", SMALL, {})
    files = {"learner.json", "learner.safetensors", "meta.json", "manifest.json"}
    assert set(log[:4]) == files
    assert log[4].startswith(".c.new-")
    assert log[5:] == ["rename", tmp_path.name]


@pytest.mark.parametrize("when", ["_manifest", "_check_files", "_load_arrays"])
def test_a_reader_beside_a_writer_gets_one_whole_checkpoint(tmp_path, monkeypatch, when):
    """The writer swaps folders once while they are read: before or after the checks, or amid the arrays."""

    def states(x):
        return {owner: {"array": np.array([x]), "value": x} for owner in "ab"}

    path = save(tmp_path / "c", states(1), {"run_id": "r"})
    call = getattr(checkpoint, when)
    swaps = []

    def call_then_swap(*args):
        found = call(*args)
        if not swaps:
            swaps.append(1)
            save(path, states(2), {"run_id": "r"})
        return found

    monkeypatch.setattr(checkpoint, when, call_then_swap)
    assert diff(load(path)[0], states(2)) == []
    assert swaps == [1]


# --- the newest intact one ----------------------------------------------------------------------------------


def test_newest_intact_goes_by_number_and_skips_damage(tmp_path):
    for steps in (900, 1000, 20000):
        save(tmp_path / str(steps), SMALL, {"run_id": "r"})
    (tmp_path / "latest").symlink_to("20000")
    (tmp_path / "30000").mkdir()
    (tmp_path / "40000").write_text("a file")
    assert newest_intact(tmp_path) == tmp_path / "20000"
    (tmp_path / "20000" / "learner.json").write_text("{}")
    assert newest_intact(tmp_path) == tmp_path / "1000"
    for name in ("900", "1000"):
        (tmp_path / name / "manifest.json").unlink()
    assert newest_intact(tmp_path) is None
    assert newest_intact(tmp_path / "none") is None


def test_newest_intact_of_named_ones_goes_by_time(tmp_path):
    for name, when in (("b", 100), ("a", 200)):
        os.utime(save(tmp_path / name, SMALL, {}) / "manifest.json", (when, when))
    assert newest_intact(tmp_path) == tmp_path / "a"


# --- hash and diff ------------------------------------------------------------------------------------------


def test_hash_ignores_order_and_kind_of_sequence_only():
    assert state_hash({"a": 1, "b": (1, 2)}) == state_hash({"b": [1, 2], "a": 1})
    variants = [
        {"a": 1},
        {"a": 1.0},
        {"a": True},
        {"a": "1"},
        {"a": [1]},
        {"a": {"1": None}},
        {"a": None},
        {"b": 1},
        {"a": 0.0},
        {"a": -0.0},
        {"a": np.int64(1)},
        {"a": np.int32(1)},
        {"a": np.array([1])},
        {"a": np.array([[1]])},
        {"a": []},
        {"a": {}},
        {"a": ["b", "c"]},
        {"a": {"b": "c"}},
        {"a": [["b"], []]},
        {"a": [[], ["b"]]},
        {"a": 2**64},
        {"a": 2**64 + 1},
    ]
    assert len({state_hash(v) for v in variants}) == len(variants)


def test_hash_is_of_these_very_bytes():
    """Written out by hand: hashes are compared with those that other processes and versions wrote."""
    state = {"w": np.array([1.0, 2.0], np.float32), "n": [3, None]}
    canonical = b'm2:s3:"n"l2:s1:3s4:nulls3:"w"a<f4(2,)' + bytes.fromhex("0000803f00000040")
    assert state_hash(state) == hashlib.sha256(canonical).hexdigest()


def test_diff_names_places_and_what_is_there():
    a = {
        "w": np.zeros((2, 3), np.float32),
        "n": {"x": 1, "gone": 2},
        "l": [1, 2],
        "s": [1],
        "same": np.ones(2),
    }
    b = {
        "w": np.zeros((2, 4), np.float32),
        "n": {"x": 1.0, "new": 3},
        "l": [1, 3],
        "s": [1, 2],
        "same": np.ones(2),
    }
    assert diff(a, b) == [
        "l/1: 2, 3",
        "n/gone: 2, nothing",
        "n/new: nothing, 3",
        "n/x: 1, 1.0",
        "s: a list of 1, a list of 2",
        "w: float32 (2, 3), float32 (2, 4)",
    ]
    assert diff({"a": {"b": 1}}, {"a": 1}) == ["a: a dict of 1, 1"]
    assert diff({"a": "y" * 90}, {"a": 1}) == ["a: '" + "y" * 56 + "..., 1"]


# --- some owners --------------------------------------------------------------------------------------------


def test_some_owners_are_read_and_only_their_files_are_checked(tmp_path):
    folder = save(tmp_path / "c", {**SMALL, "other": {"a": 1}, "third": {"b": [2]}}, {"run_id": "r"})
    (folder / "learner.safetensors").unlink()
    owners, meta = load(folder, ["third", "other"])
    assert (owners, meta) == ({"third": {"b": [2]}, "other": {"a": 1}}, {"run_id": "r"})
    assert load(folder, []) == ({}, {"run_id": "r"})
    with pytest.raises(CheckpointError, match=r"learner\.safetensors is missing"):
        load(folder, ["learner"])
    with pytest.raises(CheckpointError, match=r"holds no fourth, only learner, other, third\."):
        load(folder, ["fourth"])
    (folder / "other.json").write_text("2")
    with pytest.raises(CheckpointError, match=r"other\.json has 1 bytes"):
        load(folder, ["other"])
    assert load(folder, ["third"])[0] == {"third": {"b": [2]}}
