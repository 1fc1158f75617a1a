import json

import numpy as np
import pytest
from helpers import fake_runner, tiny_checkpoint, tiny_config

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.data.images import NoiseImages
from dyvit_deploy.errors import DataError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.parity.compare import check_artifacts, compare
from dyvit_deploy.parity.config import CheckConfig
from dyvit_deploy.parity.tolerance import Tolerance

LOGITS = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
SCORES = [np.tile(np.array([5.0, 4.0, 3.0, 2.0], np.float32), (8, 1))]
KEPT = [np.tile(np.array([0, 1]), (8, 1))]


def run(candidate, reference=None, batches=(8,), count=8):
    reference = reference or fake_runner(LOGITS, KEPT, SCORES)
    images = NoiseImages(tiny_config(image_size=(4, 4), patch_size=1), count)
    return compare(reference, candidate, images, CheckConfig(batches=batches))


def changed(image, difference):
    logits = LOGITS.copy()
    logits[image] += difference
    return logits


def test_equal_artifacts_agree_at_every_batch_size():
    # A fake runner answers by position in the batch, so all images get the same logits.
    same = np.tile(LOGITS[:1], (8, 1))
    report = run(fake_runner(same, KEPT), fake_runner(same, KEPT, SCORES), batches=(1, 4, 8))
    assert [b.batch for b in report.batches] == [1, 4, 8]
    assert report and report.batches[0].max_error == 0 and report.batches[0].overlap_forgiven == (1.0,)
    assert report.batches[0].top1_agreement == 1 and report.batches[0].min_cosine == pytest.approx(1)


def test_rounding_errors_pass_and_larger_errors_fail():
    assert run(fake_runner(changed(3, 1e-5), KEPT))
    report = run(fake_runner(changed(3, 1e-2), KEPT))
    assert not report and "noise 3" in report.failures[0]
    assert report.batches[0].max_error == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_always_fail(bad):
    report = run(fake_runner(changed(2, bad), KEPT))
    assert not report and report.batches[0].non_finite == 1
    assert "1 of 8 images give NaN or infinity" in report.failures[0]
    json.dumps(report.to_json(), allow_nan=False)


def test_other_kept_tokens_fail_even_if_the_logits_agree():
    kept = [KEPT[0].copy()]
    kept[0][5] = [0, 3]
    report = run(fake_runner(LOGITS, kept))
    assert not report and report.batches[0].overlap == (pytest.approx(1 - 0.5 / 8),)


def test_a_tie_excuses_only_the_image_in_which_it_occurs():
    scores, kept = [SCORES[0].copy()], [KEPT[0].copy()]
    scores[0][5] = [5, 4, 4, 2]
    kept[0][5] = [0, 2]
    reference = fake_runner(LOGITS, KEPT, scores)
    report = run(fake_runner(changed(5, 0.5), kept), reference)
    assert report and report.batches[0].tied_images == 1 and report.batches[0].overlap_forgiven == (1.0,)
    assert not run(fake_runner(changed(4, 0.5), kept), reference)


def test_without_kept_tokens_tied_scores_at_the_cut_excuse_an_image():
    scores = [SCORES[0].copy()]
    scores[0][5] = [5, 4, 4, 2]
    reference = fake_runner(LOGITS, KEPT, scores)
    assert run(fake_runner(changed(5, 0.5)), reference)
    assert not run(fake_runner(changed(4, 0.5)), reference)


def test_nan_and_infinity_in_the_reference_fail():
    for bad in (np.nan, np.inf):
        assert not run(fake_runner(LOGITS, KEPT), fake_runner(changed(2, bad), KEPT, SCORES))
        assert not run(fake_runner(changed(2, bad), KEPT), fake_runner(changed(2, bad), KEPT, SCORES))


