"""The steps of .ci/run are all tests together, and no test is in two of them."""
import itertools
import shlex
import sys

import pytest
from conftest import LONG
from helpers import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STEPS = ROOT / ".ci" / "run"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
MARKERS = [line.split(":")[0] for line in SETTINGS["markers"]]


def chosen(words):
    """What stands after the last -m."""
    return next((after for word, after in reversed(list(zip(words, words[1:]))) if word == "-m"), None)


@pytest.mark.skipif(not STEPS.is_file(), reason=".ci/run is not in a source distribution")
def test_every_test_runs_in_one_step_and_only_in_one():
    typed = [shlex.split(line, comments=True) for line in STEPS.read_text().splitlines() if line.startswith("pytest")]
    steps = [chosen([*shlex.split(SETTINGS["addopts"]), *words]) for words in typed]
    assert len(steps) > 1
    for carried in itertools.product([False, True], repeat=len(MARKERS)):
        marks = dict(zip(MARKERS, carried))
        # The grammar of -m is Python's, of names.
        assert sum(bool(eval(step, {}, marks)) for step in steps) == 1, marks


def test_the_default_suite_leaves_out_what_has_a_marker_and_nothing_else():
    default = chosen(shlex.split(SETTINGS["addopts"]))
    assert eval(default, {}, dict.fromkeys(MARKERS, False))
    assert not any(eval(default, {}, dict.fromkeys(MARKERS, False) | {name: True}) for name in MARKERS)


def test_the_files_that_are_begun_first_exist():
    assert [name for name in LONG if not (ROOT / "tests" / name).is_file()] == []
