"""Engines of the demo student on a real GPU, compared with float32 in PyTorch."""
import importlib.util

import numpy as np
import pytest
from helpers import ROOT

from dyvit_deploy.calibration.config import CalibrationConfig, PrecisionConfig
from dyvit_deploy.config import EngineRunConfig, LoadConfig
from dyvit_deploy.data.open import open_images
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.library import LIBRARY_SPECS
from dyvit_deploy.engine.sidecar import ON_DEVICE, read_sidecar
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.machine.hardware import gpu
from dyvit_deploy.parity.kept_tokens import stage_overlaps
from dyvit_deploy.runners.base import run_in_batches
from dyvit_deploy.runners.open import open_runner

pytestmark = pytest.mark.skipif(gpu() is None, reason="no GPU is here to run an engine on")
DEMO = ROOT / "dyvit_deploy" / "demo" / "digits-s.safetensors"
PROFILES = (BatchProfile(1, 1, 1, "latency"), BatchProfile(2, 32, 64, "throughput"))
# Largest logit error, smallest overlap of kept tokens.
BOUNDS = {"float32": (1e-3, 0.99), "float16": (2e-2, 0.97)}


@pytest.fixture(scope="module", params=sorted(LIBRARY_SPECS))
def plans(request, tmp_path_factory):
    spec, folder = LIBRARY_SPECS[request.param], tmp_path_factory.mktemp(request.param)
    if importlib.util.find_spec(spec.module) is None:
        pytest.skip(f"{spec.name} is missing: {spec.get_it}")

    def plan(precision):
        if precision == "float16":
            pytest.importorskip("modelopt", reason="ModelOpt is missing: pip install 'dyvit-deploy[calib]'")
        path = folder / f"{precision}.plan"
        if not path.exists():
            calibration = CalibrationConfig("digits", images=16) if precision != "float32" else CalibrationConfig()
            config = DeployConfig(request.param, ExportConfig(with_tokens=True), PrecisionConfig(precision),
                                  calibration, BuildConfig(PROFILES))
            assert export_artifact(DEMO, path, config)
        return path
    return plan


@pytest.fixture(scope="module")
def expected():
    with open_runner(DEMO, device="cpu") as runner:
        images = next(open_images("digits", runner.image_spec(), split="test", limit=64).batches(64)).images
        return images, runner.predict(images)


@pytest.mark.parametrize("graph", [False, True], ids=["", "cuda-graph"])
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("precision", sorted(BOUNDS))
def test_an_engine_computes_what_the_checkpoint_does(plans, expected, precision, batch, graph):
    images, reference = expected
    error, overlap = BOUNDS[precision]
    with open_runner(plans(precision), load=LoadConfig(engine=EngineRunConfig(cuda_graph=graph))) as runner:
        found = run_in_batches(runner, images, batch)
    assert np.abs(found.logits - reference.logits).max() <= error
    stages = stage_overlaps(reference.kept, found.kept, reference.scores, tie=0.0)
    assert all(stage.plain.mean() >= overlap for stage in stages)


@pytest.mark.parametrize("precision", sorted(BOUNDS))
def test_the_precisions_are_read_from_the_engine_itself(plans, precision):
    facts = read_sidecar(plans(precision))
    assert facts.verified == ON_DEVICE and list(facts.products.values()).count(precision) > 20


def test_the_gpus_own_events_time_every_phase(plans):
    with open_runner(plans("float32"), load=LoadConfig(engine=EngineRunConfig(streams=2))) as runner:
        phases = runner.gpu_ms(np.zeros((64, 3, 64, 64), np.float32), 20)
    assert set(phases) == {"upload", "compute", "download"} and min(map(min, phases.values())) > 0
