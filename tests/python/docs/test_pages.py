"""What README.md and docs/ tell a reader to type or to follow exists."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main
import yaml
from PIL import Image
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup

import trt_moe
from trt_moe.cli.app import app
from trt_moe.training.config import (
    CorruptionConfig,
    ExpertConfig,
    GaterConfig,
    JointConfig,
    SplitConfig,
    TrainConfig,
)

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued ones joined, and its inline code."""
    text = page.read_text()
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(page: Path, program: str) -> list[list[str]]:
    """What follows `program` where a page calls it, up to the next shell operator."""
    found = []
    for line in code(page):
        for part in re.split(r"&&|;|\|", line):
            _, called, rest = part.partition(program)
            if called:
                found.append(shlex.split(rest, comments=True))
    return found


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in headings(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    for words in commands(page, "trt-moe "):
        command, rest = typer.main.get_command(app), words
        while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{page.name}: trt-moe {' '.join(words)}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
        unknown = {word.partition("=")[0] for word in rest if word.startswith("-")} - known - {"--help"}
        assert not unknown, f"{page.name}: trt-moe {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_benchmarks_exist_with_their_options(page: Path) -> None:
    for words in commands(page, "python -m benchmarks"):
        module = "benchmarks" + (words[0] if words and words[0].startswith(".") else "")
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None, f"{page.name}: python -m {module}"
        source = Path(spec.origin)
        if source.name == "__init__.py":
            source = source.with_name("__main__.py")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source.read_text(), f"{page.name}: {module} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_exist(page: Path) -> None:
    for name in re.findall(r"configs/[\w.-]+\.yaml", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


SECTIONS = (TrainConfig, SplitConfig, CorruptionConfig, ExpertConfig, GaterConfig, JointConfig)
WORDS = {"required": PydanticUndefined, "none": None, "as they are": None, "measured": None}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_of_a_configuration_is_told_with_its_default(section: type[BaseModel]) -> None:
    _, _, after = (ROOT / "docs" / "training.md").read_text().partition(f"<!-- {section.__name__} -->\n")
    told = {}
    for keys, default in re.findall(r"^\| (`.*?`) \| (.*?) \|", after.partition("\n\n")[0], re.MULTILINE):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", keys), default)
    fields = {name: field for name, field in section.model_fields.items() if name != "source"}
    assert list(told) == list(fields)
    for name, field in fields.items():
        if told[name] == "see below" or field.default == ():
            continue
        expected = WORDS[told[name]] if told[name] in WORDS else yaml.safe_load(told[name])
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert (str(default) if isinstance(default, Path) else default) == expected, name


def test_the_python_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    bundle = trt_moe.Bundle.load("fashion-mnist")
    images, _, _ = bundle.samples()
    for name, image in zip(("shoe.png", "coat.png"), images, strict=False):
        Image.fromarray(image.squeeze()).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    answers, one, statistics = capsys.readouterr().out.splitlines()
    assert "(2, 10)" in answers
    assert one in bundle.class_names
    assert "p99" in statistics
