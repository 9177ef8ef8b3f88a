"""The package found as source, without its compiled module."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trt_moe

# Other finders, of editable installs, come before the path.
PREPARE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
sys.path.insert(0, sys.argv.pop(1))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shutil.copytree(
        Path(trt_moe.__file__).parent, tmp_path / "trt_moe", ignore=shutil.ignore_patterns("_core*", "__pycache__")
    )
    (tmp_path / "CMakeLists.txt").touch()
    return tmp_path


def run(source: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREPARE + code, str(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


BUNDLE = Path(__file__).parents[3] / "engines" / "fashion-mnist"
COMMAND = f"sys.argv[1:] = ['profile', '{BUNDLE}']; from trt_moe.cli import main; main()"


@pytest.mark.parametrize("code", ["import trt_moe; trt_moe.Router", COMMAND])
def test_it_says_what_to_do(source: Path, code: str) -> None:
    done = run(source, code)
    assert done.returncode != 0
    assert f"{source / 'trt_moe'} is the source, which Python found before any installed trt_moe" in done.stderr
    assert f"run from another folder than {source}, or install it in place: pip install -e ." in done.stderr


def test_doctor_works_without_it(source: Path) -> None:
    done = run(source, "sys.argv[1:] = ['doctor', '--json']; from trt_moe.cli import main; main()")
    assert '"command": "pip install -e ."' in done.stdout, done.stderr
