"""YAML in which no key may come twice: of two values one would be dropped without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from trt_moe.errors import InputError


def read_yaml(file: Path) -> object:
    """Read a YAML file.

    Raises:
        InputError: no such file, not YAML, or a key comes twice in one section.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error}); give a training configuration") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {error}") from error


class _UniqueKeys(yaml.SafeLoader):
    # When composed, since later a section also has the keys that it merges from others (<<), and may override.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in known:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} comes twice in one section; remove one of them", problem_mark=key.start_mark
                )
            known.add(key.value)
        return node
