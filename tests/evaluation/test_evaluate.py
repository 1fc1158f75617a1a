import dataclasses

import numpy as np
import pytest
from fake_runner import FakeRunner
from helpers import fake_runner, tiny_model

from dyvit_deploy.data.images import Batch, NoiseImages
from dyvit_deploy.data.open import open_images
from dyvit_deploy.errors import ConfigError, DataError
from dyvit_deploy.evaluation.answers import Answers, estimated_loss, pack_answers, read_answers
from dyvit_deploy.evaluation.evaluate import evaluate, evaluate_all
from dyvit_deploy.runners.base import Outputs, TensorSpec
from dyvit_deploy.statistics.estimates import PairedLoss, UnpairedLoss


class Labelled:
    """Four images labelled 0..3, each with the upper left quarter as its box."""

    name, class_names, skipped, split = "four", tuple("abcde"), [], "val"

    def __len__(self):
        return 4

    def batches(self, size):
        for start in range(0, 4, size):
            labels = np.arange(start, min(4, start + size))
            boxes = np.tile(np.array([[0, 0, 16, 16]], np.float32), (len(labels), 1))
            yield Batch(np.zeros((len(labels), 32, 32, 3), np.uint8), labels, boxes, ["x"] * len(labels))


def named(facts, names="abcde"):
    return dataclasses.replace(facts, class_names=tuple(names))


def answers(logits, kept, facts):
    """A runner whose output for image i of four is row i."""
    state = {"next": 0}

    def answer(feed):
        rows = slice(state["next"], state["next"] + len(feed))
        state["next"] += len(feed)
        return Outputs(np.asarray(logits, np.float32)[rows], tuple(np.asarray(k)[rows] for k in kept))
    return FakeRunner(answer, TensorSpec("images", "float32", (None, 3, 32, 32)), facts=facts)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_top1_and_coverage_are_counted_over_all_images(batch):
    # A grid of 4 x 4 patches, of which 8 / 4 / 2 are kept.
    _, facts = tiny_model(0.5)
    logits = np.eye(4, 5)
    # The last image is classified wrong.
    logits[3] = np.eye(5)[4]
    # The patches of the box.
    corner = np.array([0, 1, 4, 5])
    first = np.tile(np.r_[corner, 10:14], (4, 1))
    report = evaluate(answers(logits, [first, first[:, :4], first[:, :2]], facts), Labelled(), batch)
    assert report.images == 4 and report.top1 == 0.75 and report.top5 == 1.0
    assert [stage.box_coverage for stage in report.coverage] == [1.0, 1.0, 0.5]
    assert [stage.chance for stage in report.coverage] == [0.5, 0.25, 0.125]


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_keep_maps_are_the_fraction_of_images_that_keep_each_patch(batch):
    facts = named(tiny_model(0.5)[1])
    first = np.array([range(8), range(8), range(8), range(8, 16)])
    report = evaluate(answers(np.eye(4, 5), [first, first[:, :4], first[:, :2]], facts), Labelled(), batch)
    maps = [np.array(stage.probability) for stage in report.keep_maps]
    assert [stage.kept for stage in report.keep_maps] == [8, 4, 2] and maps[0].shape == (4, 4)
    assert maps[0].ravel().tolist() == [0.75] * 8 + [0.25] * 8
    assert [grid.sum() for grid in maps] == [8, 4, 2]
    assert report.keep_maps[2].text().splitlines()[:3] == [" 75  75   0   0", "  0   0   0   0", " 25  25   0   0"]
    assert report.to_json()["keep_maps"][0]["probability"][3] == (0.25,) * 4 and not report.notes


