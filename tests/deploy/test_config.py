import json

import pytest

from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.engine.config import BatchProfile, BuildConfig, parse_capability
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.settings.fields import command_flags


@pytest.mark.parametrize("text, sizes", [("1:8:32", (1, 8, 32)), ("4", (4, 4, 4))])
def test_batch_sizes_are_read_in_both_forms(text, sizes):
    profile = BatchProfile.parse(text)
    assert (profile.min, profile.opt, profile.max) == sizes


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:8:4", "0:1:2", "8:4:16", "1:2:3:4", "-1", "1:8:32 "])
def test_other_batch_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="MIN:OPT:MAX"):
        BatchProfile.parse(text)


@pytest.mark.parametrize("text", ["1:8:32", "=1:8:32", "name="])
def test_a_named_profile_needs_name_and_sizes(text):
    with pytest.raises(ConfigError, match=r"like latency=1:1:1|MIN:OPT:MAX"):
        BatchProfile.parse_named(text)


@pytest.mark.parametrize("text, capability", [("8.9", "8.9"), ("89", "8.9"), ("120", "12.0"), ("12.0", "12.0")])
def test_compute_capabilities_are_read_in_both_forms(text, capability):
    assert parse_capability(text) == capability


@pytest.mark.parametrize("text", ["9", "x", "8.9.1", "890", "3.5", "-8.9"])
def test_other_compute_capabilities_are_refused(text):
    with pytest.raises(ConfigError, match=r"like 8\.9 or 89"):
        parse_capability(text)


@pytest.mark.parametrize("values, words", [
    ({"profiles": ()}, "at least one profile"),
    ({"profiles": (BatchProfile(1, 1, 1), BatchProfile(2, 2, 2))}, "a name of its own"),
    ({"workspace_mib": 0}, "more than 0 MiB"), ({"workspace_mib": float("nan")}, "more than 0 MiB"),
    ({"optimization_level": 6}, "0 to 5"),
])
def test_settings_that_no_builder_has_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        BuildConfig(**values)


def test_a_request_survives_json():
    build = BuildConfig((BatchProfile(1, 1, 1, "latency"), BatchProfile(8, 32, 64, "throughput")), 512.0,
                        compute_capabilities=("89", "12.0"), tf32=True)
    config = DeployConfig("rtx", build=build)
    assert DeployConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_flags_say_what_is_not_the_default_and_only_that():
    assert command_flags(BuildConfig()) == []
    config = BuildConfig((BatchProfile(1, 1, 4), BatchProfile(8, 8, 8, "b")), 256.0, "c.bin", 3, strip_weights=True,
                         compute_capabilities=("8.9", "120"))
    assert command_flags(config) == [
        "--batch", "1:1:4", "--profile", "b=8:8:8", "--workspace", "256", "--timing-cache", "c.bin",
        "--opt-level", "3", "--strip-weights", "--compute-capability", "8.9,12.0"]
