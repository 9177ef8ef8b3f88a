"""Every command of the guides to TensorRT and Jetson is run here as it stands, or listed with the reason why not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trt_moe.bundle import Bundle
from trt_moe.cli import app

ROOT = Path(__file__).resolve().parents[3]
GUIDES = ("docs/tensorrt.md", "docs/jetson.md")
IS_INSTALLATION = "changes the Python that runs this test; the gate installs the package with its extras"
IS_JETPACK = "of JetPack, which is on no machine but a Jetson"
NOT_RUN = {
    "trt-moe build": "the name of the command; calls with a bundle are run",
    "pip install .": IS_INSTALLATION,
    "pip install '.[rtx]'": IS_INSTALLATION,
    "pip install tensorrt": "the guide says not to",
    "python -m benchmarks.int8": "takes minutes; the gate runs its quick form",
    "sudo apt update && sudo apt install nvidia-jetpack g++ python3-dev python3-venv": IS_JETPACK,
    "python3 -m venv --system-site-packages .venv": IS_INSTALLATION,
    ".venv/bin/pip install . onnx onnxruntime": IS_INSTALLATION,
    "sudo systemctl isolate multi-user.target": "ends the desktop",
    "sudo nvpmodel -q": IS_JETPACK,
    "sudo nvpmodel -m 0": IS_JETPACK,
    "sudo jetson_clocks --store": IS_JETPACK,
    "sudo jetson_clocks": IS_JETPACK,
    "sudo jetson_clocks --show": IS_JETPACK,
    "sudo jetson_clocks --restore": IS_JETPACK,
}
OPTIONS_OF_OTHERS = {"--system-site-packages", "--store", "--show", "--restore"}


def commands(text: str) -> list[str]:
    """Lines of its bash blocks, and code within the text that starts like a command."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`((?:trt-moe|pip|sudo|python3?)\s[^`]+)`", prose)]
    return list(dict.fromkeys(line for line in [*lines, *inline] if line))


FOUND = {command: guide for guide in GUIDES for command in commands((ROOT / guide).read_text())}


def test_commands_are_found() -> None:
    text = "Type `trt-moe a\nb`.\n```bash\nc --d        # why\n\n```\n```\ne\n```\n`trt-moe` `f`"
    assert commands(text) == ["c --d", "trt-moe a b"]
    assert {guide for guide in FOUND.values()} == set(GUIDES)


def test_what_is_not_run_is_still_in_the_guides() -> None:
    assert [command for command in NOT_RUN if command not in FOUND] == []


@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_run(guide: str, shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    # There lies the shipped bundle with few sample images, under its own name.
    monkeypatch.chdir(shipped.path.parent)
    monkeypatch.setenv("TRT_MOE_CACHE_DIR", str(tmp_path / "cache"))
    for command in commands((ROOT / guide).read_text()):
        if command in NOT_RUN:
            continue
        program, *arguments = shlex.split(command, comments=True)
        assert program in ("trt-moe", ".venv/bin/trt-moe"), f"{command}: run it, or say in NOT_RUN why not"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{command}: {done.output}"


@pytest.mark.parametrize("guide", GUIDES)
def test_options_and_links_exist(guide: str) -> None:
    text = (ROOT / guide).read_text()
    helped = "".join(CliRunner().invoke(app, [*verb, "--help"]).stdout for verb in (["build"], ["cache", "list"]))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - OPTIONS_OF_OTHERS
    assert {option for option in named if option not in helped} == set()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / guide).parent.joinpath(link).exists(), link
