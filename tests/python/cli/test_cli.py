import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from support.tiny_bundle import write_tiny_bundle
from trt_moe import __main__, __version__
from trt_moe.cli import app, options
from trt_moe.errors import InputError
from trt_moe.router import Router

VERBS = (
    *("demo", "predict", "eval", "profile", "serve", "build", "study", "sweep"),
    *("inspect", "doctor", "train", "export", "pack", "scenes"),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny", experts=2, classes=3, channels=3)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def test_help_and_version():
    text = run("--help").stdout
    for verb in VERBS:
        assert verb in text
        assert "--json" in run(verb, "--help").stdout
    assert run("--version").stdout.strip() == f"trt-moe {__version__}"


def test_help_is_quick_and_needs_no_heavy_package():
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'timm', 'tensorrt', 'matplotlib'): sys.modules[name] = None\n"
        "from trt_moe.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'openvino' not in sys.modules\n"
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - begin < 10  # 0.6 s on an idle machine


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["predict"],
        ["inspect"],
        ["inspect", "no-such-bundle"],
        ["inspect", "/no/such/folder"],
        ["demo", "--precision", "int3"],
        ["demo", "--latency-weight", "-1"],
        ["profile", "x", "--clients", "0"],
        ["eval", "/no/such/data"],
        ["train", "/no/such.yaml"],
        ["pack", "out"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert run(*arguments, code=2).stderr


def test_errors_are_one_message(tiny):
    result = run("inspect", tiny.path.parent, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("trt-moe: error: ")
    assert result.stderr.count("\n") == 1


def test_control_characters_of_file_names_are_not_printed(tiny, tmp_path):
    result = run("predict", tmp_path / "\x1b[31mred.png", "-b", tiny.path, code=1)
    assert "\x1b" not in result.output


def test_inspect(tiny):
    text = run("inspect", tiny.path).stdout
    for word in (
        "gater",
        "expert-1",
        "robust-light",
        "relative cost",
        "linear in the mean brightness",
        "made by script",
    ):
        assert word in text
    data = json.loads(run("inspect", tiny.path, "--json").stdout)
    assert data["name"] == "tiny"
    assert data["bytes"]["gater"] == (tiny.path / "gater.onnx").stat().st_size


def test_inspect_says_when_samples_are_missing(tiny, tmp_path):
    copy = shutil.copytree(tiny.path, tmp_path / "copy")
    assert "samples         18 images in samples/\n" in run("inspect", copy).stdout
    shutil.rmtree(copy / "samples" / "3")
    assert "samples         18 images in samples/, where 15 are\n" in run("inspect", copy).stdout


def test_doctor():
    text = run("doctor").stdout
    assert "openvino" in text
    assert "CPU backend" in text
    data = json.loads(run("doctor", "--json").stdout)
    assert data["ok"] is True
    assert data["cpu"]["usable"] >= 1
    assert "openvino" in data["trt_moe"]["backends"]


def test_predict(tiny, tmp_path):
    Image.fromarray(tiny.grey(250)[0]).save(tmp_path / "bright [1].png")
    Image.fromarray(np.full((50, 20), 5, np.uint8)).save(tmp_path / "dark.png")
    text = run("predict", tmp_path, "-b", tiny.path, "--top", 2).stdout
    assert "bright [1].png" in text
    assert "class-2" in text
    data = json.loads(run("predict", tmp_path, "-b", tiny.path, "--json").stdout)
    assert [row["label"] for row in data["predictions"]] == ["class-2", "class-0"]
    assert [row["expert"] for row in data["predictions"]] == ["expert-1", "expert-0"]
    assert all(row["ms"] > 0 for row in data["predictions"])
    routed = json.loads(run("predict", tmp_path, "-b", tiny.path, "-w", 1000, "--json").stdout)
    assert {row["expert"] for row in routed["predictions"]} == {"expert-0"}


@pytest.mark.parametrize(("by", "answered"), [("dearest", ["expert-1"] * 2), ("mirror", ["expert-1", "expert-0"])])
def test_predict_verifies_as_told(tiny, tmp_path, by, answered):
    for name, value in (("bright", 250), ("dark", 5)):
        Image.fromarray(tiny.grey(value)[0]).save(tmp_path / f"{name}.png")
    arguments = ["predict", tmp_path, "-b", tiny.path, "--verify-below", 1, "--verify-by", by]
    data = json.loads(run(*arguments, "--json").stdout)
    assert (data["verify_below"], data["verify_by"]) == (1.0, by)
    assert [row["expert"] for row in data["predictions"]] == answered
    assert ("by mirror below 1" in " ".join(run(*arguments).stdout.split())) == (by == "mirror")
    assert "cheapest" in run(*arguments[:-1], "cheapest", code=2).stderr


def test_predict_answers_the_readable_and_names_the_others(tiny, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(tiny.grey(250)[0]).save(good)
    bad.write_text("no image")
    result = run("predict", bad, good, tmp_path / "gone.png", "-b", tiny.path, code=1)
    assert "class-2" in result.stdout
    assert str(bad) in result.stderr
    assert "gone.png: no such file" in result.stderr
    assert "2 of 3 images could not be read" in result.stderr
    result = run("predict", bad, good, "-b", tiny.path, "--json", code=1)
    data = json.loads(result.stdout)
    assert [row["path"] for row in data["predictions"]] == [str(good)]
    assert [row["path"] for row in data["failures"]] == [str(bad)]


def test_predict_names_an_empty_folder_among_the_others_and_says_remarks(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    see_through = Image.fromarray(tiny.grey(250)[0]).convert("RGBA")
    see_through.putalpha(100)
    see_through.save(tmp_path / "glass.png")
    result = run("predict", tmp_path / "empty", tmp_path / "glass.png", "-b", tiny.path, "--json", code=1)
    data = json.loads(result.stdout)
    assert [row["path"][-9:] for row in data["predictions"]] == ["glass.png"]
    assert [row["path"][-5:] for row in data["failures"]] == ["empty"]
    assert [row["reason"][:24] for row in data["remarks"]] == ["is transparent in places"]


def test_predict_prints_what_was_answered_until_an_interrupt(tiny, tmp_path, monkeypatch):
    for name in "abc":
        Image.fromarray(tiny.grey(250)[0]).save(tmp_path / f"{name}.png")
    answer, asked = Router.predict, []

    def interrupted(self, batch):
        asked.append(batch)
        if len(asked) % 3 == 0:
            raise KeyboardInterrupt
        return answer(self, batch)

    monkeypatch.setattr(Router, "predict", interrupted)
    result = run("predict", tmp_path, "-b", tiny.path, "--json", code=130)
    assert [row["path"][-5:] for row in json.loads(result.stdout)["predictions"]] == ["a.png", "b.png"]
    assert "interrupted" in result.stderr
    assert "b.png" in run("predict", tmp_path, "-b", tiny.path, code=130).stdout


def test_predict_leaves_it_to_the_system_what_may_be_read(tiny, tmp_path, monkeypatch):
    Image.fromarray(tiny.grey(250)[0]).save(tmp_path / "a.png")
    monkeypatch.setattr("os.access", lambda *arguments, **options: False)
    assert "class-2" in run("predict", tmp_path / "a.png", "-b", tiny.path).stdout


def test_predict_says_what_it_does_not_read(tiny, tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (250, 0)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = run("predict", tmp_path, "-b", tiny.path, "--json")
    assert "a.gif: has several frames; only the first is read" in result.stderr
    assert json.loads(result.stdout)["predictions"][0]["label"] == "class-2"


@pytest.mark.parametrize("encoding", ["utf-8:strict", "latin-1"])
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_file_names_that_the_output_cannot_encode(tiny, tmp_path, encoding, arguments):
    for name in (b"caf\xe9.png", "\u041f.png".encode()):
        Image.fromarray(tiny.grey(250)[0]).save(os.path.join(os.fsencode(tmp_path), name), "PNG")  # noqa: PTH118
    (tmp_path / "\u041f\udcff.png").touch()
    command = [sys.executable, "-m", "trt_moe", "predict", str(tmp_path), "-b", str(tiny.path), *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    if arguments:
        assert [row["label"] for row in json.loads(done.stdout)["predictions"]] == ["class-2"] * 2
    else:
        assert done.stdout.count(b"class-2") == 2


def test_demo(tiny, tmp_path):
    picture = tmp_path / "p.png"
    text = run("demo", tiny.path, "--picture", picture).stdout
    assert "severity" in text
    assert "latency weight" in text
    assert picture.is_file()
    data = json.loads(run("demo", tiny.path, "--picture", picture, "--json").stdout)
    assert data["images"] == 18
    assert data["picture"] == str(picture)


def test_demo_picture_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    assert "its folder does not exist" in run("demo", tiny.path, "--picture", "/no/such/p.png", code=2).stderr
    assert "is a folder" in run("demo", tiny.path, "--picture", tmp_path, code=2).stderr
    monkeypatch.setattr("os.access", lambda *arguments: False)
    message = run("demo", tiny.path, "--picture", tmp_path / "p.png", code=2).stderr
    assert "no right to write" in message
    assert "--picture FILE" in message


def test_eval(tiny, tmp_path):
    arguments = ("eval", tiny.path / "samples", "-b", tiny.path, "--latency-images", 2)
    output, picture = tmp_path / "e.json", tmp_path / "e.png"
    text = run(*arguments, "--confusion", "--output", output, "--picture", picture).stdout
    for word in ("cascade", "oracle", "frontier", "confusion", "class-2"):
        assert word in text
    assert json.loads(output.read_text())["images"] == 18
    assert picture.is_file()
    data = json.loads(run(*arguments, "--json", "--severities", "0,4-5").stdout)
    assert list(data["severities"]) == ["0", "4", "5"]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [((), "both", "under blur and noise"), (("--kind", "blur"), "blur", "under blur alone")],
)
def test_eval_says_what_corrupted_the_images(tiny, tmp_path, options, kind, words):
    shutil.copytree(tiny.path / "samples" / "0", tmp_path / "test")
    arguments = ("eval", tmp_path, "-b", tiny.path, "--latency-images", 1, "--severities", "5", *options)
    assert words in run(*arguments).stdout
    assert json.loads(run(*arguments, "--json").stdout)["corruption"] == kind


def test_eval_refuses_before_it_works(tiny):
    arguments = ("eval", tiny.path / "samples", "-b", tiny.path)
    assert "its folder does not exist" in run(*arguments, "--output", "/no/such/e.json", code=2).stderr
    assert "expected numbers 0 to 5" in run(*arguments, "--severities", "6", code=2).stderr
    assert "leave out --kind" in run(*arguments, "--kind", "noise", code=2).stderr


def test_a_report_is_printed_even_where_its_file_cannot_be_written(tiny, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trt_moe.output.write_bytes", full)
    output, picture = tmp_path / "e.json", tmp_path / "e.png"
    arguments = ("eval", tiny.path / "samples", "-b", tiny.path, "--latency-images", 2, "-o", output)
    result = run(*arguments, code=1)
    assert "frontier" in result.stdout
    assert f"{output}: cannot be written (No space left on device)" in result.stderr
    result = run("demo", tiny.path, "--picture", picture, code=1)
    assert "frontier" in result.stdout
    assert f"{picture}: cannot be written" in result.stderr


def test_eval_leaves_out_broken_images_only_when_asked(tiny, tmp_path):
    shutil.copytree(tiny.path / "samples", tmp_path / "samples")
    (next((tmp_path / "samples" / "0").iterdir()) / "broken.jpg").write_bytes(b"no")
    arguments = ("eval", tmp_path / "samples", "-b", tiny.path, "--latency-images", 1, "--json")
    head, listed, end = run(*arguments, code=2).stderr.split("\n")
    assert "--skip-broken:" in head
    assert (listed.startswith("  "), "broken.jpg" in listed, end) == (True, True, "")
    done = run(*arguments, "--skip-broken")
    assert "broken.jpg" in done.stderr
    assert json.loads(done.stdout)["images"] == 18


def test_profile(tiny, tmp_path):
    output = tmp_path / "p.json"
    arguments = ("profile", tiny.path, "-n", 20, "--clients", "1,2", "--seconds", 0.1)
    text = run(*arguments, "--output", output).stdout
    assert "p99.9 ms" in text
    assert "clients" in text
    assert json.loads(output.read_text())["iterations"] == 20
    data = json.loads(run(*arguments[:4], "--clients", "none", "--json").stdout)
    assert data["clients"] == data["rates"] == []
    sent = (*arguments[:4], "--clients", "none", "--seconds", 0.2, "--rates", "50,1000")
    text = run(*sent, "--deadline-ms", 60_000).stdout
    assert "single images at random times, each due in 60000 ms" in text
    assert "in time %" in text and "1,000" in text
    text = run(*sent).stdout
    assert "single images at random times" in text
    assert "in time %" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--clients", "0"], "--clients is '0'; expected numbers from 1 to 1024"),
        (["--rates", "0.5"], "--rates is '0.5'; expected numbers from 1 to 100000"),
        (["--rates", "500", "--deadline-ms", "0"], "--deadline-ms is 0.0; expected a number from 1e-06 to 1e+09"),
        (["--rates", "500", "--deadline-ms", "nan"], "--deadline-ms is nan; expected a number from 1e-06 to 1e+09"),
        (["--deadline-ms", "20"], "--deadline-ms is for the images that --rates sends; add --rates"),
        (["--rates", "100000", "--seconds", "60"], "are 6,000,000 images; expected at most 1,000,000"),
    ],
)
def test_options_of_profile_that_make_no_sense(tiny, arguments, says):
    assert says in " ".join(run("profile", tiny.path, *arguments, code=2).stderr.split())


def test_training_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trt_moe.training.pipeline", None)
    monkeypatch.setitem(sys.modules, "trt_moe.training.config", None)
    assert "pip install '.[train]'" in run("train", tmp_path / "c.yaml", code=1).stderr


def test_export_of_an_unfinished_run(tmp_path):
    pytest.importorskip("torch")
    config = tmp_path / "c.yaml"
    severities = "severities: [1, 1, 1, 1, 1, 1]"
    config.write_text(
        "name: demo\nmean: [0.5]\nstd: [0.5]\nexperts:\n"
        f"  - {{name: small, model: squeezenet1_1, image_size: 64, {severities}}}\n"
        f"  - {{name: large, model: squeezenet1_1, image_size: 64, {severities}}}\n"
    )
    message = run("export", config, "--data", tmp_path, "--checkpoints", tmp_path, code=2).stderr
    assert "has no checkpoint of small, large" in message
    from safetensors.numpy import save_file

    (tmp_path / "demo").mkdir()
    gaters = [f"gater-{method}-{seed}" for method in ("regret", "benefit", "gumbel") for seed in range(3)]
    for name in ("small", "large", *gaters):
        save_file({}, tmp_path / "demo" / f"{name}.safetensors", {"config": "of another day"})
    message = run("export", config, "--data", tmp_path, "--checkpoints", tmp_path, code=2).stderr
    assert "small, large were trained with other settings" in message
    (tmp_path / "demo" / "small.safetensors").write_bytes(b"junk")
    message = run("export", config, "--data", tmp_path, "--checkpoints", tmp_path, code=2).stderr
    assert "small.safetensors is damaged" in message


def interrupt(arguments, folder, after, **environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "trt_moe", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def test_ctrl_c_ends_quietly_and_leaves_nothing(tiny, tmp_path):
    arguments = ["profile", tiny.path, "--seconds", 600, "--output", "out.json"]
    code, out, err = interrupt(arguments, tmp_path, after=6)
    assert code == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_closed_pipe_is_quiet(tiny):
    process = subprocess.Popen(
        [sys.executable, "-m", "trt_moe", "inspect", str(tiny.path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", ["--version", "cache list", "cache list --json"])
def test_output_that_cannot_be_written_is_one_message(tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("TRT_MOE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = [sys.executable, "-m", "trt_moe", *arguments.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "trt-moe: error: No space left on device\n")


@pytest.mark.parametrize("arguments", ["doctor", "doctor --json"])
def test_a_closed_stdout_is_one_message(arguments):
    command = f"exec {sys.executable} -m trt_moe {arguments} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("trt-moe: error: standard output is closed")
    silent = subprocess.run(["sh", "-c", f"{command} 2>&-"], capture_output=True, text=True, check=False)
    assert (silent.returncode, silent.stdout, silent.stderr) == (1, "", "")


def test_ctrl_c_while_a_module_in_c_is_loaded(monkeypatch):
    def load(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("trt_moe.bundle.Bundle.load", load)
    assert "interrupted" in run("inspect", "fashion-mnist", code=130).stderr


def test_ctrl_c_while_the_command_is_imported(monkeypatch):
    class Interrupted:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "trt_moe.cli", Interrupted())
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 130


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-5", (0, 1, 2, 3, 4, 5)), ("3", (3,)), ("5, 0", (0, 5)), ("1-2,2-3", (1, 2, 3))],
)
def test_severities(text, expected):
    assert options.severities(text) == expected


@pytest.mark.parametrize("text", ["", "6", "-1", "2-", "a", "5-3", "0..3"])
def test_wrong_severities(text):
    with pytest.raises(InputError):
        options.severities(text)


def test_other_parsers(tmp_path):
    assert options.numbers("1/255", "x") == (1 / 255,)
    assert options.numbers("0.5,1", "x") == (0.5, 1.0)
    assert options.sizes("224x224x3", "x", 3) == (224, 224, 3)
    assert options.latency_images("ALL") is None
    assert options.latency_images(" 5") == 5
    assert options.counts("1, 16", "x") == (1, 16)
    assert options.named_file("a=b.onnx") == ("a", tmp_path.__class__("b.onnx"))
    assert options.named_file("dir/My Net.onnx")[0] == "my-net"
    assert options.class_names("a, b") == ["a", "b"]
    names = tmp_path / "names.txt"
    names.write_text("first\n\nsecond\n")
    assert options.class_names(str(names)) == ["first", "second"]
    assert options.overrides(["a.b.mean=0,1"], ["a.b"]) == {"a.b": {"mean": "0,1"}}
    assert options.counts("none", "x") == ()
    for call in (
        lambda: options.numbers("a", "x"),
        lambda: options.numbers("1/0", "x"),
        lambda: options.sizes("2x2", "x", 3),
        lambda: options.sizes("0x2x3", "x", 3),
        lambda: options.latency_images("0"),
        lambda: options.latency_images("\N{SUPERSCRIPT TWO}"),
        lambda: options.latency_images("5" * 5000),
        lambda: options.sizes("\N{SUPERSCRIPT TWO}x2", "x", 2),
        lambda: options.counts("1,\N{SUPERSCRIPT TWO}", "x"),
        lambda: options.named_file("=x"),
        lambda: options.class_names("missing.txt"),
        lambda: options.overrides(["nothing"], ["a"]),
        lambda: options.overrides(["b.mean=1"], ["a"]),
        lambda: options.counts("0", "x"),
    ):
        with pytest.raises(InputError):
            call()


def test_scenes_are_drawn_and_told(tmp_path: Path) -> None:
    found = json.loads(run("scenes", str(tmp_path / "data"), "--train", "1", "--test", "1", "--json").stdout)
    assert found["folder"] == str(tmp_path / "data")
    assert (found["train"], found["test"]) == (1, 1)
    assert sorted(folder.name for folder in (tmp_path / "data" / "seg_test").iterdir()) == sorted(found["classes"])


def test_options_of_eval_are_heeded(tiny, tmp_path, monkeypatch):
    given = {}

    def spy(bundle, **options):
        given.update(options)
        return Router(bundle, **options)

    monkeypatch.setattr("trt_moe.router.Router", spy)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("class-0", "class-1"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (90 * number, 9, 9)).save(tmp_path / split / name / f"{number}.png")
    common = ("eval", tmp_path, "-b", tiny.path, "--severities", "0,3", "--json", "-p", "fp32", "-t", 1)
    assert json.loads(run(*common, "--split", "train").stdout)["images"] == 12
    report = json.loads(run(*common, "--images", 3, "--latency-images", 1).stdout)
    assert (report["images"], report["latency_images"]) == (6, 2)
    assert (given["precision"], given["threads"]) == ("fp32", 1)


@pytest.mark.parametrize("text", ["5-3", "0,5-3", "0-"])
def test_severities_with_a_range_that_is_none(text):
    with pytest.raises(InputError, match="severities are"):
        options.severities(text)


def test_half_a_fraction_is_no_number():
    with pytest.raises(InputError, match="scale is '1/'; expected numbers"):
        options.numbers("1/", "scale")
