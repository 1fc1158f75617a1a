import sys

import pytest

from dyvit_deploy.errors import MissingDependency
from dyvit_deploy.optional import installed, require


def test_an_absent_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'dyvit-deploy\[demo\]'"):
        require("sklearn.datasets", extra="demo")


def test_a_library_that_breaks_inside_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        require("broken_library")


def test_installed_does_not_import(tmp_path, monkeypatch):
    (tmp_path / "quiet_library.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("quiet_library")
    assert not installed("no_such_library")
