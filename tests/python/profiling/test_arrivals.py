"""Images at random times, sent to a stand-in for a router."""

import gc
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from trt_moe.errors import DeadlineError, InputError, QueueFullError, RouterClosedError
from trt_moe.profiling.arrivals import Outcome, send_at_random

REFUSALS = {0: QueueFullError("full"), 1: DeadlineError("late")}


class Server:
    """Answers at once with ten times the index; of what `fails` names, with an error, at submission or later."""

    def __init__(
        self, fails: dict[int, Exception] | None = None, at_submission: bool = False, takes_s: float = 0
    ) -> None:
        self.fails, self.at_submission, self.takes_s = fails or {}, at_submission, takes_s
        self.came: list[tuple[float, int, float]] = []
        self.collects: set[bool] = set()

    def __call__(self, index: int, late_ms: float) -> Future[int]:
        self.came.append((time.perf_counter(), index, late_ms))
        self.collects.add(gc.isenabled())
        future: Future[int] = Future()
        error = self.fails.get(index)
        if error is not None and self.at_submission:
            raise error
        if error is not None:
            future.set_exception(error)
        elif self.takes_s:
            threading.Timer(self.takes_s, future.set_result, (10 * index,)).start()
        else:
            future.set_result(10 * index)
        return future


def send(server: Server, rate: float = 2000, seconds: float = 0.25):
    return send_at_random(server, lambda answer: answer + 1, 5, rate, seconds, np.random.default_rng(1))


def test_every_image_has_one_outcome() -> None:
    server = Server()
    sent = send(server)
    assert [outcome.image for outcome in sent.outcomes] == [index for _, index, _ in server.came]
    assert len(sent.outcomes) == 500
    assert {outcome.image for outcome in sent.outcomes} == set(range(5))
    for outcome in sent.outcomes:
        assert outcome.value == 10 * outcome.image + 1
        assert outcome.latency_ms is not None and outcome.latency_ms >= 0


def test_images_come_at_times_that_were_drawn() -> None:
    server = Server()
    begin = time.perf_counter()
    sent = send(server, rate=200, seconds=0.5)
    drawn = np.sort(np.random.default_rng(1).uniform(0, 0.5, 100))
    came = np.array([at for at, _, _ in server.came]) - begin
    assert (came >= drawn).all(), "none comes early"
    np.testing.assert_array_equal(sent.late_ms, [late for _, _, late in server.came])


def test_answers_that_come_later_are_waited_for() -> None:
    sent = send(Server(takes_s=0.2), rate=100, seconds=0.1)
    assert len(sent.outcomes) == 10
    assert all(outcome.latency_ms is not None and outcome.latency_ms >= 200 for outcome in sent.outcomes)


def test_a_latency_counts_from_when_the_image_was_to_come() -> None:
    class Blocked(Server):
        def __call__(self, index: int, late_ms: float) -> Future[int]:
            if not self.came:
                time.sleep(0.2)
            return super().__call__(index, late_ms)

    sent = send(Blocked(), rate=1000, seconds=0.05)
    assert all(outcome.latency_ms is not None and outcome.latency_ms > 140 for outcome in sent.outcomes)
    assert (sent.late_ms[1:] > 140).all()


def test_too_many_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"100,000 images a second for 3600 seconds are 360,000,000 images"):
        send(Server(), rate=100_000, seconds=3600)


def test_an_error_ends_it_at_once() -> None:
    server = Server({index: RouterClosedError("closed") for index in range(5)})
    with pytest.raises(RouterClosedError):
        send(server, rate=10, seconds=100)
    assert len(server.came) == 1


def test_what_is_refused_leaves_no_cycles() -> None:
    gc.collect()
    gc.disable()
    try:
        send(Server({1: REFUSALS[1]}))
        assert gc.collect() < 100  # 500 images were sent, one in five refused
    finally:
        gc.enable()


@pytest.mark.parametrize("at_submission", [False, True])
def test_what_is_refused_has_no_answer(at_submission: bool) -> None:
    fails = REFUSALS if at_submission else {1: REFUSALS[1]}
    outcomes = send(Server(fails, at_submission)).outcomes
    assert {outcome for outcome in outcomes if outcome.latency_ms is None} == {Outcome(index) for index in fails}
    assert {outcome.image for outcome in outcomes if outcome.latency_ms is not None} == set(range(5)) - set(fails)


@pytest.mark.parametrize("at_submission", [False, True])
def test_other_errors_are_raised(at_submission: bool) -> None:
    with pytest.raises(RouterClosedError):
        send(Server({3: RouterClosedError("closed")}, at_submission))
    assert gc.isenabled()


def test_an_answer_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        send_at_random(Server(), lambda answer: answer // 0, 5, 1000, 0.01, np.random.default_rng(1))


def test_nothing_is_collected_meanwhile() -> None:
    server = Server()
    send(server)
    assert server.collects == {False}
    assert gc.isenabled()


def test_there_is_one_image_at_least() -> None:
    assert len(send(Server(), rate=1, seconds=0.1).outcomes) == 1
