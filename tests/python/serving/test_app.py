"""The web application, called in this process."""

import asyncio
import io
import threading

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount

from support.asgi import ask, ask_now
from support.infer_requests import binary
from support.tiny_bundle import write_tiny_bundle
from trt_moe import Router, __version__
from trt_moe.errors import DeviceError, InputError, QueueFullError
from trt_moe.serving import app as module
from trt_moe.serving.app import make_app


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny", experts=2, classes=3, channels=3)


@pytest.fixture(scope="module")
def router(tiny):
    with Router(tiny.path, device="cpu") as router:
        yield router


@pytest.fixture
def app(router):
    return make_app(router)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def metrics(app):
    text = ask_now(app, "GET", "/metrics").body.decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_an_image_file_gets_the_answer_of_the_router(app, router, tiny):
    image = tiny.grey(250)[0]
    row = router.predict(image[None])[0]
    content = png(image)
    answer = ask_now(app, "POST", "/predict?top=2", [content[:10], content[10:]])
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert said.pop("ms") > 0
    best = np.argsort(-row.probabilities)[:2]
    assert said == {
        "label": row.class_name,
        "probability": float(row.probabilities.max()),
        "expert": "expert-1",
        "top": [[router.bundle.class_names[k], float(row.probabilities[k])] for k in best],
        "remarks": [],
    }


def test_what_is_not_read_of_an_image_is_said(app, tiny):
    seen_through = np.zeros((8, 8, 4), np.uint8)
    said = ask_now(app, "POST", "/predict", png(seen_through)).json()
    assert said["remarks"] == ["is transparent in places, which are read as if they were opaque"]
    assert len(said["top"]) == 1


def test_a_batch_gets_the_answers_of_the_router(app, router, tiny):
    images = np.concatenate([tiny.grey(10), tiny.grey(250, 2)])
    expected = router.predict(images)
    content, header = binary(images, outputs=[{"name": "experts"}, {"name": "probabilities"}])
    answer = ask_now(app, "POST", "/v2/models/tiny/infer", content, Inference_Header_Content_Length=header)
    assert answer.status == 200
    experts, probabilities = answer.json()["outputs"]
    assert experts["data"] == expected.experts.tolist() == [0, 1, 1]
    assert probabilities["shape"] == [3, 3]
    assert np.float32(probabilities["data"]).tolist() == expected.probabilities.ravel().tolist()


def test_a_batch_of_another_size_is_refused(app, tiny):
    content, header = binary(tiny.grey(10)[:, :4])
    answer = ask_now(app, "POST", "/v2/models/tiny/infer", content, Inference_Header_Content_Length=header)
    assert answer.status == 400
    assert "images are uint8 [1, 4, 8, 3]; expected uint8 [N, 8, 8, 3]" in answer.json()["error"]


def test_who_asks_is_told_what_answers(app):
    assert ask_now(app, "GET", "/v2").json() == {
        "name": "trt-moe",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }
    model = ask_now(app, "GET", "/v2/models/tiny").json()
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]
    assert [each["shape"] for each in model["outputs"]] == [[-1, 3], [-1], [-1], [-1], [-1, 2]]
    for path, said in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tiny/ready", {"name": "tiny", "ready": True}),
    ):
        answer = ask_now(app, "GET", path)
        assert (answer.status, answer.json()) == (200, said)


@pytest.mark.parametrize(
    ("method", "target", "status", "message"),
    [
        ("POST", "/predict", 400, "the request's body: the file is empty"),
        ("POST", "/predict?top=0", 400, "top is 0; expected a whole number from 1 to 3"),
        ("POST", "/predict?top=1.5", 400, "top is '1.5'; expected a whole number"),
        ("POST", "/predict?top=nan", 400, "top is 'nan'; expected a whole number"),
        ("POST", "/predict?top=two", 400, "top is 'two'; expected a whole number"),
        ("POST", "/predict?deadline_ms=-1", 400, "deadline_ms is -1.0; expected a number from"),
        ("POST", "/predict?deadline_ms=", 400, "deadline_ms is ''; expected a number"),
        ("POST", "/predict?tops=1", 400, "/predict?tops= is not known; expected top or deadline_ms"),
        ("POST", "/v2/models/tiny/infer", 400, "the request is not what was expected"),
        ("GET", "/predict", 405, "/predict takes no GET; expected POST /predict"),
        ("GET", "/", 404, "nothing is at /; expected POST /predict"),
        ("POST", "/v2/models/other/infer", 404, "nothing is at /v2/models/other/infer; expected"),
    ],
)
def test_what_cannot_be_answered_is_refused(app, method, target, status, message):
    answer = ask_now(app, method, target)
    assert answer.status == status
    assert message in answer.json()["error"]


