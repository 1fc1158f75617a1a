import dataclasses
import json

import numpy as np
import onnx
import pytest
from helpers import photo_folder, tiny_checkpoint, tiny_graph

from dyvit_deploy.calibration.collect import calibrate, check_images, neighbour_correlation, ranges_for
from dyvit_deploy.calibration.config import CalibrationConfig
from dyvit_deploy.calibration.observers import METHODS
from dyvit_deploy.calibration.policy import quantizable
from dyvit_deploy.calibration.ranges import Ranges, tensor_key
from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.data.open import open_images
from dyvit_deploy.errors import ArtifactError, ConfigError, DataError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.graph.read import load_graph, weights_fingerprint
from dyvit_deploy.runners.base import ForeignImages
from dyvit_deploy.runners.ort import OrtRunner


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A graph, a folder of images and its ranges by max."""
    folder = tmp_path_factory.mktemp("ranges")
    graph, photos = tiny_graph(folder), photo_folder(folder / "photos", 10)
    return graph, photos, calibrate(graph, CalibrationConfig(str(photos), method="max"))


def test_ranges_are_those_of_the_activations(made):
    graph, photos, ranges = made
    products = quantizable(load_graph(graph))
    runner = OrtRunner(graph, watch=[p.tensors[0] for p in products])
    [batch] = open_images(str(photos), runner.image_spec()).batches(100)
    found = runner.tensors(batch.images)
    assert set(ranges.tensors) == {tensor_key(p.node, 0) for p in products}
    for product in products:
        known, values = ranges.tensors[tensor_key(product.node, 0)], found[product.tensors[0]]
        assert known.minimum == pytest.approx(values.min(), rel=1e-4, abs=1e-5)
        assert known.maximum == pytest.approx(values.max(), rel=1e-4, abs=1e-5)
        assert known.threshold == known.largest


def test_ranges_survive_their_file(made, tmp_path):
    made[2].save(tmp_path / "r.json")
    loaded = Ranges.load(tmp_path / "r.json")
    assert loaded == made[2] and loaded.sha256() == made[2].sha256()


def test_the_file_says_on_what_it_was_collected(made, tmp_path):
    made[2].save(tmp_path / "r.json")
    text = json.loads((tmp_path / "r.json").read_text())
    assert text["method"] == "max" and len(text["images"]) == len(set(text["images"])) == 10
    assert text["preprocess"]["short_side"] == 36 and text["source"] == str(made[1])
    assert text["model"] == weights_fingerprint(load_graph(made[0]))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_positive_thresholds_within_the_range(made, method):
    ranges = calibrate(made[0], CalibrationConfig(str(made[1]), method=method))
    assert all(0 < r.threshold <= r.largest for r in ranges.tensors.values())


def test_ranges_do_not_depend_on_the_interface_of_the_graph(made, tmp_path):
    """Without kept tokens, or with raw pixels, the model is the same one."""
    for config in (ExportConfig(), ExportConfig(input="uint8")):
        export_onnx(tiny_checkpoint(tmp_path), tmp_path / "other.onnx", config)
        made[2].check_fits(weights_fingerprint(load_graph(tmp_path / "other.onnx")), made[2].preprocess, (32, 32))
        again = calibrate(tmp_path / "other.onnx", CalibrationConfig(str(made[1]), method="max"))
        assert again.model == made[2].model and set(again.tensors) == set(made[2].tensors)
        for name, value in again.tensors.items():
            assert value.threshold == pytest.approx(made[2].tensors[name].threshold, rel=1e-4)


def test_ranges_of_other_weights_counts_or_preprocessing_are_refused(made, tmp_path):
    made[2].save(tmp_path / "r.json")
    config = CalibrationConfig(ranges=str(tmp_path / "r.json"))
    checkpoint = tiny_checkpoint(tmp_path)
    export_onnx(checkpoint, tmp_path / "counts.onnx", load=LoadConfig(keep=KeepRequest(counts=(9, 4, 2))))
    with pytest.raises(DataError, match="another model"):
        ranges_for(tmp_path / "counts.onnx", open_images(None, made[2]), (), config)
    other = dataclasses.replace(made[2], preprocess=dataclasses.replace(made[2].preprocess, mean=(0.5, 0.5, 0.5)))
    other.save(tmp_path / "r.json")
    with pytest.raises(DataError, match="other preprocessing"):
        ranges_for(made[0], open_images(None, made[2]), (), config)


@pytest.mark.parametrize("text", ["", "no json", "{}", '{"kind": "dyvit ranges", "format": 1}',
                                  '{"kind": "dyvit ranges", "format": 9}', "[1]"])
def test_other_files_are_no_ranges(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"r\.json"):
        Ranges.load(tmp_path / "r.json")


def test_too_few_and_identical_images_are_refused_with_the_number_needed(made, tmp_path):
    with pytest.raises(DataError, match="3 distinct images among 3; calibration needs at least 4"):
        calibrate(made[0], CalibrationConfig(str(made[1]), images=3))
    photo_folder(tmp_path / "same", 1)
    for i in range(6):
        (tmp_path / "same" / f"copy{i}.png").write_bytes((tmp_path / "same" / "000.png").read_bytes())
    with pytest.raises(DataError, match="1 distinct image among 7"):
        calibrate(made[0], CalibrationConfig(str(tmp_path / "same")))


def test_few_images_and_copies_are_noted(made):
    assert made[2].notes == ("10 calibration images are few; take 32 or more.",)
    twice = dataclasses.replace(made[2], images=made[2].images * 2)
    assert "only 10 are distinct" in twice.notes[0]


def test_noise_is_refused_unless_permitted(made):
    with pytest.raises(DataError, match="--allow-random-calib"):
        calibrate(made[0], CalibrationConfig())
    assert calibrate(made[0], CalibrationConfig(allow_noise=True)).source == "noise"


def test_a_folder_of_noise_is_recognised_and_photos_are_not(made):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    assert (np.abs(neighbour_correlation(noise)) < 0.1).all()
    [batch] = open_images(str(made[1]), ForeignImages(made[2].image_size, made[2].preprocess)).batches(100)
    assert (neighbour_correlation(batch.images) > 0.8).all()
    with pytest.raises(DataError, match="is noise"):
        check_images("x", list("abcde"), neighbour_correlation(noise).tolist(), False)


def test_nan_names_the_image_and_the_layer(made, tmp_path):
    proto = load_graph(made[0])
    weight = next(t for t in proto.graph.initializer if t.name == "blocks.1.mlp.fc1.bias")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(weight.dims), np.nan, np.float32), weight.name))
    onnx.save(proto, tmp_path / "nan.onnx")
    with pytest.raises(DataError, match=r"000\.png makes blocks\.1\.mlp\.act/Gelu give NaN"):
        calibrate(tmp_path / "nan.onnx", CalibrationConfig(str(made[1])))


def test_only_float32_graphs_of_ours_are_calibrated(made, tmp_path):
    proto = load_graph(made[0])
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(DataError, match="not written by dyvit"):
        calibrate(tmp_path / "foreign.onnx", CalibrationConfig(str(made[1])))
    with pytest.raises(ArtifactError, match="does not exist"):
        calibrate(tmp_path / "none.onnx", CalibrationConfig(str(made[1])))


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'entropy'"):
        CalibrationConfig(method="entrop")


def test_images_are_streamed(made, monkeypatch):
    """No more than one small batch is asked of the runner at a time."""
    sizes = []
    plain = OrtRunner.tensors
    monkeypatch.setattr(OrtRunner, "tensors", lambda self, images: sizes.append(len(images)) or plain(self, images))
    calibrate(made[0], CalibrationConfig(str(made[1])))
    assert max(sizes) <= 4 and sum(sizes) == 10
