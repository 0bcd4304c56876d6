"""Settings files of our programs: YAML of one mapping, read whole or refused with file, place and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.errors import ConfigError
from graph.documents import read_yaml
from graph.fields import Unfit, shown

#: A settings file is a page of text; more than this is a mistake.
MAX_FILE_BYTES = 256 * 1024


def read_settings(path: Path) -> Mapping[str, Any]:
    """What a settings file says, unchecked.

    :raises ConfigError: when it can not be read or is not YAML
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} can not be read: {error.strerror}", remedy="name a readable file with --config"
        ) from None
    try:
        document = read_yaml(data, MAX_FILE_BYTES, if_larger="this is not a settings file")
    except Unfit as error:
        problem = f"{error.problem} in {path}" if error.inner else f"{path}: {error.problem}"
        raise ConfigError(problem, field=error.inner, remedy=error.remedy) from None
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path}: {shown(document)} is not a mapping", remedy="write `name: value` lines")
    return document
