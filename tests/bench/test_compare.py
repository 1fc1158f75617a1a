import json

import pytest
from click.testing import CliRunner

from dyvit_deploy.bench.compare import compare_runs
from dyvit_deploy.cli.main import main
from dyvit_deploy.errors import ArtifactError, ConfigError


def row(name, ms, width=0.1, batch=1, **more):
    return {"artifact": name, "backend": "ONNX Runtime cpu", "precision": "float32", "batch": batch,
            "latency_ms_p50": ms, "ci95_ms": {"p50": [ms - width, ms + width]}} | more


def write(path, *rows, cores=2):
    path.write_text(json.dumps({"timings": rows, "machine": {"logical_cores": cores}, "versions": {"numpy": "2"},
                                "config": {"threads": cores}}))
    return path


def test_only_intervals_that_do_not_overlap_are_a_difference(tmp_path):
    before = write(tmp_path / "a.json", row("a", 10), row("b", 10), row("c", 10, 2.0), row("d", 10), row("e", 1))
    after = write(tmp_path / "b.json", row("c", 9), row("b", 20), row("a", 5), row("d", 5, ci95_ms=None), cores=4)
    report = compare_runs(before, after)
    assert {c.artifact: c.verdict for c in report.changes} == {"c": "same", "b": "SLOWER", "a": "faster",
                                                               "d": "unknown"}
    assert next(c for c in report.changes if c.artifact == "a").ratio == 2
    notes = " ".join(report.notes)
    assert "machine logical_cores differs: 2 before, 4 after" in notes and "config threads differs" in notes
    assert "Rows in one of the two only: 1." in notes
    result = CliRunner().invoke(main, ["compare", str(before), str(after)])
    assert result.exit_code == 0 and "SLOWER" in result.output


def test_a_cuda_graph_in_one_run_only_gives_a_note(tmp_path):
    before = write(tmp_path / "a.json", row("a", 10), row("b", 10, cuda_graph=True, streams=2))
    after = write(tmp_path / "b.json", row("a", 5, cuda_graph=True), row("b", 10, cuda_graph=True, streams=2))
    notes = compare_runs(before, after).notes
    assert "CUDA graph of a at batch 1 differs: None before, True after." in notes
    assert not any("of b at" in note for note in notes)


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"timings": 3}',
                                  '{"timings": [{}], "machine": {}, "versions": {}, "config": {}}',
                                  '{"timings": [], "machine": [], "versions": {}, "config": {}}'])
def test_a_file_that_is_not_a_report_is_refused(tmp_path, text):
    good, bad = write(tmp_path / "a.json", row("a", 1)), tmp_path / "bad.json"
    bad.write_text(text)
    with pytest.raises(ArtifactError, match="not a whole report of dyvit bench"):
        compare_runs(good, bad)


def test_runs_without_a_common_row_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="in common"):
        compare_runs(write(tmp_path / "a.json", row("a", 1)), write(tmp_path / "b.json", row("b", 1)))


@pytest.mark.parametrize("changes", [dict(latency_ms_p50=0), dict(latency_ms_p50="x"), dict(batch=[1]),
                                     dict(ci95_ms=[1, 2])])
def test_a_row_with_a_broken_value_is_refused(tmp_path, changes):
    good = write(tmp_path / "a.json", row("a", 1))
    with pytest.raises(ArtifactError, match="not a whole report of dyvit bench"):
        compare_runs(good, write(tmp_path / "b.json", row("a", 1) | changes))


def test_two_artifacts_of_one_name_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="two artifacts of one name"):
        compare_runs(write(tmp_path / "a.json", row("a", 1), row("a", 2)), write(tmp_path / "b.json", row("a", 1)))