def test_what_is_no_image_is_refused(app):
    answer = ask_now(app, "POST", "/predict", b"hello")
    assert answer.status == 400
    assert "not an image" in answer.json()["error"]
    answer = ask_now(app, "POST", "/predict", b"--x", Content_Type="multipart/form-data; boundary=x")
    assert answer.status == 415
    assert "--data-binary" in answer.json()["error"]


def test_too_large_a_request_is_not_read_to_its_end(app, monkeypatch):
    monkeypatch.setattr(module, "MAX_BODY", 2 << 20)
    answer = ask_now(app, "POST", "/predict", iter([bytes(1 << 20)] * 9))
    assert answer.status == 413
    assert answer.json()["error"] == "the request has more than 2 MiB; send less at once"
    assert metrics(app)["trt_moe_requests_total", "predict", "413"] == 1


def test_deadlines_are_the_requests_own_or_the_servers(router, tiny):
    content = png(tiny.grey(10)[0])
    strict = make_app(router, deadline_ms=0.01)
    answer = ask_now(strict, "POST", "/predict", content)
    assert answer.status == 504
    assert "reading the request took all of its 0.01 ms" in answer.json()["error"]
    assert ask_now(strict, "POST", "/predict?deadline_ms=60000", content).status == 200
    numbers, header = binary(tiny.grey(10), parameters={"deadline_ms": 60000})
    target = "/v2/models/tiny/infer"
    assert ask_now(strict, "POST", target, numbers, Inference_Header_Content_Length=header).status == 200
    numbers, header = binary(tiny.grey(10))
    assert ask_now(strict, "POST", target, numbers, Inference_Header_Content_Length=header).status == 504
    assert ask_now(make_app(router), "POST", target, numbers, Inference_Header_Content_Length=header).status == 200


def test_the_router_gets_what_is_left_of_a_deadline(router, tiny, monkeypatch):
    given = []

    async def predict_async(images, *, deadline_ms):
        given.append(deadline_ms)
        raise QueueFullError("full")

    monkeypatch.setattr(router, "predict_async", predict_async)
    app = make_app(router)
    assert ask_now(app, "POST", "/predict?deadline_ms=60000", png(tiny.grey(10)[0])).status == 503
    numbers, header = binary(tiny.grey(10), parameters={"deadline_ms": 60000})
    answer = ask_now(app, "POST", "/v2/models/tiny/infer", numbers, Inference_Header_Content_Length=header)
    assert answer.status == 503
    assert len(given) == 2
    for left in given:
        assert 0 < left < 60000


def test_what_is_late_before_its_turn_is_not_decoded(router, tiny, monkeypatch):
    decoded = []
    monkeypatch.setattr(module, "decode_image", lambda *arguments: decoded.append(arguments))
    assert ask_now(make_app(router), "POST", "/predict?deadline_ms=0.01", png(tiny.grey(10)[0])).status == 504
    assert not decoded


def test_a_request_that_is_too_large_is_refused_by_what_it_says_of_itself(app):
    answer = ask_now(app, "POST", "/predict", b"", Content_Length=str(1 << 30))
    assert answer.status == 413


def test_it_is_mounted_into_another_application(app, tiny):
    outer = Starlette(routes=[Mount("/classify", app)])
    assert ask_now(outer, "POST", "/classify/predict", png(tiny.grey(10)[0])).json()["expert"] == "expert-0"
    answer = ask_now(outer, "GET", "/classify/nothing")
    assert (answer.status, answer.json()["error"].split(";")[0]) == (404, "nothing is at /classify/nothing")


