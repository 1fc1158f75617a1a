import os

import pytest
from helpers import needs_openvino, tiny_checkpoint

from dyvit_deploy.bench.config import BenchConfig
from dyvit_deploy.deploy.dense import benchmark
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.machine.cpu_peak import PEAK_PRECISIONS, matmul_gflops
from dyvit_deploy.machine.hardware import on_cpus

KINDS = [pytest.param(backend, precision, marks=[needs_openvino] if backend == "OpenVINO" else [])
         for backend, precisions in PEAK_PRECISIONS.items() for precision in precisions]


@pytest.mark.parametrize("backend, precision", KINDS)
def test_a_peak_is_measured_through_the_runtime(backend, precision):
    assert 0.1 < matmul_gflops(backend, precision, side=256) < 1e6


def test_what_a_runtime_does_not_compute_has_no_peak():
    assert matmul_gflops("ONNX Runtime", "bfloat16") is None and matmul_gflops("PyTorch", "float32") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_a_process_runs_on_the_requested_cores(tmp_path):
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    with on_cpus([one]):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == allowed
    config = BenchConfig((1,), seconds=0.1, warmup=1, min_runs=3, memory=False, cpus=(one,))
    report = benchmark([tiny_checkpoint(tmp_path)], config)
    assert report.machine["cpus"] == [one] and os.sched_getaffinity(0) == allowed
    # As many threads as cores.
    assert report.config.threads == 1
    with pytest.raises(ConfigError, match="not among those"), on_cpus([10_000]):
        pass
