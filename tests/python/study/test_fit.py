import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_moe.study.fit import RESAMPLES, Bootstrap, Curve, Line, RankCorrelation, estimate

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (2000, 1))


def r2(y, predicted):
    return Bootstrap(np.arange(len(y)), seed=0).r_squared(y, predicted)[0]


def test_line_finds_the_line():
    line = Line(np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 5.0]))
    np.testing.assert_allclose(line(np.array([[10.0], [-1.0]])), [21, -1])
    both = Line(X[:4] @ [[1.0, 1.0]], X[:4, 0])  # twice the same variable
    np.testing.assert_allclose(both(X[:4] @ [[1.0, 1.0]]), X[:4, 0])


@pytest.mark.parametrize("model", [Line, Curve])
def test_a_variable_without_spread_gives_the_mean(model):
    fitted = model(np.full((4, 1), 7.0), np.array([1.0, 2.0, 3.0, 6.0]))
    np.testing.assert_allclose(fitted(np.array([[7.0], [100.0]])), 3)


def test_curve_follows_what_a_line_cannot():
    train, test = X[:1500], X[1500:]
    bend = np.abs(X[:, 0])
    assert r2(bend[1500:], Line(train, bend[:1500])(test)) < 0.01
    assert r2(bend[1500:], Curve(train, bend[:1500])(test)) > 0.98


def test_curve_adds_its_variables_up():
    pair = RNG.uniform(-1, 1, (2000, 2))
    y = np.abs(pair[:, 0]) + (pair[:, 1] > 0.3)
    assert r2(y[1500:], Curve(pair[:1500], y[:1500])(pair[1500:])) > 0.95
    assert r2(y[1500:], Curve(pair[:1500, :1], y[:1500])(pair[1500:, :1])) < 0.4


def test_r_squared():
    y = np.array([1.0, 2.0, 3.0])
    assert r2(y, y) == 1
    assert r2(y, np.full(3, 2.0)) == 0
    assert r2(y, np.full(3, 0.0)) == -6
    assert r2(np.ones(3), y) == 0


def test_rank_correlation():
    ones = np.ones(4)
    assert RankCorrelation(np.array([1.0, 2.0, 5.0, 9.0]), np.array([-8.0, 0.0, 0.1, 70.0]))(ones) == pytest.approx(1)
    assert RankCorrelation(np.arange(4.0), -np.arange(4.0))(ones) == pytest.approx(-1)
    assert RankCorrelation(np.zeros(4), np.arange(4.0))(ones) == 0
    # Ranks 1, 2, 3, 4 against 1.5, 1.5, 3, 4: covariance 4.5, spreads 5 and 4.5.
    tied = RankCorrelation(np.arange(4.0), np.array([3.0, 3.0, 4.0, 5.0]))(ones)
    assert tied == pytest.approx(4.5 / np.sqrt(5 * 4.5))


values = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.integers(0, 3)), min_size=2, max_size=30)


@given(values)
@settings(max_examples=60, deadline=None)
def test_a_weight_is_as_good_as_so_many_copies(drawn):
    x, y, weights = np.array(drawn, float).T
    if weights.sum() == 0:
        return
    copies = weights.astype(int)
    xs, ys = np.repeat(x, copies), np.repeat(y, copies)
    ones = np.ones(len(xs))
    assert RankCorrelation(x, y)(weights) == pytest.approx(RankCorrelation(xs, ys)(ones))


def test_r_squared_of_the_draws_is_that_of_so_many_copies():
    y, predicted = np.array([0.0, 1.0, 5.0, 2.0, 2.0, 7.0]), np.array([1.0, 1.0, 4.0, 2.0, 3.0, 3.0])

    def of_copies(weights):
        ys, predictions = (np.repeat(values, weights.astype(int)) for values in (y, predicted))
        return 1 - ((ys - predictions) ** 2).sum() / ((ys - ys.mean()) ** 2).sum()

    bootstrap = Bootstrap(np.array([0, 1, 2, 0, 1, 2]), seed=0)
    np.testing.assert_allclose(bootstrap.r_squared(y, predicted), bootstrap.values(of_copies))


def test_bootstrap_draws_whole_clusters_and_repeats_itself():
    clusters = np.array([0, 1, 2, 0, 1, 2])
    seen = []
    values = Bootstrap(clusters, seed=1).values(lambda weights: float(seen.append(weights) or weights @ np.arange(6)))
    drawn = np.array(seen)
    assert drawn.shape == (RESAMPLES + 1, 6)
    assert (drawn[0] == 1).all()
    assert (drawn[:, :3] == drawn[:, 3:]).all()
    assert (drawn.sum(axis=1) == 6).all()
    assert len(np.unique(drawn, axis=0)) == 10  # all ways to draw three times from three
    again = Bootstrap(clusters, seed=1).values(lambda weights: float(weights @ np.arange(6)))
    np.testing.assert_array_equal(again, values)
    other = Bootstrap(clusters, seed=2).values(lambda weights: float(weights @ np.arange(6)))
    assert (other != values).any()


def test_interval_of_a_mean_is_the_textbooks():
    sample = np.random.default_rng(3).normal(5, 2, 400)
    found = estimate(
        Bootstrap(np.arange(400), seed=0).values(lambda weights: float(np.average(sample, weights=weights)))
    )
    half = 1.96 * sample.std() / 20
    assert found.value == pytest.approx(sample.mean())
    assert found.low == pytest.approx(sample.mean() - half, abs=0.03)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.03)


def test_estimate_is_the_sample_and_the_percentiles_of_the_draws():
    found = estimate(np.array([50.0, *np.arange(201.0)]))
    assert (found.value, found.low, found.high) == (50, 5, 195)
