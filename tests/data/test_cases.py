"""Folders of images as people have them, from the collection of cases that failed."""
import os
import subprocess
import sys

import pytest
from helpers import PHOTOS, SHARED, dyvit, needs_photos, tiny_config

from dyvit_deploy.data.open import open_images

CASES = SHARED / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"the cases are not at {CASES}")


def make(case, folder):
    """Makes the input of a case in `folder`."""
    subprocess.run([sys.executable, CASES / case / "make.py"], cwd=folder, check=True,
                   env=os.environ | {"PHOTOS": str(PHOTOS)})


@needs_cases
def test_folders_by_number_have_the_accuracy_of_the_model(tmp_path):
    make("numeric-folders", tmp_path)
    for data in ("num", "padded"):
        result = dyvit("eval", tmp_path / "m12.pth", "--model", "timm:test_vit", "--keep-ratio", "1.0",
                       "--data", tmp_path / data)
        assert result.exit_code == 0 and "100.00%" in next(
            line for line in result.stdout.splitlines() if "top-1" in line)
        assert result.stderr.count("has no class names; its classes 0 to 11 are taken to be those of") == 1


@needs_cases
@needs_photos
def test_the_hidden_folder_of_a_notebook_is_no_class(tmp_path):
    make("hidden-class", tmp_path)
    assert open_images(str(tmp_path / "data"), tiny_config(), "train").class_names == ("cat", "dog")
