import io
import re

import pytest
from PIL import Image

from kinject_assets.core.report.plots import (
    LIMIT,
    Point,
    accuracy_by_k,
    accuracy_by_paraphrases,
    loss_by_rate,
    loss_curves,
    markdown_image,
    smoothed,
    table_bars,
)

CURVES = {
    "tiny, 0-shot": {k: Point(0.3 + k / 20, 0.2 + k / 20, 0.4 + k / 20) for k in range(6)},
    "control": {k: Point(0.3, 0.2, 0.4) for k in range(6)},
}
LOSSES = {"training": [(1, 2.0), (2, 1.5)], "validation": [(1, 2.1), (2, float("nan"))]}


@pytest.mark.parametrize(
    "image",
    [
        accuracy_by_k(CURVES, chance=0.25),
        accuracy_by_paraphrases(CURVES),
        loss_curves(LOSSES),
        loss_by_rate([(1e-5, [(1, 2.0), (2, 1.5)]), (1.0, [(1, float("nan"))])]),
        table_bars({"row": {"Base": Point(0.3, 0.2, 0.4)}, "other": {}}, chance=0.25),
        accuracy_by_k({}),
    ],
)
def test_plots_are_images_small_enough_for_the_event_log(image: bytes) -> None:
    picture = Image.open(io.BytesIO(image))
    assert picture.format == "PNG"
    assert min(picture.size) >= 300
    assert markdown_image(image).startswith("![plot](data:image/png;base64,")
    assert len(markdown_image(image)) <= LIMIT + 100


def test_a_long_curve_is_smoothed_and_keeps_its_mean() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)] + [(1000.0, float("inf"))]
    curve = smoothed(points, most=100)
    assert len(curve) == 100
    assert {y for _, y in curve} == {0.5}
    assert curve[0][0] == 4.5
    assert smoothed(points[:7]) == points[:7]
    assert smoothed([]) == []


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert accuracy_by_k(CURVES, fmt="svg") == accuracy_by_k(CURVES, fmt="svg")
    assert loss_curves(LOSSES) == loss_curves(LOSSES)


def test_svg_draws_the_chance_line() -> None:
    with_line = accuracy_by_k(CURVES, chance=0.25, fmt="svg").decode()
    without = accuracy_by_k(CURVES, fmt="svg").decode()
    assert with_line.startswith("<?xml")
    assert len(re.findall("<path", with_line)) > len(re.findall("<path", without))


def test_an_image_over_the_limit_is_named() -> None:
    assert "data:" not in markdown_image(b"0" * LIMIT, "a [plot]")