@pytest.mark.parametrize("options", [{"deadline_ms": -1}, {"deadline_ms": "soon"}, {"max_requests": 0}])
def test_wrong_options_are_refused(router, options):
    with pytest.raises(InputError, match=next(iter(options))):
        make_app(router, **options)


def test_more_requests_than_may_be_under_way_are_refused(router, tiny, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    decode = module.decode_image

    def slow(*arguments):
        entered.set()
        assert go_on.wait(60)
        return decode(*arguments)

    monkeypatch.setattr(module, "decode_image", slow)
    app = make_app(router, max_requests=1)
    content = png(tiny.grey(10)[0])

    async def both():
        first = asyncio.create_task(ask(app, "POST", "/predict", content))
        await asyncio.to_thread(entered.wait, 60)
        refused = await ask(app, "POST", "/predict", content)
        go_on.set()
        return await first, refused

    first, refused = asyncio.run(both())
    assert (first.status, refused.status) == (200, 503)
    assert refused.json()["error"] == "1 requests are under way; send fewer at once, or wait"
    assert ask_now(app, "POST", "/predict", content).status == 200


def test_metrics_are_the_routers(tiny):
    with Router(tiny.path, device="cpu", latency_weight=0.25) as router:
        app = make_app(router)
        for value in (10, 250, 250):
            assert ask_now(app, "POST", "/predict", png(tiny.grey(value)[0])).status == 200
        ask_now(app, "POST", "/predict", b"hello")
        found = metrics(app)
    assert found["trt_moe_images_total", "expert-0"] == 1
    assert found["trt_moe_images_total", "expert-1"] == 2
    assert found["trt_moe_requests_total", "predict", "200"] == 3
    assert found["trt_moe_requests_total", "predict", "400"] == 1
    assert found["trt_moe_request_seconds_count", "predict"] == 4
    assert found["trt_moe_latency_weight",] == 0.25
    assert found["trt_moe_in_flight",] == 0
    assert found["trt_moe_info", "tiny", router.device, "host-routed", router.precision] == 1
    within = [
        value
        for (name, *labels), value in found.items()
        if name == "trt_moe_stage_seconds_bucket" and "total" in labels
    ]
    assert within == sorted(within)
    assert within[-1] == found["trt_moe_stage_seconds_count", "total"] == 3
    assert 0 < found["trt_moe_stage_seconds_sum", "total"] < 60


def test_each_count_of_the_router_has_its_metric(router, monkeypatch):
    stats = {
        "stages": {},
        "experts": {"a": {"images": 1, "share": 1.0, "passed_on": 2, "batches": 3}},
        "deadlines": {"moved": 4, "missed": 5},
        "in_flight": 6,
    }
    monkeypatch.setattr(router, "stats", lambda: stats)
    monkeypatch.setattr(router, "latencies", lambda limits_ms: {})
    found = metrics(make_app(router))
    assert found["trt_moe_images_total", "a"] == 1
    assert found["trt_moe_passed_on_total", "a"] == 2
    assert found["trt_moe_batches_total", "a"] == 3
    assert found["trt_moe_deadline_moved_total",] == 4
    assert found["trt_moe_deadline_missed_total",] == 5
    assert found["trt_moe_in_flight",] == 6


def test_a_router_that_is_closed_is_not_ready(tiny):
    router = Router(tiny.path, device="cpu")
    app = make_app(router)
    router.close()
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
        answer = ask_now(app, "GET", path)
        assert answer.status == 503
        assert answer.json() == {"error": "the router is closed; restart the server"}
    answer = ask_now(app, "POST", "/predict", png(tiny.grey(10)[0]))
    assert answer.status == 503
    assert "the router is closed" in answer.json()["error"]


def test_what_fails_in_the_server_is_its_own_fault(router, tiny, monkeypatch):
    async def predict_async(images, *, deadline_ms):
        raise failure

    monkeypatch.setattr(router, "predict_async", predict_async)
    app = make_app(router)
    failure = DeviceError("the GPU is gone")
    answer = ask_now(app, "POST", "/predict", png(tiny.grey(10)[0]))
    assert (answer.status, answer.json()) == (500, {"error": "the GPU is gone"})
    failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        ask_now(app, "POST", "/predict", png(tiny.grey(10)[0]))
    assert metrics(app)["trt_moe_requests_total", "predict", "500"] == 2
