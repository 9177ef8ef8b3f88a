"""`trt-moe serve` as a process of its own."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.infer_requests import binary
from support.tiny_bundle import write_tiny_bundle
from trt_moe import Bundle

COMMAND = [sys.executable, "-m", "trt_moe", "serve"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny", experts=2, classes=3, channels=3)


@contextmanager
def serving(bundle, *options):
    """A server, and what it said when it was ready."""
    command = [*COMMAND, str(bundle), "--port", "0", "--device", "cpu", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        yield process, json.loads(said)
    finally:
        process.kill()
        process.communicate()


def connection(address):
    parts = urllib.parse.urlsplit(address)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)


def ask(client, method, path, content=None, headers=None):
    client.request(method, path, content, headers or {})
    answer = client.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_stopped(tiny, stop):
    with serving(tiny.path, "--latency-weight", "0.25") as (process, ready):
        assert ready["bundle"] == "tiny"
        client = connection(ready["address"])
        assert ask(client, "GET", "/v2/health/ready") == (200, b'{"ready":true}')
        images = np.concatenate([tiny.grey(10), tiny.grey(250)])
        content, length = binary(images, outputs=[{"name": "experts"}])
        headers = {"Inference-Header-Content-Length": length}
        status, answer = ask(client, "POST", "/v2/models/tiny/infer", content, headers)
        assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [0, 1])
        assert b"trt_moe_latency_weight 0.25" in ask(client, "GET", "/metrics")[1]
        process.send_signal(stop)  # with the connection still open
        assert process.wait(60) == 0
        assert "answers at" in (said := process.stderr.read())
        assert "Traceback" not in said


def test_what_is_under_way_is_answered_before_it_stops(tiny):
    with serving(tiny.path) as (process, ready):
        client = connection(ready["address"])
        content, length = binary(tiny.grey(10))
        client.putrequest("POST", "/v2/models/tiny/infer")
        client.putheader("Inference-Header-Content-Length", length)
        client.putheader("Content-Length", str(len(content)))
        client.endheaders(content[:-1])
        metrics = connection(ready["address"])
        while b"trt_moe_requests_under_way 1.0" not in ask(metrics, "GET", "/metrics")[1]:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 60
        while time.monotonic() < until:  # it takes no one else
            try:
                socket.create_connection((client.host, client.port), timeout=60).close()
            except ConnectionError:
                break
            time.sleep(0.01)
        client.send(content[-1:])
        assert client.getresponse().status == 200
        assert process.wait(60) == 0


def test_its_deadline_is_that_of_requests_without_one(tiny):
    with serving(tiny.path, "--deadline-ms", "0.01") as (_, ready):
        client = connection(ready["address"])
        status, answer = ask(client, "POST", "/predict", b"an image")
        assert status == 504
        assert b"all of its 0.01 ms" in answer


def test_more_requests_than_its_limit_are_refused(tiny):
    with serving(tiny.path, "--max-requests", "1") as (_, ready):
        first = connection(ready["address"])
        first.putrequest("POST", "/predict")
        first.putheader("Content-Length", "9")
        first.endheaders(b"an")
        client = connection(ready["address"])
        while b"trt_moe_requests_under_way 1.0" not in ask(client, "GET", "/metrics")[1]:
            time.sleep(0.01)
        assert ask(client, "POST", "/predict", b"an image")[0] == 503
        first.close()
        while b"trt_moe_requests_under_way 0.0" not in (metrics := ask(client, "GET", "/metrics")[1]):
            time.sleep(0.01)
        assert b'trt_moe_requests_total{endpoint="predict",status="499"} 1.0' in metrics  # the one who left
        assert ask(client, "POST", "/predict", b"an image")[0] == 400


def test_two_cannot_have_one_port(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, str(tiny.path), "--port", str(port)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert f"port {port} cannot be served: Address already in use; pass another --port" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "no.such.host.invalid"], "--host is 'no.such.host.invalid'"),
        (["--host", "192.0.2.1"], "--host is '192.0.2.1': Cannot assign requested address"),
        (["--host", "a..b"], "--host is 'a..b': "),
        (["--deadline-ms", "-1"], "--deadline-ms is -1.0; expected a number from"),
        (["--port", "65536"], "'--port'"),
        (["--max-requests", "0"], "'--max-requests'"),
    ],
)
def test_wrong_options_are_refused(tiny, options, message):
    done = subprocess.run([*COMMAND, str(tiny.path), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_package_that_is_missing_is_named():
    code = (
        "import sys\n"
        "sys.modules['uvicorn'] = None\n"
        "sys.argv[1:] = ['serve', 'fashion-mnist']\n"
        "from trt_moe.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "`trt-moe serve` needs uvicorn, which is not installed; in the checkout: pip install '.[serve]'" in done.stderr
    )


def test_the_client_of_triton_is_answered(tiny):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    with (
        serving(tiny.path) as (_, ready),
        triton.InferenceServerClient(ready["address"].removeprefix("http://")) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_server_metadata()["name"] == "trt-moe"
        (described,) = client.get_model_metadata("tiny")["inputs"]
        assert described == {"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}
        pixels = np.concatenate([tiny.grey(10), tiny.grey(250)])
        for as_bytes in (True, False):
            images = triton.InferInput("images", list(pixels.shape), "UINT8")
            images.set_data_from_numpy(pixels, binary_data=as_bytes)
            wanted = [triton.InferRequestedOutput(name, binary_data=as_bytes) for name in ("experts", "probabilities")]
            answer = client.infer("tiny", [images], outputs=wanted, request_id="7", parameters={"deadline_ms": 60000})
            assert answer.get_response()["id"] == "7"
            assert answer.as_numpy("experts").tolist() == [0, 1]
            assert answer.as_numpy("probabilities").shape == (2, 3)
        with pytest.raises(triton.InferenceServerException, match="deadline_ms is -1"):
            client.infer("tiny", [images], parameters={"deadline_ms": -1})


def test_the_example_with_tritons_client_runs(capsys):
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    (example,) = re.findall(r"^```python\n(import tritonclient.*?)^```$", page, re.MULTILINE | re.DOTALL)
    images = Bundle.load("fashion-mnist").samples()[0][:8]
    with serving("fashion-mnist") as (_, ready):
        address = ready["address"].removeprefix("http://")
        exec(compile(example.replace("127.0.0.1:8000", address), "serving.md", "exec"), {"batch": images})
    assert len(re.findall(r"\d", capsys.readouterr().out)) == 16
