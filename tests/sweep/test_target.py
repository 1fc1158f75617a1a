"""The Pareto front, and the best artifact for a budget."""
import dataclasses
import math
import random
from fractions import Fraction

import pytest

from dyvit_deploy.errors import ConfigError
from dyvit_deploy.sweep.target import (
    METRICS,
    SweepRow,
    Target,
    choose,
    pareto_front,
    parse_targets,
    quality_of,
)


def row(ms=10.0, top1=0.9, ratio=0.7, **values):
    plain = SweepRow(f"keep{ratio}", ratio, "int8", "onnx", 1, 2.0, top1, 1.0, 0.98, None, ms, ms * 1.2, ms * 1.5,
                     1000 / ms, 1.3, 100, True, 0, "dyvit export")
    return dataclasses.replace(plain, **values)


def beats(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@pytest.mark.parametrize("seed", range(20))
def test_no_member_of_the_front_is_beaten_and_every_other_point_is(seed):
    rng = random.Random(seed)
    # Coarse values, so that there are ties.
    points = [(float(rng.randint(1, 8)), rng.randint(1, 8) / 8) for _ in range(rng.randint(1, 30))]
    front = pareto_front(points)
    for i, point in enumerate(points):
        assert any(beats(other, point) for other in points) == (i not in front)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front) and len(set(front)) == len(front)


def test_the_front_of_nothing_is_empty():
    assert pareto_front([]) == []


@pytest.mark.parametrize("relation, met", [("<=", (True, True, False)), ("<", (True, False, False)),
                                           (">=", (False, True, True)), (">", (False, False, True))])
def test_targets_use_their_relation(relation, met):
    [target] = parse_targets([f"latency_ms_p50 {relation} 10"])
    assert tuple(target.met(row(ms)) for ms in (9.0, 10.0, 11.0)) == met
    assert all((target.miss(row(ms)) == 0) >= target.met(row(ms)) for ms in (9.0, 10.0, 11.0))


def test_targets_come_one_by_one_or_with_commas_and_fractions_in_percent():
    assert parse_targets(["latency_ms_p99<=20,top1>=97%", "size_mib < 1e2"]) == (
        Target("latency_ms_p99", "<=", 20.0), Target("top1", ">=", 0.97), Target("size_mib", "<", 100.0))
    for metric in METRICS:
        assert parse_targets([f"{metric}>=0.5"])[0].metric == metric and hasattr(row(), metric)


@pytest.mark.parametrize("text, words", [
    ("latency_ms_p98<=2", "Did you mean 'latency_ms_p99'"), ("latency_ms_p99", "METRIC<=NUMBER"),
    ("", "METRIC<=NUMBER"), ("latency_ms_p99=2", "METRIC<=NUMBER"), ("latency_ms_p99<=fast", "METRIC<=NUMBER"),
    ("top1>=97", "97%"),
    ("top1>=197%", "from 0 to 1"), ("speedup>=50%", "not a fraction"), ("command<=3", "Unknown metric"),
    ("latency_ms_p99<=nan", "METRIC<=NUMBER"), ("latency_ms_p99<=1e999", "must be finite"),
    ("size_mib>=-1e999", "must be finite"), ("top1>=0.5,,", "METRIC<=NUMBER")])
def test_a_text_that_is_not_a_target_is_refused(text, words):
    with pytest.raises(ConfigError, match="(?s)" + words.replace("(", r"\(")):
        parse_targets([text])


def test_the_best_row_meets_the_target_with_the_highest_top1_and_ties_go_to_the_faster():
    rows = [row(5.0, 0.90), row(9.0, 0.95), row(8.0, 0.95), row(30.0, 0.99)]
    answer = choose(rows, parse_targets(["latency_ms_p50<=10"]))
    assert answer and answer.best is rows[2] and "top1=0.95" in answer.sentence


def test_without_labels_agreement_with_the_dense_model_ranks_and_else_the_keep_ratio():
    rows = [row(5.0, None, 0.5, dense_agreement=0.9), row(8.0, None, 0.7, dense_agreement=0.95)]
    assert quality_of(rows) == "dense_agreement" and choose(rows, parse_targets(["size_mib<=9"])).best is rows[1]
    rows = [row(5.0, None, 0.5), row(8.0, None, 0.7, agreement=0.8), row(9.0, None, 0.7, agreement=0.99)]
    assert quality_of(rows) == "keep_ratio" and choose(rows, parse_targets(["size_mib<=9"])).best is rows[2]


def test_the_closest_row_is_named_when_none_meets_the_target():
    rows = [row(5.0), row(3.0), row(8.0)]
    answer = choose(rows, parse_targets(["latency_ms_p50<=2"]))
    assert not answer and answer.closest is rows[1] and "latency_ms_p50=3" in answer.sentence
    assert "No artifact was timed" in choose([], parse_targets(["top1>=0"])).sentence
    unknown = choose([row(top1=None)], parse_targets(["top1>=0.5"]))
    assert not unknown and "data that has labels" in unknown.sentence


@pytest.mark.parametrize("metric, images", [("top1", "images"), ("dense_agreement", "images"),
                                            ("agreement", "compared")])
def test_a_share_is_held_against_a_target_exactly_for_every_number_of_images(metric, images):
    wrong = []
    for percent in ("79", "0.7", "90", "58", "99.9"):
        targets = [parse_targets([f"{metric}{relation}{percent}%"])[0] for relation in ("<=", "<", ">=", ">")]
        for n in range(1, 301):
            bound = Fraction(percent) * n / 100
            for right in {math.floor(bound), math.ceil(bound)}:
                found = [t.met(row(**{"top1": None, metric: right / n, images: n})) for t in targets]
                if found != [right <= bound, right < bound, right >= bound, right > bound]:
                    wrong.append((percent, n, right))
    assert not wrong


def test_percent_is_a_hundredth_of_the_number_that_was_written():
    for number in ("0.7", "7", "58", "28.9", "1e-1"):
        [target] = parse_targets([f"top1>={number}%"])
        assert target.bound == float(Fraction(number) / 100)


def test_the_answer_names_the_images_the_interval_and_how_many_would_decide():
    rows = [row(5.0, 0.80, images=100), row(9.0, 0.95, images=100)]
    sentence = choose(rows, parse_targets(["top1>=0.79,latency_ms_p50<=6"])).sentence
    assert "top1=0.8 (100 images, 95 % interval 0.7112 to 0.8666)" in sentence
    assert "top1>=0.79: too few images (100): about 6," in sentence
    assert "too few" not in choose(rows, parse_targets(["top1>=0.5"])).sentence
    missed = choose(rows, parse_targets(["top1>=0.99"])).sentence
    assert "with top1=0.95 (100 images, " in missed
    assert "images" not in choose([row()], parse_targets(["top1>=0"])).sentence
