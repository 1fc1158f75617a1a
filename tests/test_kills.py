"""A few kills of the cheapest command; `tests/kills.py` by itself does hundreds, of all."""
import os
import subprocess
import sys

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def test_what_is_interrupted_is_whole_or_names_the_fix_and_its_repetition_heals_it(tmp_path, request):
    done = subprocess.run([sys.executable, ROOT / "tests" / "kills.py", "--kills", "4", "--twice", "--only",
                           "calibrate", "--log", tmp_path / "log", "--traces", request.config.cache.mkdir("traces")],
                          capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.stdout.splitlines()[-1] == "6 interrupted, 0 with faults", done.stdout + done.stderr