def test_a_single_image_at_a_tie_proves_nothing():
    scores, kept = [SCORES[0].copy()], [KEPT[0].copy()]
    scores[0][0] = [5, 4, 4, 2]
    kept[0][0] = [0, 2]
    report = run(fake_runner(changed(0, 0.5), kept), fake_runner(LOGITS, KEPT, scores), batches=(1,), count=1)
    assert not report and "compare more images" in report.failures[0]


def test_images_are_repeated_to_fill_a_larger_batch():
    same = np.tile(LOGITS[:1], (8, 1))
    report = run(fake_runner(same, KEPT), fake_runner(same, KEPT, SCORES), batches=(1, 8), count=3)
    assert report and [(b.batch, b.images) for b in report.batches] == [(1, 3), (8, 8)]
    assert "3 images were repeated to fill batch 8." in report.notes


def test_kept_tokens_that_one_artifact_does_not_output_are_noted():
    assert any("--with-tokens" in note for note in run(fake_runner(LOGITS)).notes)
    assert not any("--with-tokens" in note for note in run(fake_runner(LOGITS, KEPT)).notes)


def test_ties_in_most_images_fail():
    scores = [np.tile(np.array([5.0, 4.0, 4.0, 2.0], np.float32), (8, 1))]
    kept = [np.tile(np.array([0, 2]), (8, 1))]
    report = run(fake_runner(LOGITS + 0.5, kept), fake_runner(LOGITS, KEPT, scores))
    assert not report and "more than chance" in report.failures[0]


def test_an_artifact_that_is_wrong_beyond_batch_one_fails():
    def correct_at_batch_one(feed):
        from dyvit_deploy.runners.base import Outputs
        logits = np.tile(LOGITS[:1], (len(feed), 1))
        logits[1:] += 1
        return Outputs(logits)
    candidate = fake_runner(LOGITS)
    candidate._answer = correct_at_batch_one
    report = run(candidate, fake_runner(np.tile(LOGITS[:1], (8, 1))), batches=(1, 8))
    assert [bool(b.failures) for b in report.batches] == [False, True]


def test_artifacts_of_other_models_or_schedules_are_refused():
    with pytest.raises(DataError, match="same model"):
        run(fake_runner(LOGITS[:, :3]))
    with pytest.raises(DataError, match="one schedule"):
        run(fake_runner(LOGITS, [KEPT[0][:, :1]]))


def test_noise_and_unknown_origin_are_noted():
    notes = " ".join(run(fake_runner(LOGITS)).notes)
    assert "noise" in notes and "not written by dyvit" in notes


def test_a_checkpoint_is_opened_with_the_options_of_the_graphs_export(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path)
    load = LoadConfig(image_size=(48, 32), keep=KeepRequest(ratio=0.7))
    export_onnx(checkpoint, tmp_path / "m.onnx", ExportConfig(with_tokens=True, input="uint8"), load)
    for pair in ((checkpoint, tmp_path / "m.onnx"), (tmp_path / "m.onnx", checkpoint)):
        report = check_artifacts(*pair, config=CheckConfig(images=10))
        assert report and [b.batch for b in report.batches] == [1, 8]
        assert report.batches[0].images == 10 and len(report.batches[0].overlap) == 3


def test_a_graph_of_other_weights_fails_and_its_origin_is_named(tmp_path):
    export_onnx(tiny_checkpoint(tmp_path), tmp_path / "m.onnx", ExportConfig(with_tokens=True))
    other = tiny_checkpoint(tmp_path, seed=7)
    report = check_artifacts(other, tmp_path / "m.onnx", config=CheckConfig(images=8))
    assert not report and any("comes from another file" in note for note in report.notes)


def test_a_looser_tolerance_accepts_a_larger_error():
    candidate = fake_runner(changed(3, 1e-2), KEPT)
    images = NoiseImages(tiny_config(image_size=(4, 4), patch_size=1), 8)
    loose = CheckConfig(batches=(8,), tolerance=Tolerance(logits=0.1))
    assert compare(fake_runner(LOGITS, KEPT, SCORES), candidate, images, loose)
