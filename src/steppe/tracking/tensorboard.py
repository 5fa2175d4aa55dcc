"""TensorBoard event files, written in place: no thread, no queue, so that a killed process loses nothing.

A file is a sequence of records ``length (uint64), crc of length, bytes, crc of bytes``, all little-endian,
with the masked CRC-32C of the TFRecord format; the bytes are ``Event`` messages, the first of which names the
version.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, final


@final
class EventWriter:
    """Scalars of one run, under their own names, against env steps.

    Args:
        folder: the run's folder; a new file is made in it.
        purge_from: TensorBoard hides what earlier files of this folder hold from this step on.
    """

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        # Imported when a run first writes: it takes longer than all else that a run folder needs.
        self._event = import_module("tensorboardX.proto.event_pb2")
        self._summary = import_module("tensorboardX.proto.summary_pb2")
        self._crc = import_module("tensorboardX.record_writer").masked_crc32c
        seconds, rest = divmod(time.time_ns(), 1_000_000_000)
        name = f"events.out.tfevents.{seconds:010d}.{rest:09d}"
        self._file = (folder / name).open("xb", buffering=0)
        self._write(self._event.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_from is not None:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write(self._event.Event(wall_time=time.time(), step=purge_from, session_log=start))

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Write the numbers among ``values`` that are finite; text is left out."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        summary = self._summary.Summary(
            value=[self._summary.Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]
        )
        self._write(self._event.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        crc_of_length, crc = (struct.pack("<I", self._crc(part)) for part in (length, data))
        self._file.write(length + crc_of_length + data + crc)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
