"""A few kills of the cheapest commands; `tests/kills.py` by itself does hundreds, of all."""
import os
import subprocess
import sys

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.mark.parametrize("options", [["--kills", "6"], ["--twice"]], ids=["killed", "twice"])
def test_whatever_is_interrupted_is_whole_or_names_the_fix_and_its_repetition_heals_it(tmp_path, options):
    done = subprocess.run([sys.executable, ROOT / "tests" / "kills.py", *options, "--only", "two files,calibrate",
                           "--log", tmp_path / "log"], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and " 0 with faults" in done.stdout.splitlines()[-1], done.stdout + done.stderr