def test_several_models_are_judged_on_images_that_are_read_once():
    class Once(Labelled):
        reads = 0

        def batches(self, size):
            self.reads += 1
            return super().batches(size)

    right, wrong = np.eye(4, 5), np.roll(np.eye(4, 5), 1, axis=1)
    images, facts = Once(), tiny_model(None)[1]
    reports = evaluate_all([answers(logits, [], facts) for logits in (right, wrong)], images, 3)
    assert [report.top1 for report in reports] == [1.0, 0.0] and images.reads == 1


def test_an_artifact_without_kept_patches_gets_a_note_instead_of_maps():
    _, facts = tiny_model(0.5)
    report = evaluate(answers(np.eye(4, 5), [], facts), Labelled(), 4)
    assert not report.keep_maps and "--with-tokens" in report.notes[0]
    dense = evaluate(answers(np.eye(4, 5), [], named(tiny_model(None)[1])), Labelled(), 4)
    assert not dense.keep_maps and not dense.notes


def test_a_model_that_is_always_sure_and_half_wrong_is_half_miscalibrated():
    logits = 100 * np.eye(5)[[0, 1, 0, 1]]
    report = evaluate(answers(logits, [], tiny_model(None)[1]), Labelled(), 4)
    assert report.top1 == 0.5 and report.calibration_error == pytest.approx(0.5)


def test_outputs_that_are_not_numbers_count_as_wrong_and_fail_the_report():
    logits = np.eye(4, 5)
    logits[2, 0] = np.nan
    report = evaluate(answers(logits, [], tiny_model(None)[1]), Labelled(), 3)
    assert not report and report.top1 == report.top5 == 0.75 and report.data == "four:val"
    assert "NaN or infinity for 1 of 4 images" in report.failures[0]
    assert evaluate(answers(np.eye(4, 5), [], tiny_model(None)[1]), Labelled(), 3)


