"""The peers of the benchmarks do the router's work."""

import numpy as np
import pytest

from benchmarks.common import PythonRouting
from benchmarks.overhead import _asked
from tests.support.tiny_bundle import edit_manifest, write_tiny_bundle
from trt_moe import Bundle, Router


@pytest.mark.parametrize("by", ["dearest", "mirror"])
def test_routing_in_python_answers_as_the_router_does(tmp_path, by):
    tiny = write_tiny_bundle(tmp_path / "tiny", experts=3, classes=4)
    edit_manifest(tiny.path, lambda data: data.update(verify_below=0.9, verify_by=by))
    images = tiny.random(60)
    with Router(tiny.path, precision="fp32") as router:
        result = router.predict(images)
        peer = PythonRouting(Bundle.load(tiny.path), lambda name, seen: router.model(name).logits(seen))
        passed_on = [expert["passed_on"] for expert in router.stats()["experts"].values()]
        asked = _asked(router, images)
    assert passed_on[0] > 0 and passed_on[1] > 0
    np.testing.assert_allclose(peer.grouped(images), result.probabilities, atol=1e-6)
    np.testing.assert_allclose(peer.per_image(images[:9]), result.probabilities[:9], atol=1e-6)
    twice = [names for names in asked if len(names) == 2]
    assert len(twice) == sum(passed_on)
    assert {second for _, second in twice} == ({"expert-2"} if by == "dearest" else {"expert-0", "expert-1"})
