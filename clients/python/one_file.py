"""Says where the one file of the package is: in a clone beside steppe, in a source distribution here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class OneFile(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the file into the wheel."""
        here = Path(self.root)
        file = here / "steppe_client.py"
        if not file.is_file():
            file = here.parent.parent / "src/steppe/serving/client.py"
        build_data["force_include"][str(file)] = "steppe_client.py"
