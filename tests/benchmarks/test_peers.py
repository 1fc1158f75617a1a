"""The benchmarks of peers and of scale on tiny models: same logits, named absences, tables, charts."""
import contextlib
import dataclasses
import importlib
import json
import re
import sys

import numpy as np
import onnx
import pytest
import torch
from helpers import ROOT, tiny_checkpoint, tiny_config, tiny_images, tiny_model

import dyvit_deploy as dv
from dyvit_deploy.errors import BackendError, ConfigError

QUICK = dv.BenchConfig(batches=(1, 2), seconds=0.1, warmup=1, min_runs=3)
TINY = tiny_config()


@pytest.fixture(scope="module")
def script():
    """Imports a module of benchmarks/, whose scripts import each other by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="module")
def naive(script, tmp_path_factory):
    """The tiny model, and the naive export of it."""
    model, _ = tiny_model()
    return model, script("naive").export_naive(model, tmp_path_factory.mktemp("naive") / "naive.onnx")


def test_the_naive_export_gives_our_logits_at_any_batch(naive):
    model, path = naive
    with dv.open_runner(path, device="cpu") as runner, torch.inference_mode():
        for batch in (1, 3):
            images = tiny_images(batch)
            np.testing.assert_allclose(runner.infer(images.numpy()).logits, model(images).numpy(), atol=1e-5)


def test_the_naive_export_sorts_and_computes_its_indices(naive):
    model, path = naive
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("LogSoftmax") == kinds.count("TopK") == len(model.keep_counts) and "Range" in kinds


def test_a_naive_export_with_other_logits_is_not_timed(script, naive, tmp_path, monkeypatch):
    peers = script("peers")
    monkeypatch.setattr(peers, "random_checkpoint", lambda config, ratio, folder: tiny_checkpoint(folder, seed=1))
    monkeypatch.setattr(peers, "export_naive", lambda model, path: naive[1])  # of other weights
    result = {"missing": [], "failed": []}
    peer = peers.Peer(peers.NAIVE, "tiny", peers.ORT, "float32", peers.open_naive)
    with contextlib.ExitStack() as stack:
        assert peers.open_all([peer], peers.Kit(tmp_path, stack, TINY, 0.5), result) == {}
    [failed] = result["failed"]
    assert failed["what"] == peers.NAIVE and "other logits" in failed["reason"] and not result["missing"]


@pytest.fixture(scope="module")
def made_once(script, naive, tmp_path_factory):
    """Artifacts of the tiny model, as the benchmarks make them, but once for all tests."""
    peers, folder = script("peers"), tmp_path_factory.mktemp("kit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "random_checkpoint", lambda config, ratio, folder: tiny_checkpoint(folder))
        with contextlib.ExitStack() as stack:
            kit = peers.Kit(folder, stack, TINY, 0.5)
            paths = {what: kit.exported(TINY, what, peers.ORT, "float32") for what in (peers.DENSE, peers.PRUNED)}
        patch.setattr(peers.Kit, "exported", lambda kit, config, what, backend, precision: paths[what])
        patch.setattr(peers, "export_naive", lambda model, path: naive[1])  # of the same weights
        yield


@pytest.fixture(scope="module")
def small_run(script, made_once, tmp_path_factory):
    """Dense, pruned and naive in ONNX Runtime, dense in PyTorch, ToMe, and one that breaks when it is called."""
    peers = script("peers")

    def broken(_feed):
        raise BackendError("It stays dark; switch it on.")
    wanted = {(peers.DENSE, peers.ORT), (peers.PRUNED, peers.ORT), (peers.NAIVE, peers.ORT), (peers.DENSE, peers.EAGER),
              (peers.MERGED, peers.EAGER)}
    some = [peer for peer in peers.peers(TINY) if (peer.what, peer.backend) in wanted
            and (peer.model, peer.precision) == ("tiny", "float32")]
    lamp = peers.Peer("dark", "tiny", "Lamp", "float32", lambda kit: peers.Opened(None, broken))
    path = tmp_path_factory.mktemp("peers") / "peers.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tome", None)                           # as if it were not installed
        peers.run(TINY, 0.5, QUICK, path, [*some, lamp])
    return peers, json.loads(path.read_text())


def test_all_that_is_here_is_timed_and_what_is_not_has_a_reason(small_run):
    peers, result = small_run
    assert [(row["what"], row["backend"]) for row in result["rows"] if row["batch"] == 2] == [
        (peers.DENSE, peers.ORT), (peers.PRUNED, peers.ORT), (peers.NAIVE, peers.ORT), (peers.DENSE, peers.EAGER)]
    [missing] = result["missing"]
    assert missing["what"] == peers.MERGED and missing["reason"].startswith("tome is not installed; install it")
    assert [(entry["batch"], entry["reason"]) for entry in result["failed"]] == [
        (batch, "It stays dark; switch it on.") for batch in (1, 2)]
    assert result["naive_relative_error"] < 1e-4 and result["finished"] >= result["started"]


def test_speed_ups_are_against_dense_rows_of_the_same_batch(small_run):
    peers, result = small_run
    for row in result["rows"]:
        speed = {(other["what"], other["backend"]): other["images_per_sec"] for other in result["rows"]
                 if other["batch"] == row["batch"]}
        assert row["speedup"] == pytest.approx(row["images_per_sec"] / speed[peers.DENSE, peers.ORT])
        assert row["speedup_same_runtime"] == pytest.approx(row["images_per_sec"] / speed[peers.DENSE, row["backend"]])
        assert row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"] and row["runs"] >= 3
    cost = {row["what"]: row["gmacs"] for row in result["rows"]}
    assert cost[peers.PRUNED] < cost[peers.NAIVE] < cost[peers.DENSE]  # the rewrites save some, pruning more


def test_candidates_are_those_of_the_issue_each_once(script):
    peers = script("peers")
    config = dv.ModelConfig("deit-s", "vit", (224, 224), 16, 384, 12, 6)
    names = [str(peer) for peer in peers.peers(config)]
    assert len(set(names)) == len(names) == 19
    assert names[0] == "deit-s, dense, ONNX Runtime, float32"
    assert {"deit-ti, dense, ONNX Runtime, float32", "deit-256, dense, ONNX Runtime, float32",
            "deit-s, pruned, no rewrites, ONNX Runtime, float32", "deit-s, dense, PyTorch compiled, float32",
            "deit-s, pruned, OpenVINO, bfloat16", "deit-s, ToMe, PyTorch eager, float32"} < set(names)


def test_the_tables_and_charts_are_made_from_the_results_alone(small_run, script, tmp_path, monkeypatch):
    _, result = small_run
    pytest.importorskip("matplotlib")
    tables, charts = script("tables"), script("charts")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.peers_table() == "Not measured yet: `python benchmarks/peers.py deit-s` fills this table."
    assert tables.scale_table() == "Not measured yet: `python benchmarks/scale.py deit-s` fills this table."
    assert charts.draw(tmp_path) == []
    (tmp_path / tables.PEERS).write_text(json.dumps(result))
    lines = tables.peers_table().splitlines()
    assert re.fullmatch(r"\| tiny, dense, ONNX Runtime, float32 \| 0\.00 \| [\d.]+ \| - \| - \| .*", lines[2])
    assert re.fullmatch(r"\| tiny, pruned, ONNX Runtime, float32 \| 0\.00 (\| [\d.]+ \| ~?(\d\.\d\dx) \| ~?\2 ){2}\|",
                        lines[3])
    assert "Not in it: tiny, ToMe, PyTorch eager, float32: tome is not installed" in lines[-1]
    [chart] = charts.draw(tmp_path)
    first = chart.read_bytes()
    assert charts.draw(tmp_path) == [chart] and chart.read_bytes() == first and len(first) < 60_000
    assert tables.peers_table().endswith("(benchmarks/results/peers.svg)")


def test_scale_times_every_point_dense_and_pruned_beside_its_cost(script, made_once, tmp_path, monkeypatch):
    scale, tables = script("scale"), script("tables")
    monkeypatch.setattr(scale.os, "cpu_count", lambda: 2)
    path = tmp_path / tables.SCALE
    result = scale.run(TINY, 0.5, QUICK, (32,), path)
    rows = result["rows"]
    assert [(row["series"], row["size"], row["patches"], row["batch"], row["threads"]) for row in rows[::2]] == [
        ("image size", 32, 16, 1, 2), ("batch", 32, 16, 1, 2), ("batch", 32, 16, 2, 2), ("threads", 32, 16, 8, 1),
        ("threads", 32, 16, 8, 2)]
    assert {row["what"] for row in rows[::2]} == {"dense"} and {row["what"] for row in rows[1::2]} == {"pruned"}
    assert all(row["ceiling"] > 1 and row["speedup"] > 0 for row in rows[1::2])
    assert json.loads(path.read_text())["rows"] == rows
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.scale_table()
    assert text.count("\n| ") == len(rows) // 2 and "Images of 32 pixels have patches of 8." in text
    pytest.importorskip("matplotlib")
    assert [p.name for p in script("charts").draw(tmp_path)] == ["scale.svg"]


def test_patches_change_only_where_they_do_not_divide_the_image(script):
    scale = script("scale")
    config = dv.ModelConfig("deit-s", "vit", (224, 224), 16, 384, 12, 6)
    sized = [scale.resized(config, size) for size in (224, 384, 518)]
    assert [(one.patch_size, one.patches) for one in sized] == [(16, 196), (16, 576), (14, 1369)]
    assert dataclasses.replace(scale.resized(config, 384), name="deit-s", image_size=(224, 224)) == config
    with pytest.raises(ConfigError, match="choose another of --sizes"):
        scale.resized(config, 500)


def test_threads_go_up_to_all_cores(script):
    points = script("scale").points
    assert [point.threads for point in points(224, (), (), 6)] == [1, 2, 4, 6]
    assert [point.threads for point in points(224, (), (), 1)] == [1]
