"""The rules of the architecture, held against the code."""
import ast
import inspect
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGE = ROOT / "dyvit_deploy"
LAYERS = [
    {"errors"}, {"optional", "config", "parts"}, {"distributed", "deploy_config"},
    {"zoo", "targets", "modelopt", "machine"},
    {"artifacts"}, {"graph"}, {"engine"}, {"data"}, {"model"}, {"runners"}, {"overlap", "agreement"},
    {"training", "export", "calibration"}, {"lowering", "tuning"},
    {"gpu_peak", "baselines"}, {"parity", "bench", "inspection", "doctor", "catalog", "prediction"},
    {"deploy_report", "dry_run"}, {"deploy"}, {"pipeline"}, {"sweep", "serving"}, {"report"},
    {"quickstart", "progress"}, {"options", "terminal"}, {"cli_production", "cli_report", "cli_training"},
    {"cli"}, {"__main__"},
]
STAGES = {"training", "export", "calibration"}
TORCH_ALLOWED = {"model", "training", "runners/pytorch.py", "export/inference.py"}
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "openvino", "sklearn",
         "modelopt", "matplotlib", "datasets", "webdataset", "ray", "pyarrow")
FILES = sorted(PACKAGE.rglob("*.py"))


def short(path):
    return str(path.relative_to(PACKAGE))


def top(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def own_imports(path):
    """Top-level names of this package that `path` imports at run time, anywhere in it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):                     # imports for type checkers do not run
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from ([node.module.split(".")[0]] if node.module else [alias.name for alias in node.names])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("dyvit_deploy."):
            yield node.value.split(".")[1]          # require("dyvit_deploy.model.vit")


@pytest.mark.parametrize("path", [f for f in FILES if f.name != "__init__.py"], ids=short)
def test_a_file_imports_only_from_lower_layers(path):
    mine = top(path)
    for other in own_imports(path):
        assert layer(other) < layer(mine) or other == mine or other == "__init__", f"{path} imports {other}"
        assert not (mine in STAGES and other in STAGES and mine != other), "stages never import one another"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_no_file_is_long_and_heavy_libraries_stay_out_of_the_top(path):
    text, relative = path.read_text(), path.relative_to(PACKAGE).as_posix()
    assert len(text.splitlines()) <= 400
    if any(relative.startswith(allowed) for allowed in TORCH_ALLOWED):
        return
    for node in ast.parse(text).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        assert not [n for n in names if n.split(".")[0] in HEAVY], f"{relative} imports {names} at import time"


@pytest.mark.parametrize("code", ["import dyvit_deploy", "import dyvit_deploy.cli",
                                  "from click.testing import CliRunner; from dyvit_deploy.cli import main; "
                                  "assert CliRunner().invoke(main, ['--help']).exit_code == 0"])
def test_importing_and_help_load_no_heavy_library(code):
    check = f"{code}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


def test_only_the_command_line_prints():
    for path in FILES:
        if path.name != "cli.py":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_every_public_name_resolves():
    import dyvit_deploy
    import dyvit_deploy.cli  # brings packages that a name could be mistaken for
    for name in dyvit_deploy.__all__:
        value = getattr(dyvit_deploy, name)
        assert value is not None and not inspect.ismodule(value), name
    with pytest.raises(AttributeError):
        dyvit_deploy.no_such_name  # noqa: B018
