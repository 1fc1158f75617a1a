"""The Pareto chart: the meaning of the marks, and the places of labels."""
from types import SimpleNamespace

import pytest

from dyvit_deploy.calibration.targets import FORMATS
from dyvit_deploy.config import PRECISIONS
from dyvit_deploy.sweep.chart import COLOURS, MARKERS, QUALITY, _label
from dyvit_deploy.sweep.target import QUALITIES


def test_every_precision_has_its_colour_every_backend_its_marker_and_every_quality_its_axis():
    assert set(COLOURS) == set(PRECISIONS) and len(set(COLOURS.values())) == len(PRECISIONS)
    assert set(MARKERS) == set(FORMATS) and len(set(MARKERS.values())) == len(FORMATS)
    assert set(QUALITY) == {*QUALITIES, "keep_ratio"}


@pytest.mark.parametrize("x", [0.0, 1.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_labels_of_points_in_a_corner_stay_inside_the_axes(x, y):
    figure = pytest.importorskip("matplotlib.figure", reason="charts need matplotlib").Figure(figsize=(4, 3))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    row = SimpleNamespace(keep_ratio=0.7, precision="int8", pareto=True)
    # More labels than fit.
    _label(axes, [(row, x, y)] * 8)
    rooms = [text.get_window_extent(figure.canvas.get_renderer()) for text in axes.texts]
    assert rooms and all(axes.bbox.contains(room.x0, room.y0) and axes.bbox.contains(room.x1, room.y1)
                         for room in rooms)
