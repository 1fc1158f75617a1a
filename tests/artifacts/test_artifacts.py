import ast
import errno
import json
import os

import pytest
from helpers import ROOT, tiny_config

from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.artifacts.files import (
    atomic_write,
    hash_files,
    make_folder,
    require_file,
    sha256,
    write_json,
)
from dyvit_deploy.artifacts.reports import save_report
from dyvit_deploy.config import PruneConfig
from dyvit_deploy.errors import ArtifactError


def test_facts_survive_a_json_round_trip():
    facts = ArtifactFacts(tiny_config(classes=2), PruneConfig.from_ratio(0.5, (1, 2)), class_names=("a", "b"),
                          training={"epoch": 3, "recipe": {"lr": 0.1}}, keep_counts=(8, 4), parent={"file": "x"})
    assert ArtifactFacts.from_json(facts.to_json(), "here") == facts


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "model": 3}', '{"format": 2}'])
def test_foreign_metadata_is_refused_naming_the_file(text):
    with pytest.raises(ArtifactError, match=r"some\.onnx"):
        ArtifactFacts.from_json(text, "some.onnx")


@pytest.mark.parametrize("change", [{"forms": [["x"]]}, {"forms": [3]}, {"keep_counts": [[1]]}, {"keep_counts": ["8"]}])
def test_lists_of_the_wrong_kind_are_refused_naming_the_field(change):
    values = json.loads(ArtifactFacts(tiny_config()).to_json()) | change
    [name] = change
    with pytest.raises(ArtifactError, match=rf"some\.onnx cannot be read \(ArtifactFacts\.{name}\[0\] must be"):
        ArtifactFacts.from_json(json.dumps(values), "some.onnx")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(ArtifactError, match="free space"), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "x.json"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_write_creates_missing_folders_and_readable_files(tmp_path):
    path = tmp_path / "a" / "b" / "report.json"
    write_json(path, {"x": 1.5})
    assert json.loads(path.read_text()) == {"x": 1.5}
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="choose another folder"):
        make_folder(tmp_path / "file" / "sub")


def test_links_are_followed_and_devices_written_to(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text()) == [1]
    write_json("/dev/null", [1])
    assert not os.path.isfile("/dev/null")


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path):
    for act in (require_file, lambda p: write_json(p, [])):
        with pytest.raises(ArtifactError):
            act(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="choose another folder"):
        make_folder(tmp_path)


@pytest.mark.parametrize("make, words", [
    (lambda p: p / "missing.pth", "does not exist"), (lambda p: p, "is a folder"),
    (lambda p: (p / "empty.pth").touch() or p / "empty.pth", "is empty"),
])
def test_unusable_files_are_told_apart(tmp_path, make, words):
    with pytest.raises(ArtifactError, match=words):
        require_file(make(tmp_path))


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Parts of reports, never saved by themselves.
PARTS = {"BuildReport", "ExportReport", "ProfileReport"}


def test_every_report_that_is_saved_has_a_kind_of_its_own():
    kinds = {}
    for path in (ROOT / "dyvit_deploy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            methods = {n.name for n in ast.iter_child_nodes(node) if isinstance(n, ast.FunctionDef)}
            if isinstance(node, ast.ClassDef) and {"to_json", "table"} <= methods and node.name not in PARTS:
                kinds[node.name] = [n.value.value for n in node.body
                                    if isinstance(n, ast.AnnAssign) and n.target.id == "KIND"]
    assert len(kinds) >= 20 and all(len(found) == 1 for found in kinds.values()), kinds
    assert len({found[0] for found in kinds.values()}) == len(kinds), kinds


def test_a_report_without_a_kind_is_not_saved(tmp_path):
    class NewReport:
        def to_json(self):
            return {}
    with pytest.raises(AttributeError, match="KIND"):
        save_report(tmp_path / "new.json", NewReport(), "dyvit new")
    assert not (tmp_path / "new.json").exists()


def test_hashes_that_were_taken_before_the_work_are_kept(tmp_path):
    class TrainReport:
        KIND = "train"

        def to_json(self):
            return {}
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    files = hash_files([path, tmp_path / "none", "timm:some_model"])
    path.write_bytes(b"after")
    save_report(tmp_path / "r.json", TrainReport(), "dyvit x", files)
    assert json.loads((tmp_path / "r.json").read_text())["dyvit"]["files"] == files != hash_files([path])
