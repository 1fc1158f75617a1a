"""Graphs in two files: the limit of one file is lowered, so that tiny models are above it."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from helpers import dyvit, tiny_checkpoint, tiny_graph, tiny_images

from dyvit_deploy.errors import ArtifactError
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.graph import files, limits
from dyvit_deploy.graph.files import DATA_BYTES, DATA_KEY, copy_graph, data_files, write_graph
from dyvit_deploy.graph.read import Graph, load_graph
from dyvit_deploy.runners.open import open_runner
from dyvit_deploy.runners.ort import OrtRunner

IMAGES = tiny_images(1).numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny model in one file."""
    return tiny_graph(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(limits, "ONE_FILE_LIMIT", 20_000)


@pytest.fixture
def pair(whole, tmp_path, small_limit):
    """The tiny model in two files."""
    write_graph(load_graph(whole), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def logits(path):
    with open_runner(path) as runner:
        return runner.infer(IMAGES).logits


def edited(pair, **entries):
    """The graph with other entries for its first tensor in the data file."""
    proto = onnx.load(pair, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.data_location == t.EXTERNAL)
    for entry in tensor.external_data:
        entry.value = str(entries.get(entry.key, entry.value))
    pair.write_bytes(proto.SerializeToString())


def test_above_the_limit_an_export_is_two_files_that_compute_the_same(whole, tmp_path, small_limit):
    report = export_onnx(tiny_checkpoint(tmp_path), tmp_path / "m.onnx")
    assert {"m.onnx", "m.onnx.data"} <= set(names(tmp_path)) and not list(tmp_path.glob(".*"))
    assert (tmp_path / "m.onnx").stat().st_size < limits.ONE_FILE_LIMIT + 80_000
    assert (logits(tmp_path / "m.onnx") == logits(whole)).all()
    sizes = [(tmp_path / name).stat().st_size for name in ("m.onnx", "m.onnx.data")]
    assert report.size_mib == sum(sizes) / 2**20
    with open_runner(tmp_path / "m.onnx") as runner:
        assert runner.facts == report.facts


def test_the_graph_records_its_data_file_and_a_loaded_graph_is_whole(whole, pair):
    [recorded] = [json.loads(p.value) for p in onnx.load(pair, load_external_data=False).metadata_props
                  if p.key == DATA_KEY]
    data = pair.with_name("m.onnx.data")
    assert recorded == {"file": "m.onnx.data", "bytes": data.stat().st_size, "sha256": files.sha256(data)}
    assert data_files(pair) == (data,) and data_files(whole) == ()
    found, expected = load_graph(pair), load_graph(whole)
    assert {p.key for p in found.metadata_props} == {"dyvit"}
    values = [{t.name: onnx.numpy_helper.to_array(t).tobytes() for t in g.graph.initializer} for g in (found, expected)]
    assert values[0] == values[1]


def test_without_weights_what_decides_shapes_is_there_even_in_a_foreign_data_file(pair, whole):
    proto = load_graph(whole)
    onnx.save(proto, pair, save_as_external_data=True, location="all.bin", size_threshold=0)
    found = load_graph(pair, weights=False)
    external = [t for t in found.graph.initializer if t.data_location == t.EXTERNAL]
    assert external and all(len(t.dims) > 1 for t in external)


@pytest.mark.parametrize("change", ["other", "shorter", "gone", "link"])
def test_another_data_file_is_refused_by_all_that_open_the_graph(pair, change):
    data = pair.with_name("m.onnx.data")
    content = data.read_bytes()
    if change == "other":
        data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "shorter":
        data.write_bytes(content[:-8])
    else:
        data.unlink()
    if change == "link":
        (pair.parent / "elsewhere").write_bytes(content)
        data.symlink_to(pair.parent / "elsewhere")
    says = {"other": "is not the file that m.onnx was written with; copy both again", "link": "is a link",
            "shorter": "it was not copied to the end", "gone": "m.onnx.data is missing; m.onnx has its weights there"}
    for opened in (open_runner, load_graph, data_files, lambda path: load_graph(path, weights=False)):
        with pytest.raises(ArtifactError, match=says[change]):
            opened(pair)
    result = dyvit("inspect", pair)
    assert result.exit_code == 1 and says[change] in " ".join(result.output.split())


@pytest.mark.parametrize("location", ["../m.onnx.data", "/etc/hostname", "sub/m.onnx.data", "..", ".", "", "a\\b",
                                      "C:x", "a\0b", "a\nb"])
def test_a_graph_cannot_name_files_outside_of_its_folder(pair, location):
    edited(pair, location=location)
    for opened in (open_runner, load_graph):
        with pytest.raises(ArtifactError, match="only files beside it are read"):
            opened(pair)


@pytest.mark.parametrize("entries", [{"offset": -4096}, {"offset": "x"}, {"length": 4}, {"length": -1},
                                     {"length": 10**12}, {"offset": 10**15}])
def test_places_outside_of_the_data_file_are_refused(pair, entries):
    edited(pair, **entries)
    with pytest.raises(ArtifactError, match=r"is damaged: the place of|it was not copied to the end"):
        open_runner(pair)


def test_damaged_metadata_about_the_data_file_are_one_sentence(pair):
    proto = onnx.load(pair, load_external_data=False)
    next(p for p in proto.metadata_props if p.key == DATA_KEY).value = '{"file": 1'
    pair.write_bytes(proto.SerializeToString())
    with pytest.raises(ArtifactError, match=r"metadata in .* cannot be read"):
        open_runner(pair)


def test_a_smaller_graph_in_its_place_removes_the_data_file_that_was_its_own(whole, pair, monkeypatch):
    monkeypatch.undo()
    (pair.parent / "n.onnx.data").write_bytes(b"somebody's")
    write_graph(load_graph(whole), pair)
    write_graph(load_graph(whole), pair.with_name("n.onnx"))
    assert names(pair.parent) == ["m.onnx", "n.onnx", "n.onnx.data"] and (logits(pair) == logits(whole)).all()


def test_a_second_export_replaces_both_files(whole, pair):
    proto = load_graph(whole)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("head"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 0, tensor.name))
    write_graph(proto, pair)
    assert not logits(pair).any() and names(pair.parent) == ["m.onnx", "m.onnx.data"]


def test_a_data_file_that_is_not_its_own_is_not_overwritten(tmp_path, small_limit):
    checkpoint = tiny_checkpoint(tmp_path)
    (tmp_path / "m.onnx.data").write_bytes(b"somebody's")
    with pytest.raises(ArtifactError, match=r"m\.onnx\.data exists and would be overwritten.*choose another -o"):
        export_onnx(checkpoint, tmp_path / "m.onnx")
    (tmp_path / "l.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="is a link or a device"):
        export_onnx(checkpoint, tmp_path / "l.onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == b"somebody's" and not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails", ["data", "graph", "moving"])
def test_a_failed_export_leaves_what_was_there(whole, pair, monkeypatch, fails, error):
    before = {name: (pair.parent / name).read_bytes() for name in names(pair.parent)}

    def fail(*_, **__):
        raise error
    proto = load_graph(whole)
    if fails == "data":
        monkeypatch.setattr(onnx_ir.external_data, "_write_external_data", fail)
    elif fails == "graph":
        monkeypatch.setattr(Path, "write_bytes", fail)
    else:
        monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(ArtifactError if isinstance(error, OSError) else KeyboardInterrupt):
        write_graph(proto, pair)
    assert {name: (pair.parent / name).read_bytes() for name in names(pair.parent)} == before


def test_an_interruption_between_the_two_files_is_noticed_when_they_are_opened(whole, pair, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        if str(target) == f"{pair}.data":
            raise KeyboardInterrupt
        replace(source, target)
    proto = load_graph(whole)
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) > DATA_BYTES:
            tensor.raw_data = bytes(len(tensor.raw_data))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "replace", interrupted)
        write_graph(proto, pair)
    with pytest.raises(ArtifactError, match=r"is not the file that m\.onnx was written with"):
        open_runner(pair)


def test_a_copy_has_a_data_file_of_its_own_name(whole, pair, tmp_path):
    folder = tmp_path / "copies"
    copy_graph(pair, folder / "c.onnx")
    copy_graph(whole, folder / "one.onnx")
    assert names(folder) == ["c.onnx", "c.onnx.data", "one.onnx"]
    for name in names(tmp_path):
        if name.startswith("m.onnx"):
            (tmp_path / name).unlink()
    assert (logits(folder / "c.onnx") == logits(whole)).all()
    assert (folder / "one.onnx").read_bytes() == whole.read_bytes()
    copy_graph(folder / "one.onnx", folder / "c.onnx")
    assert names(folder) == ["c.onnx", "one.onnx"]


def test_a_link_to_a_graph_finds_the_data_beside_the_graph(whole, pair, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "l.onnx").symlink_to(pair)
    assert (logits(tmp_path / "sub" / "l.onnx") == logits(whole)).all()


def test_a_large_graph_in_memory_runs_and_leaves_no_files(whole, small_limit, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    graph = Graph("draft.onnx", load_graph(whole))
    tensor = next(node.output[0] for node in graph.proto.graph.node if node.op_type == "Softmax")
    with OrtRunner(graph, device="cpu") as runner, OrtRunner(graph, device="cpu", watch=[tensor]) as watched:
        assert (runner.infer(IMAGES).logits == logits(whole)).all() and runner.layer_times(IMAGES, 1)
        assert names(tmp_path)
        assert tensor in watched.tensors(np.zeros((1, 32, 32, 3), np.uint8))
    assert not names(tmp_path)


def test_a_file_of_one_piece_is_not_parsed_to_be_opened(whole, monkeypatch):
    monkeypatch.setattr(files, "parse_graph", lambda path: pytest.fail("parsed"))
    assert data_files(whole) == ()


def test_both_files_can_be_moved_together(whole, pair, tmp_path):
    (tmp_path / "away").mkdir()
    for name in ("m.onnx", "m.onnx.data"):
        shutil.move(tmp_path / name, tmp_path / "away" / name)
    assert (logits(tmp_path / "away" / "m.onnx") == logits(whole)).all()
