"""CONTRIBUTING.md names what is there."""
import re

from helpers import ROOT
from test_structure import floor

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = ROOT / "dyvit_deploy"


def test_the_map_has_every_room_and_root_module_once():
    tree = TEXT.split("dyvit_deploy/\n", 1)[1].split("benchmarks/", 1)[0]
    listed = [line.split()[0] for line in tree.splitlines() if re.match(r"  \S", line)]
    rooms = {f"{p.name}/" for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    modules = {p.name for p in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(listed) == sorted(rooms | modules)
    floors = [floor(name.removesuffix(".py").removesuffix("/")) for name in listed]
    assert floors == sorted(floors)


def test_the_files_that_the_recipes_name_exist_and_hold_the_names():
    recipes = TEXT.split("## How to add", 1)[1]
    paths = re.findall(r"`((?:[\w.]+/)*[\w]+\.(?:py|md|json))`", recipes)
    assert len(paths) > 20
    missing = [p for p in paths if not any((root / p).exists() for root in (ROOT, PACKAGE, ROOT / "benchmarks"))]
    assert not missing
    named = re.findall(r"`([A-Z_]{4,})`[^`]{0,60}? (?:of|in) `([\w/]+\.py)`", recipes)
    assert len(named) >= 6
    assert not [(name, path) for name, path in named
                if not re.search(rf"^(class )?{name}\b", (PACKAGE / path).read_text(), re.M)]
