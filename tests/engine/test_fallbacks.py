"""Matrix products that an engine computes in a wider type than requested, with a fake library and a fake GPU."""
import shlex

import pytest
from fake_gpu import CONV, NEW, OLD, QKV, engine, graph, install
from helpers import dyvit

from dyvit_deploy.engine.config import BuildConfig
from dyvit_deploy.engine.sidecar import EngineFacts, read_sidecar
from dyvit_deploy.errors import ConfigError, ExportError
from dyvit_deploy.inspect.artifact import inspect_artifact

# TensorProto.FLOAT16 of ONNX.
FLOAT16 = 10
ALLOWED = BuildConfig(allow_precision_fallback=True)


@pytest.fixture(params=[OLD, NEW])
def trt(request, monkeypatch):
    library = install(monkeypatch, request.param)
    library.widened = {QKV}
    yield library
    assert library.unknown == library.removed_touched == []


def test_an_error_names_the_product_and_how_to_accept_it(trt, tmp_path):
    with pytest.raises(ExportError) as caught:
        engine(tmp_path, inside=FLOAT16)
    assert str(caught.value) == (
        f"1 of 2 matrix products is wider than asked: block 1 attention ({QKV}) asked float16, became float32; build "
        "it with --allow-precision-fallback to accept that, or export it in another precision; nothing was written.")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]


def test_accepted_fallbacks_are_in_the_sidecar_and_shown(trt, tmp_path):
    path = engine(tmp_path, ALLOWED, inside=FLOAT16)
    facts = read_sidecar(path)
    assert facts.fallbacks == {QKV: "float16"} and facts.products == {CONV: "float16", QKV: "float32"}
    assert facts.config.allow_precision_fallback and "--allow-precision-fallback" in shlex.split(facts.rebuild)
    shown = inspect_artifact(path).details
    assert shown["wider than asked"] == f"block 1 attention ({QKV}) asked float16, became float32"
    assert shown["matrix products"].startswith("1 in float16, 1 in float32") and shown["block 1"] == "attn.qkv float32"


def test_the_command_line_accepts_them_and_lists_them(trt, tmp_path):
    line = "build", graph(tmp_path, inside=FLOAT16), "-o", tmp_path / "e.plan"
    refused, accepted = dyvit(*line), dyvit(*line, "--allow-precision-fallback")
    assert refused.exit_code == 1 and "--allow-precision-fallback" in refused.output
    assert accepted.exit_code == 0 and f"({QKV}) asked float16, became float32; accepted" in accepted.output


def test_without_a_fallback_there_is_no_note(trt, tmp_path):
    trt.widened = set()
    path = engine(tmp_path, ALLOWED, inside=FLOAT16)
    assert read_sidecar(path).fallbacks == {} and "wider than asked" not in inspect_artifact(path).details


@pytest.mark.parametrize("fallbacks", [[1], {"head/Gemm": 1}, {"no product": "float16"}])
def test_fallbacks_of_another_form_are_refused(trt, tmp_path, fallbacks):
    facts = read_sidecar(engine(tmp_path, ALLOWED, inside=FLOAT16))
    with pytest.raises(ConfigError):
        EngineFacts.from_dict(facts.to_dict() | {"fallbacks": fallbacks})
