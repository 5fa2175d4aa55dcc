"""Checkpoints: states as safetensors and JSON, in a folder that is written whole or not at all.

A checkpoint is a folder. Each owner's state is split into ``<owner>.safetensors`` (its arrays) and
``<owner>.json`` (everything else, with a reference where an array was). ``meta.json`` says what the
checkpoint belongs to, ``manifest.json`` lists the size and sha256 of every other file and ends with a
hash of its own: the sha256 of its bytes with the 64 digits of that hash replaced by zeros. So a change
of any byte anywhere is found. The rule for the manifest's own hash holds for all format versions.

In JSON files a dict with one key that begins with a single ``$`` stands for a value that JSON cannot hold:

- ``{"$array": [name, dtype, shape]}``: an array, in the safetensors file under ``name``. A dtype that
  safetensors lacks is stored there as its bytes.
- ``{"$scalar": [dtype, hex]}``: a numpy scalar.
- ``{"$int": hex}``: an int of 2**53 or more.
- ``{"$float": hex}``: the eight bytes, big end first, of a NaN or an infinity.

Keys of the state itself that begin with ``$`` get one ``$`` more. Nothing here can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from steppe.errors import CheckpointError, ConfigError
from steppe.types import Array, State

FORMAT = "steppe-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
META = "meta.json"

_NATIVE = frozenset(["bool", "float16", "float32", "float64"]) | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_PLAIN_INT = 1 << 53
_LARGE = 1 << 26  # bytes
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_OWN_HASH = re.compile(rb'"sha256": "([0-9a-f]{64})"\n\}\n\Z')
_UNREADABLE = (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError)


def save(
    path: str | os.PathLike[str],
    owners: Mapping[str, State],
    meta: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint into the folder ``path``, all of it or nothing.

    The folder may be new, empty, or a checkpoint of the same run (``meta["run_id"]`` is equal), which is
    then replaced; at every moment the old or the new one can be loaded.

    Args:
        path: the folder itself; missing parents are made. A link is followed.
        owners: state by owner. The name becomes a file name: letters, digits, ``_``, ``-``, ``.``.
        meta: JSON values and numpy scalars, with ``run_id``.
        overwrite: replace an intact checkpoint of any run; anything else is still left alone.

    Returns:
        ``path``.

    Raises:
        CheckpointError: the folder holds something else, a state holds something that cannot be stored, or
            the disk refused. What was there before is unchanged.
        ConfigError: ``path`` is no path.
    """
    target = as_path(path).resolve()
    _check_owners(owners)
    states = {owner: _split(owner, state) for owner, state in owners.items()}
    header = _encode(dict(meta), "meta", None)
    fresh = target.with_name(f".{target.name}.new-{uuid.uuid4().hex[:12]}")
    try:
        _check_replaceable(target, meta.get("run_id"), any_run=overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_folder(fresh, states, header)
        _swap(fresh, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} could not be written: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Path(path)


def load(
    path: str | os.PathLike[str], owners: Sequence[str] | None = None
) -> tuple[dict[str, State], dict[str, Any]]:
    """Read a checkpoint after checking every byte of what is read.

    Tuples come back as lists, arrays as writable arrays of the same dtype and shape. If a crash or another
    process is in the middle of replacing the checkpoint, the whole old or the whole new one is read.

    Args:
        path: the folder.
        owners: whose states to read; all if None. The files of others are neither read nor checked.

    Returns:
        The state of each owner, and the meta data.

    Raises:
        CheckpointError: damaged, incomplete, of another format version, or no checkpoint of steppe; or it
            holds nothing of an owner that was asked for.
    """
    while True:
        before = _peek(path)
        try:
            loaded = _load(Path(path), owners)
        except CheckpointError:
            if _peek(path) == before:
                raise
        else:
            if _peek(path) == before:
                return loaded


def as_path(path: Any) -> Path:
    """``path``, once it is known to name something.

    Raises:
        ConfigError: it is neither text nor a path, or empty.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigError(f"{path!r} is no path of a checkpoint: give a folder, such as 'runs/Maze/ppo-1'")
    return Path(path)


def verify(path: str | os.PathLike[str]) -> None:
    """Check every byte of a checkpoint without loading it.

    Raises:
        CheckpointError: as :func:`load` does.
    """
    folder = _locate(Path(path))
    _check_files(folder, _manifest(folder))


def newest_intact(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint among the subfolders of ``folder`` that passes :func:`verify`, or None.

    Folders named by a number (of steps) are newer than others and ordered by it; others by time of writing.
    Links are left out.
    """
    for candidate in sorted(_candidates(Path(folder)), key=_age, reverse=True):
        try:
            verify(candidate)
        except CheckpointError:
            continue
        return candidate
    return None


# --- encoding ---------------------------------------------------------------------------------------------


def _check_owners(owners: Mapping[str, State]) -> None:
    taken = {"meta", "manifest"}
    for owner in owners:
        if not _OWNER.fullmatch(owner):
            raise CheckpointError(f"owner {owner!r}: a name of letters, digits, '_', '-' and '.' is expected")
        # Some file systems do not tell upper from lower case.
        if owner.lower() in taken:
            raise CheckpointError(f"owner {owner!r}: the name is taken")
        taken.add(owner.lower())


def _split(owner: str, state: State) -> tuple[Any, dict[str, Array]]:
    arrays: dict[str, Array] = {}
    return _encode(state, owner, arrays), arrays


def _encode(value: Any, path: str, arrays: dict[str, Array] | None) -> Any:
    """``value`` as JSON; its arrays go to ``arrays``."""
    if isinstance(value, np.generic):
        return {"$scalar": [_dtype_name(value.dtype, path), _bytes(np.asarray(value)).tobytes().hex()]}
    if isinstance(value, np.ndarray) and arrays is not None:
        return _encode_array(value, path, arrays)
    if isinstance(value, Mapping):
        return {_key(k, path): _encode(v, f"{path}/{k}", arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v, f"{path}/{i}", arrays) for i, v in enumerate(value)]
    return _encode_scalar(value, path)


def _encode_array(value: Array, path: str, arrays: dict[str, Array]) -> dict[str, Any]:
    dtype = _dtype_name(value.dtype, path)
    if isinstance(value, np.ma.MaskedArray):
        raise CheckpointError(f"{path} is a masked array: store its data and its mask")
    name = path.encode(errors="backslashreplace").decode()
    while name in arrays:  # the keys "a/b" and "a" with "b" inside make the same path
        name += "'"
    native = value.dtype.isnative and value.dtype.name in _NATIVE
    arrays[name] = np.asarray(value, order="C") if native else _bytes(value)
    return {"$array": [name, dtype, list(value.shape)]}


def _encode_scalar(value: Any, path: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _PLAIN_INT else {"$int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    raise CheckpointError(
        f"{path} is of type {type(value).__name__}, which cannot be stored: use {_STORABLE}"
    )


_STORABLE = "None, bool, int, float, str, numpy arrays (np.asarray), and lists and dicts of those"


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise CheckpointError(f"{path} has the key {key!r} of type {type(key).__name__}: keys are text")
    return f"${key}" if key.startswith("$") else str(key)


def _dtype_name(dtype: np.dtype[Any], path: str) -> str:
    if dtype.hasobject or dtype.names is not None or dtype.itemsize == 0:
        raise CheckpointError(
            f"{path} has dtype {dtype}, which cannot be stored: use plain numbers, one array each"
        )
    # Types from outside numpy, such as bfloat16, all call themselves "V".
    return dtype.name if dtype.kind == "V" else dtype.str


def _bytes(value: Array) -> Array:
    """The bytes of an array in C order, flat, as uint8; a view where possible."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _decode(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, list):
        return [_decode(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(tag, content)] = value.items()
        if tag.startswith("$") and not tag.startswith("$$"):
            return _decode_tagged(tag, content, arrays)
    return {k[1:] if k.startswith("$") else k: _decode(v, arrays) for k, v in value.items()}


def _decode_tagged(tag: str, content: Any, arrays: Mapping[str, Array]) -> Any:
    if tag == "$array":
        name, dtype, shape = content
        return np.ndarray(tuple(shape), _dtype(dtype), buffer=arrays[name])
    if tag == "$scalar":
        dtype, raw = content
        return np.frombuffer(bytes.fromhex(raw), _dtype(dtype))[0]
    if tag == "$int":
        return int(content, 16)
    if tag == "$float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    raise ValueError(f"unknown mark {tag}")


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


# --- files ------------------------------------------------------------------------------------------------


def _write_folder(folder: Path, states: Mapping[str, tuple[Any, dict[str, Array]]], meta: Any) -> None:
    folder.mkdir()
    for owner, (tree, arrays) in states.items():
        save_file(arrays, folder / f"{owner}.safetensors")
        _write_json(folder / f"{owner}.json", tree, indent=None)
    _write_json(folder / META, meta)
    names = sorted(entry.name for entry in folder.iterdir())
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "owners": list(states),
        "files": {
            name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names
        },
        "sha256": "0" * 64,
    }
    own = hashlib.sha256(_json_bytes(manifest)).hexdigest()
    _write_json(folder / MANIFEST, {**manifest, "sha256": own})
    for name in [*names, MANIFEST]:
        _fsync(folder / name)
    _fsync(folder)


def _json_bytes(value: Any, indent: int | None = 2) -> bytes:
    return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode("ascii")


def _write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    path.write_bytes(_json_bytes(value, indent))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _absent(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _locate(path: Path) -> Path:
    """``path``, or the copy set aside if a crash came between moving it there and the new one in."""
    target = path.resolve()
    aside = _aside(target)
    return aside if _absent(target) and aside.is_dir() else target


def _swap(fresh: Path, target: Path) -> None:
    aside = _aside(target)
    moved = not _absent(target)
    if moved:
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    elif target.exists():
        target.rmdir()
    try:
        fresh.rename(target)
    except OSError:
        if moved:
            aside.rename(target)
        raise
    _fsync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _check_replaceable(target: Path, run_id: Any, *, any_run: bool) -> None:
    existing = _locate(target)
    if _absent(existing):
        return
    refusal = f"{target} is not overwritten: it"
    remedy = "Save to a new folder, or delete this one"
    if not existing.is_dir():
        raise CheckpointError(f"{refusal} is a file. {remedy}")
    found = {entry.name for entry in existing.iterdir()}
    try:
        manifest = _manifest(existing)
        holder = _decode(json.loads((existing / META).read_bytes()), {}).get("run_id")
    except (CheckpointError, ValueError, AttributeError, FileNotFoundError) as error:
        names = ", ".join(sorted(found)[:5])
        raise CheckpointError(
            f"{refusal} holds something that is no intact checkpoint ({names}). {remedy}"
        ) from error
    if not any_run and (holder is None or holder != run_id):
        raise CheckpointError(
            f"{refusal} holds a checkpoint of another run ({holder}, not {run_id}). {remedy}"
        )
    strangers = sorted(found - {MANIFEST, *manifest["files"]})
    if strangers:
        raise CheckpointError(f"{refusal} also holds {', '.join(strangers)}. Move that out of the folder")


def _peek(path: str | os.PathLike[str]) -> bytes | None:
    try:
        return (_locate(Path(path)) / MANIFEST).read_bytes()
    except OSError:
        return None


def _load(path: Path, wanted: Sequence[str] | None) -> tuple[dict[str, State], dict[str, Any]]:
    folder = _locate(path)
    manifest = _manifest(folder)
    wanted = _check_files(folder, manifest, wanted)
    name = META
    try:
        meta = _decode(json.loads((folder / META).read_bytes()), {})
        owners = {}
        for owner in wanted:
            name = f"{owner}.safetensors"
            arrays = _load_arrays(folder / name)
            name = f"{owner}.json"
            owners[owner] = _decode(json.loads((folder / name).read_bytes()), arrays)
    except _UNREADABLE as error:
        raise CheckpointError(f"checkpoint {folder}: {name} cannot be read: {error!r}") from error
    return owners, meta


def _load_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file; large ones are maps of it: a replay of many GB is in memory once, not twice."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    arrays: dict[str, Array] = {}
    with safe_open(path, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # it is no dict
            begin, end = header[name]["data_offsets"]
            if end - begin < _LARGE or os.name == "nt":  # Windows replaces no file that is mapped
                arrays[name] = tensors.get_tensor(name)
            else:  # its bytes; what is written to them stays out of the file
                arrays[name] = np.memmap(path, np.uint8, "c", start + begin, (end - begin,))
    return arrays


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked against its own hash and this format version; file names are plain."""
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointError(_what_it_is(folder)) from error
    tail = _OWN_HASH.search(raw)
    if tail is None:
        raise CheckpointError(
            f"checkpoint {folder}: {MANIFEST} is truncated, damaged or not written by steppe"
        )
    zeroed = raw[: tail.start(1)] + b"0" * 64 + raw[tail.end(1) :]
    if hashlib.sha256(zeroed).hexdigest().encode() != tail[1]:
        raise CheckpointError(f"checkpoint {folder}: {MANIFEST} is damaged: its sha256 does not match")
    try:
        manifest: dict[str, Any] = json.loads(raw)
        kind, version = manifest["format"], manifest["version"]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint of steppe: {error!r} in {MANIFEST}") from error
    if (kind, version) != (FORMAT, VERSION):
        raise CheckpointError(
            f"checkpoint {folder} has the format {kind} {version}; this steppe reads {FORMAT} {VERSION}. "
            "Load it with the version of steppe that wrote it"
        )
    return manifest


def _check_files(
    folder: Path, manifest: Mapping[str, Any], wanted: Sequence[str] | None = None
) -> Sequence[str]:
    """Check the files of the wanted owners, or of all, who are returned."""
    try:
        owners: Sequence[str] = manifest["owners"]
        expected = {META, *_files_of(owners)}
        listed: Mapping[str, Any] = manifest["files"]
        if not all(_OWNER.fullmatch(owner) for owner in owners) or set(listed) != expected:
            raise ValueError("owners and files do not belong together")
        wanted = owners if wanted is None else wanted
        if absent := [owner for owner in wanted if owner not in owners]:
            remedy = "If an older steppe wrote it, steppe.load it and save it again"
            raise CheckpointError(f"{folder} holds no {absent[0]}, only {', '.join(owners)}. {remedy}")
        files = [(folder / name, listed[name]) for name in sorted({META, *_files_of(wanted)})]
        problems = [p for path, file in files if (p := _problem(path, file["size"], file["sha256"]))]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {folder}: {MANIFEST} makes no sense: {error!r}") from error
    if problems:
        raise CheckpointError(f"checkpoint {folder} is damaged: {'; '.join(problems)}")
    return wanted


def _files_of(owners: Sequence[str]) -> list[str]:
    return [f"{owner}.{kind}" for owner in owners for kind in ("json", "safetensors")]


def _problem(file: Path, size: int, sha256: str) -> str:
    try:
        actual = file.stat().st_size
        if actual != size:
            return f"{file.name} has {actual} bytes instead of {size}"
        return "" if _sha256(file) == sha256 else f"the bytes of {file.name} have changed"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"


def _what_it_is(path: Path) -> str:
    """Why ``path`` is no checkpoint, naming the kinds that people bring along."""
    if not path.exists():
        return f"there is no checkpoint at {path}"
    from steppe import foreign  # rarely needed

    if theirs := foreign.what_it_is(path):
        return theirs
    if not path.is_dir():
        around = f", of the checkpoint {path.parent}" if (path.parent / MANIFEST).is_file() else ""
        return f"{path} is no checkpoint of steppe: it is a file{around}"
    if (path / META).exists():
        return f"checkpoint {path} is damaged: {MANIFEST} is missing"
    inside = [entry for entry in _candidates(path) if (_locate(entry) / MANIFEST).is_file()]
    hint = f"; the newest checkpoint in it is {max(inside, key=_age)}" if inside else ""
    return f"{path} is no checkpoint of steppe: it has no {MANIFEST}{hint}"


def _candidates(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    entries = [e for e in folder.iterdir() if e.is_dir() and not e.is_symlink()]
    visible = {e for e in entries if not e.name.startswith(".")}
    aside = {e.with_name(e.name[1:-4]) for e in entries if e.name.startswith(".") and e.name.endswith(".old")}
    return sorted(visible | aside)


def _age(candidate: Path) -> tuple[int, float]:
    name = candidate.name
    try:
        written = (_locate(candidate) / MANIFEST).stat().st_mtime
    except OSError:
        written = 0.0
    return (int(name) if name.isascii() and name.isdigit() else -1, written)
