"""CUDA for GPU runners: float32 without rounding, captures without side effects, clocks of a busy GPU."""
import contextlib
import sys
import threading
from types import SimpleNamespace as Thing

import pytest
import torch
from helpers import HANGS

from dyvit_deploy.errors import BackendError
from dyvit_deploy.machine import gpu_peak
from dyvit_deploy.machine.gpu_peak import ClockSampler, gpu_notes
from dyvit_deploy.machine.tf32 import TF32_VARIABLES, full_float32, require_full_float32
from dyvit_deploy.runners.cuda import Cuda

BACKENDS = torch.backends


def settings():
    places = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn
    try:
        products = torch.get_float32_matmul_precision()
    # The setting by its newer name differs.
    except RuntimeError:
        products = None
    return [place.fp32_precision for place in places], products


@pytest.fixture(autouse=True)
def restored():
    before, _ = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for place, precision in zip((BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn), before):
        place.fp32_precision = precision


def by_older_names():
    BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = True


def by_newer_names():
    BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision = "tf32", "ieee"


def by_one_word():
    torch.set_float32_matmul_precision("medium")


@pytest.mark.parametrize("ask", [lambda: None, by_older_names, by_newer_names, by_one_word])
def test_float32_is_not_rounded_within_the_block_and_settings_are_restored(ask):
    ask()
    before = settings()
    with contextlib.suppress(ZeroDivisionError), full_float32():
        assert settings() == (["ieee"] * 3, "highest")
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.parametrize("name", TF32_VARIABLES)
@pytest.mark.parametrize("value, forced", [("1", True), ("0", False), ("", False), (None, False)])
def test_an_environment_that_forces_tf32_is_named(monkeypatch, name, value, forced):
    for other in TF32_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    if not forced:
        return require_full_float32()
    with pytest.raises(BackendError, match=rf"^{name}=1 in the environment rounds [^\n]*; run 'unset {name}' first, "):
        require_full_float32()


def fake_capture(monkeypatch, fails=False):
    """A fake of PyTorch's CUDA graphs: as in PyTorch, a failed capture leaves the current stream set."""
    log = Thing(current="default", mode=None)

    class Graph:
        def replay(self): log.replayed = log.current

    @contextlib.contextmanager
    def graph(cuda_graph, stream, capture_error_mode="global"):
        log.mode, before, log.current = capture_error_mode, log.current, stream
        try:
            yield
        finally:
            if fails:
                raise RuntimeError("operation failed due to a previous error during capture")
        log.current = before

    @contextlib.contextmanager
    def on(stream):
        before, log.current = log.current, stream
        try:
            yield
        finally:
            log.current = before

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return log


def test_a_capture_is_thread_local(monkeypatch):
    log, launched, stream = fake_capture(monkeypatch), [], Thing(synchronize=lambda: None)
    Cuda().capture(lambda: launched.append(log.current), stream)()
    assert log.mode == "thread_local" and launched == [stream] and log.current == "default"


def test_a_failed_capture_gives_the_current_stream_back(monkeypatch):
    log = fake_capture(monkeypatch, fails=True)
    cuda = Cuda()
    with pytest.raises(RuntimeError, match="previous error"):
        cuda.capture(lambda: None, Thing(synchronize=lambda: None))
    # PyTorch's allocator still refers to the graph.
    assert log.current == "default" and len(cuda._failed) == 1


class Nvml(Thing):
    """A fake of pynvml; its GPU is `busy` or idle, and does not report its power."""

    class NVMLError(Exception): ...
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def nvmlInit(self): self.threads.add(threading.current_thread())  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid): return uuid  # noqa: N802
    def nvmlDeviceGetMaxClockInfo(self, gpu, kind): return 1980  # noqa: N802
    def nvmlDeviceGetClockInfo(self, gpu, kind): return 1755 if self.busy else 345  # noqa: N802
    def nvmlDeviceGetTemperature(self, gpu, kind): return 70 if self.busy else 30  # noqa: N802
    def nvmlDeviceGetPowerUsage(self, gpu): raise self.NVMLError  # noqa: N802

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu):  # noqa: N802
        self.samples.release()
        return 0x4 if self.busy else 0x1

    def wait_for(self, samples):
        """Until so many more were taken, however slow the machine is."""
        self.samples = threading.Semaphore(0)
        for _ in range(samples):
            assert self.samples.acquire(timeout=HANGS)


@pytest.fixture
def nvml(monkeypatch):
    library = Nvml(busy=False, threads=set(), samples=threading.Semaphore(0))
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(gpu_peak, "gpu_uuid", lambda: "GPU-1")
    return library


def test_clocks_are_those_of_the_busy_gpu_not_of_the_idle_one_after(nvml):
    nvml.busy = True
    with ClockSampler(every=0.001) as clocks:
        nvml.wait_for(6)
    nvml.busy = False
    found = clocks.summary()
    assert found["samples"] >= 6 and found["sm_mhz_median"] == found["sm_mhz_min"] == 1755
    assert (found["sm_mhz_highest_supported"], found["temperature_c_max"], found["power_w_median"]) == (1980, 70, None)
    assert found["held_back"] == {"power cap": 1.0} and threading.main_thread() not in nvml.threads
    assert not any(thread.is_alive() for thread in nvml.threads)


def test_clocks_that_were_held_back_are_in_the_notes_and_idle_ones_are_not(nvml):
    with ClockSampler(every=0.001) as idle:
        nvml.wait_for(1)
    nvml.busy = True
    with ClockSampler(every=0.001) as busy:
        nvml.wait_for(1)
    peaks = {"float16": 800.0}
    notes = [gpu_notes({"matmul_peak_tflops": peaks, "clocks": [clocks]}, False, False)
             for clocks in (idle.summary(), busy.summary(), None)]
    assert not any("held back" in note for note in notes[0])
    assert any("held back while it was timed (power cap in 100% of the samples; 1755 of 1980 MHz)" in note
               for note in notes[1])
    assert any("clocks were not sampled: that needs its driver and pip install" in note for note in notes[2])


def test_without_nvml_or_its_driver_nothing_is_sampled(monkeypatch, nvml):
    def broken(self):
        raise self.NVMLError
    monkeypatch.setattr(Nvml, "nvmlInit", broken)
    with ClockSampler() as clocks:
        pass
    assert clocks.summary() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with ClockSampler() as clocks:
        pass
    assert clocks.summary() is None
