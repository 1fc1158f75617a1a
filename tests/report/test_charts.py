import itertools

import numpy as np
import pytest

from dyvit_deploy.report.charts import LABEL, NARROW, axis, label_points, percents
from dyvit_deploy.report.gallery import dropped_path


@pytest.mark.parametrize("values", [[3.2], [0.004, 0.9], [120, 4800.5], [1e-7, 3e-7], [5, 5, 5]])
def test_ticks_are_round_few_and_inside(values):
    for zero in (True, False):
        found = axis(values, zero=zero)
        assert 2 <= len(found.ticks) <= 12 and all(-0.01 <= tick.at <= 100.01 for tick in found.ticks)
        assert len({tick.text for tick in found.ticks}) == len(found.ticks)
        assert all(0 <= found.at(value) <= 100 for value in values)


def test_nothing_at_all_still_has_an_axis():
    assert axis([]).ticks and axis([0.0]).high > 0


def test_shares_are_never_marked_above_a_hundred():
    found = percents([0.98, 0.995, 1.0])
    assert max(float(tick.text) for tick in found.ticks) <= 100 and found.at(100) < 100


def test_labels_do_not_cover_one_another_nor_the_points():
    rng = np.random.default_rng(0)
    crowd = [(50 + x, 70 + y) for x, y in rng.uniform(-4, 4, (7, 2)).tolist()]
    found = label_points([*crowd, (5, 5), (100, 100)])
    labels = [(p.x / 100 * NARROW[0] + p.dx, p.y / 100 * NARROW[1] + p.dy) for p in found]
    for (ax, ay), (bx, by) in itertools.combinations(labels, 2):
        assert max(abs(ax - bx), abs(ay - by)) >= LABEL
    assert label_points(crowd) == label_points(crowd)


def test_labels_of_the_front_do_not_cover_its_line():
    """The line reaches a point from the left and continues below it."""
    # Also a point near the right edge.
    for x, y in ((92.6, 10), (50, 50)):
        [found] = label_points([(x, y)])
        assert found.dx >= 0 and found.dy <= 0


def test_a_path_covers_exactly_the_dropped_patches():
    kept = np.asarray([[1, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    assert dropped_path(kept) == "M1 0h2v1h-2zM0 2h1v1h-1zM2 2h1v1h-1z"
    assert dropped_path(np.ones((2, 2), bool)) == ""


def test_an_axis_from_zero_ends_with_a_tick_behind_the_last_value():
    for last in (1.0, 1429.0, 0.37):
        found = axis([0.2 * last, last], count=4)
        assert found.high > last and found.ticks[-1].at == 100
