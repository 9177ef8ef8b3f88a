"""Options that several verbs share, and the parsers of their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from trt_moe.errors import InputError

DEMO_BUNDLE = "fashion-mnist"


class Device(str, Enum):
    """Where the router runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    """What the experts compute in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class VerifyBy(str, Enum):
    """Whose the second look at an image is."""

    dearest = "dearest"
    mirror = "mirror"


Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of tables, and no progress bars.")]
Bundle = Annotated[
    str,
    typer.Option("--bundle", "-b", help="A bundle's folder, or the name of a shipped bundle.", metavar="BUNDLE"),
]
DeviceOption = Annotated[Device, typer.Option("--device", "-d", help="Where to run.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", "-p", help="Of the experts; auto: the fastest that the device has; int8: GPU only."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", min=1, help="CPU threads; default: all that may be used.")
]
LatencyWeight = Annotated[
    float | None,
    typer.Option("--latency-weight", "-w", min=0.0, help="How much latency counts in routing; default: the bundle's."),
]
VerifyBelow = Annotated[
    float | None,
    typer.Option(
        "--verify-below",
        min=0.0,
        max=1.0,
        help="Where an expert is less sure than this its answer is verified, 0: never; default: the bundle's.",
    ),
]
VerifyByOption = Annotated[
    VerifyBy | None,
    typer.Option(
        "--verify-by",
        help="By the dearest expert's word, or by the same expert's on the mirrored image; default: the bundle's.",
    ),
]
Config = Annotated[Path, typer.Argument(help="Training configuration (YAML), see configs/.", metavar="CONFIG")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the data set; default: the configuration's.")]
PICTURE_HELP = "Picture to write: .png, .pdf, .svg or .jpg."
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out images that cannot be used; without it they are an error.")
]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of training runs; default: the configuration's.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON to this file.")]


def severities(text: str) -> tuple[int, ...]:
    """Parse "0-5" or "0,3,5".

    Raises:
        InputError: no list of severities 0 to 5.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-5])\s*(?:-\s*([0-5])\s*)?", part)
        if match is None:
            raise InputError(f"severities are {text!r}; expected numbers 0 to 5 such as 0-5 or 0,3,5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"severities are {text!r}; the range {first}-{last} is empty")
        found += range(first, last + 1)
    return tuple(sorted(set(found)))


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Parse "0.485,0.456,0.406"; a value may be a fraction such as 1/255.

    Raises:
        InputError: something else.
    """
    values = []
    for part in text.split(","):
        top, slash, bottom = part.partition("/")
        try:
            values.append(float(top) / float(bottom) if slash else float(top))
        except (ValueError, ZeroDivisionError):
            raise InputError(f"{what} is {text!r}; expected numbers separated by commas") from None
    return tuple(values)


def whole_numbers(text: str) -> tuple[int, ...] | None:
    """Parse "1,2,4", each of at most nine digits; None: something else."""
    parts = [part.strip() for part in text.split(",")]
    # isdigit takes more than int: superscripts, for one.
    return tuple(map(int, parts)) if all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts) else None


def sizes(text: str, what: str, count: int) -> tuple[int, ...]:
    """Parse "224x224x3".

    Raises:
        InputError: something else.
    """
    found = whole_numbers(text.lower().replace("x", ","))
    if found is None or len(found) != count or not all(found):
        example = "x".join(["224", "224", "3"][:count])
        raise InputError(f"{what} is {text!r}; expected {count} whole numbers such as {example}")
    return found


def latency_images(text: str) -> int | None:
    """Parse a number of images, or "all" (None).

    Raises:
        InputError: something else.
    """
    if text.strip().lower() == "all":
        return None
    found = whole_numbers(text)
    if found is None or len(found) != 1 or found[0] < 1:
        raise InputError(f"latency images is {text!r}; expected a number of at least 1, or all")
    return found[0]


def named_file(text: str, default: str | None = None) -> tuple[str, Path]:
    """Parse NAME=FILE; without NAME= the default, or the file's stem in lower case.

    Raises:
        InputError: an empty name or file.
    """
    name, equals, file = text.partition("=")
    if not equals:
        name, file = default or re.sub(r"[^a-z0-9._-]+", "-", Path(text).stem.lower()).strip("-._"), text
    if not name or not file:
        raise InputError(f"{text!r} is no model; expected NAME=FILE.onnx")
    return name, Path(file)


def class_names(text: str) -> list[str]:
    """Parse "cat,dog" or the name of a text file with one class a line.

    Raises:
        InputError: the file cannot be read, or there are fewer than two.
    """
    file = Path(text)
    in_file = "," not in text and (file.suffix == ".txt" or file.is_file())
    if in_file:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: class names cannot be read ({error})") from None
        found = [line.strip() for line in lines if line.strip()]
    else:
        found = [part.strip() for part in text.split(",")]
    if len(found) < 2:
        there = "a file with" if in_file else "no file, so it is"
        raise InputError(
            f"--classes is {text!r}, {there} {len(found)} class name{'s' * (not found)}; expected two or more such as "
            "cat,dog or a text file with one class a line"
        )
    return found


def overrides(settings: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parse MODEL.KEY=VALUE settings into {model: {key: value}}.

    Raises:
        InputError: not of that form, or a model that is not there.
    """
    result: dict[str, dict[str, str]] = {name: {} for name in models}
    for setting in settings:
        left, equals, value = setting.partition("=")
        model, dot, key = left.rpartition(".")
        if not equals or not dot:
            raise InputError(f"--set {setting!r}; expected MODEL.KEY=VALUE such as gater.size=96x96")
        if model not in result:
            raise InputError(f"--set {setting!r}: no model is called {model!r}; there are {', '.join(models)}")
        result[model][key] = value
    return result


def counts(text: str, what: str, most: int = 1024, example: str = "1,2,4") -> tuple[int, ...]:
    """Parse "1,2,4"; "none" is empty.

    Raises:
        InputError: something else, or a number outside 1 to `most`.
    """
    if text.strip().lower() == "none":
        return ()
    found = whole_numbers(text)
    if found is None or not all(1 <= number <= most for number in found):
        raise InputError(f"{what} is {text!r}; expected numbers from 1 to {most} such as {example}, or none")
    return found