def test_images_that_cannot_be_read_at_all_are_refused(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.png").touch()
    _, facts = tiny_model(None, classes=1)
    with pytest.raises(DataError, match=r"None of the 1 images .*1\.png"):
        evaluate(answers(np.eye(1), [], facts), open_images(str(tmp_path), facts.model))


def test_images_without_labels_are_refused():
    _, facts = tiny_model()
    with pytest.raises(DataError, match="has no labels"):
        evaluate(fake_runner(np.zeros((4, 5)), facts=facts), NoiseImages(facts.model, 4))


def test_other_numbers_of_classes_are_refused_where_names_are_unknown():
    _, facts = tiny_model()
    with pytest.raises(DataError, match=r"5 classes, the model 2; .* --class-map FILE"):
        evaluate(answers(np.zeros((4, 2)), [], facts), Labelled(), 4)


@pytest.mark.parametrize("facts", [None, tiny_model(None)[1]])
def test_the_order_of_classes_is_a_note_where_the_model_has_no_names(facts):
    runner = answers(np.eye(4, 5), [], facts)
    assert evaluate(runner, Labelled(), 4).notes == (
        f"{runner.name} has no class names; its classes 0 to 4 are taken to be those of four in this order: "
        "a, b, c, ... e.",)
    assert not evaluate(answers(np.eye(4, 5), [], named(tiny_model(None)[1])), Labelled(), 4).notes


@pytest.mark.parametrize("facts", [None, tiny_model(None, classes=9)[1], named(tiny_model(None)[1], "vwxyzefgh")])
def test_a_class_map_gives_the_models_number_of_each_folder_and_counts_over_all_classes(tmp_path, facts):
    # The third image is taken for a class that none of the folders has.
    logits = np.eye(9)[[8, 7, 0, 5]]
    (tmp_path / "map.txt").write_text("b 7\na,8\nc 6\nd\t5\ne 1\nunused 3\n")
    report = evaluate(answers(logits, [], facts), Labelled(), 4, class_map=str(tmp_path / "map.txt"))
    assert report.top1 == 0.75 and len(report.notes) == 1 and "best of all classes" in report.notes[0]


def test_a_class_map_beyond_the_models_classes_names_the_folder(tmp_path):
    (tmp_path / "map.txt").write_text("a 8\nb 5\nc 2\nd 1\ne 0")
    with pytest.raises(DataError, match="gives 'a' the class 8, and the classes of the model are 0 to 4"):
        evaluate(answers(np.eye(4, 5), [], None), Labelled(), 4, class_map=str(tmp_path / "map.txt"))


def test_labels_are_matched_by_class_name():
    _, facts = tiny_model(0.5)
    facts = dataclasses.replace(facts, class_names=tuple("edcba"))
    patches = np.tile(np.arange(8), (4, 1))
    # Class a of the images is class 4 of the model, b is 3, ...
    logits = np.eye(5)[[4, 3, 2, 1]]
    report = evaluate(answers(logits, [patches, patches[:, :4], patches[:, :2]], facts), Labelled(), 4)
    assert report.top1 == 1.0
    with pytest.raises(DataError, match="does not know the class 'd'"):
        evaluate(answers(logits, [], dataclasses.replace(facts, class_names=tuple("abcxy"))), Labelled(), 4)


class Named(Labelled):
    """`Labelled` with a name for each image, in a folder of any name, in any order."""

    def __init__(self, name="photos", order=(0, 1, 2, 3), names="wxyz"):
        self.name, self.order, self.names = name, np.array(order), names

    def batches(self, size):
        for start in range(0, 4, size):
            labels = self.order[start:start + size]
            names = [f"{self.name.removeprefix('./')}/{self.names[i]}.png" for i in labels]
            yield Batch(np.zeros((len(labels), 32, 32, 3), np.uint8), labels, None, names)


def lost(reference, mine):
    return estimated_loss(4, (reference.top1, reference.answers), (mine.top1, mine.answers))


def test_two_reports_on_the_same_images_are_compared_image_by_image():
    facts, right = tiny_model(None)[1], np.eye(4, 5)
    swapped = right[[0, 1, 3, 2]]
    reference = evaluate(answers(right[[0, 0, 2, 3]], [], facts), Named(), 3)
    mine = evaluate(answers(swapped[::-1], [], facts), Named("./photos", (3, 2, 1, 0)), 1)
    # The reference is wrong on the second image, the other on the last two.
    assert lost(reference, mine) == PairedLoss(4, 2, 1)
    assert lost(reference, evaluate(answers(right, [], facts), Named(names="vxyz"), 4)) == UnpairedLoss(4, 3, 4)


def test_images_of_one_name_are_not_compared_image_by_image():
    assert evaluate(answers(np.eye(4, 5), [], tiny_model(None)[1]), Named(names="wwww"), 4).answers is not None
    keys = np.array([1, 2, 2], np.uint64)
    assert pack_answers(keys, np.array([True, False, True])) is None


@pytest.mark.parametrize("images", [1, 7, 8, 9, 50_000])
def test_answers_come_back_from_json_as_they_were(images):
    correct = np.random.default_rng(images).random(images) < 0.8
    packed = pack_answers(np.arange(images, dtype=np.uint64), correct)
    saved = dataclasses.asdict(packed)
    assert read_answers(saved, images, correct.mean()) == packed and len(packed.correct) <= 4 + images / 5.9
    assert (packed.bits(images) == correct).all()
    with pytest.raises(ConfigError, match="not those of this accuracy"):
        read_answers(saved, images + 8, correct.mean())
    assert read_answers(None, images, 0.5) is None and isinstance(packed, Answers)


def test_an_accuracy_and_a_calibration_error_are_given_with_their_images():
    report = evaluate(answers(np.eye(4, 5), [], tiny_model(None)[1]), Named(), 4)
    low, high = report.to_json()["top1_ci95"]
    assert high == 1.0 and 0.5 < low < 0.52
    cells = [str(cell) for column in report.table().columns for cell in column.cells]
    assert "expected calibration error, 4 images" in cells and "51.01% to 100.00%" in cells
