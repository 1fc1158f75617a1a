"""The address where Ray listens and the resources that it is asked for, with a fake Ray."""
import sys
from types import SimpleNamespace as Thing

import pytest

from dyvit_deploy.config import LoadConfig
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.predict.cluster import LOCAL_ONLY, predict_on_ray
from dyvit_deploy.predict.config import PredictConfig

[SWITCH] = LOCAL_ONLY


@pytest.fixture
def ray(monkeypatch):
    """A fake Ray on a machine of 8 cores and `gpus`; its start options are in `given`."""
    fake = Thing(gpus=0, started=False, given={})
    node = {"Alive": True, "Resources": {"CPU": 8.0}}

    def init(**given):
        fake.given = given
    fake.module = Thing(
        init=init, shutdown=lambda: None, is_initialized=lambda: fake.started, nodes=lambda: [node],
        cluster_resources=lambda: {"CPU": 8.0, **({"GPU": float(fake.gpus)} if fake.gpus else {})},
        data=Thing(ActorPoolStrategy=lambda size: size))
    monkeypatch.setitem(sys.modules, "ray", fake.module)
    monkeypatch.setitem(sys.modules, "ray.data", fake.module.data)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    # As if this package had imported Ray.
    monkeypatch.setenv(SWITCH, "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


def asked(artifact="model.onnx", **config):
    """The options of Ray's workers."""
    with predict_on_ray(artifact, PredictConfig(runner="ray", **config), LoadConfig()) as answer:
        return answer.__self__._options


@pytest.mark.parametrize("address", [None, "", "local"])
def test_an_address_that_is_none_starts_a_ray_of_this_machine_alone(ray, monkeypatch, address):
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    asked()
    assert ray.given["address"] == "local" and ray.given["include_dashboard"] is False
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(ConfigError, match=rf"imported ray before.*{SWITCH}=0"):
        asked()


def test_a_ray_that_the_program_started_or_a_cluster_is_taken_as_it_is(ray, monkeypatch):
    monkeypatch.delenv(SWITCH)
    ray.started = True
    asked()
    assert not ray.given
    ray.started = False
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:1")
    asked()
    assert ray.given["address"] == "ray://somewhere:1" and "include_dashboard" not in ray.given


@pytest.mark.parametrize("artifact, device", [("engine.plan", None), ("engine.plan", "cuda"), ("model.onnx", "cuda")])
def test_what_needs_a_gpu_does_not_wait_for_ever_where_there_is_none(ray, artifact, device):
    with pytest.raises(ConfigError, match=r"The cluster has no GPU, and (.*engine\.plan|--device cuda) needs one"):
        asked(artifact, device=device)
    ray.gpus = 1
    assert asked(artifact, device=device)["num_gpus"] == 1


def test_a_plan_on_a_cpu_is_refused_as_without_ray_before_ray_starts(ray):
    with pytest.raises(ConfigError, match="is an engine for a GPU; leave out --device"):
        asked("engine.plan", device="cpu")
    assert not ray.given


@pytest.mark.parametrize("gpus, workers, share", [(0, None, None), (2, None, 1), (2, 1, 1), (2, 3, 0.5),
                                                   (1, 3, 0.3333)])
def test_every_worker_finds_its_share_of_a_gpu(ray, gpus, workers, share):
    ray.gpus = gpus
    assert asked(workers=workers).get("num_gpus") == share
    assert "num_gpus" not in asked(device="cpu", workers=workers)
