import pytest


@pytest.fixture(scope="module", autouse=True)
def traced_anew(traces):
    """These tests are about the exporter: nothing comes from the cache."""
    traces.used = False
    yield
    traces.used = True
