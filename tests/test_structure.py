"""The rules of the architecture, checked on the code."""
import ast
import inspect
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGE = ROOT / "dyvit_deploy"
# From the ground up: a file imports from the lines above its own only, and rooms of one line do not know each other.
FLOORS = [
    {"errors"},
    {"optional", "settings", "statistics"},
    {"config"},
    {"artifacts", "machine"},
    {"data", "graph", "checkpoints"},
    {"model", "engine"},
    {"runners"},
    {"export", "parity", "evaluation", "inspect", "bench"},
    {"calibration", "training", "predict", "visualization"},
    {"deploy"},
    {"sweep", "serving"},
    {"report"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
MODULES = {"__init__", "__main__", "config", "errors", "optional"}
# Each reads an artifact and writes the next one.
STAGES = {"training", "export", "calibration", "engine"}
TORCH_ALLOWED = {"checkpoints", "model", "training", "runners/pytorch.py", "export/inference.py"}
# Run by another process, whose answer is what they write.
PROGRAMS = {"bench/process.py"}
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "openvino", "sklearn",
         "modelopt", "matplotlib", "datasets", "webdataset", "ray", "pyarrow")
FILES = sorted(PACKAGE.rglob("*.py"))


def short(path):
    return str(path.relative_to(PACKAGE))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name in names)


def own_imports(tree, depth):
    """Rooms and root modules that a file `depth` folders below the package's parent imports, anywhere in it; names in
    strings count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from ([node.module.split(".")[0]] if node.module else [alias.name for alias in node.names])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("dyvit_deploy."):
            yield node.value.split(".")[1]


def printing(tree):
    """Calls that write to the terminal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "click.echo", "click.secho", "rich.print", "Console") or name.endswith(
                    (".stdout.write", ".stderr.write", "console.print", ".Console")):
                yield name


# Modules, and attributes of os and signal, that Windows lacks.
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
POSIX = {"os": {"fork", "forkpty", "killpg", "getuid", "geteuid", "getgid", "getegid", "getpgid", "setsid", "setpgid",
                "mkfifo", "mknod", "chown", "lchown", "fchown", "fchmod", "nice", "getloadavg", "statvfs", "wait",
                "wait3", "wait4", "sysconf", "uname", "sched_getaffinity", "sched_setaffinity", "register_at_fork",
                "pread", "pwrite", "sync", "fdatasync", "posix_fallocate"},
         "signal": {"SIGKILL", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "alarm",
                    "setitimer", "pause", "sigwait", "pthread_sigmask", "pthread_kill"}}
POSIX_ALLOWED = {"machine/posix.py"}


def posix_only(tree):
    """What Windows does not have: imports, attributes, and a sync of a file that was opened for reading."""
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        yield from (name for name in names if name.split(".")[0] in POSIX_MODULES)
        if isinstance(node, ast.ImportFrom) and node.module in POSIX:
            yield from (a.name for a in node.names if a.name in POSIX[node.module])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in POSIX.get(
                node.value.id, ()):
            yield ast.unparse(node)
        if isinstance(node, ast.With) and "os.fsync(" in (text := ast.unparse(node)):
            yield from (item for item in ("open('rb')", "open()") if item in text)


def test_the_root_has_what_all_rooms_share_and_each_room_says_what_it_is_for():
    assert {p.stem for p in PACKAGE.glob("*.py")} == MODULES
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms | MODULES == set().union(*FLOORS) | {"__init__"}
    assert all(ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text())) for name in rooms)


@pytest.mark.parametrize("path", [f for f in FILES if f.name != "__init__.py"], ids=short)
def test_a_file_imports_only_from_rooms_below_its_own(path):
    mine, depth = room(path), len(path.relative_to(PACKAGE).parts)
    for other in own_imports(ast.parse(path.read_text()), depth):
        assert other in (mine, "__init__") or floor(other) < floor(mine), f"{path} imports {other}"
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


def test_no_module_needs_itself():
    """Modules of one room may import each other, but not in a circle, imports inside functions included."""
    names = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in FILES if p.name != "__init__.py"}
    needs = {}
    for name, path in names.items():
        package = name.split(".")[:-1]
        found = needs.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[:len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
                found |= {".".join([*base, a.name]) for a in node.names} | {".".join(base)}
    needs = {name: {n for n in found if n in names} for name, found in needs.items()}
    assert sum(map(len, needs.values())) > 500
    while free := [name for name, found in needs.items() if not found & set(needs)]:
        for name in free:
            del needs[name]
    assert not needs, f"these import each other: {sorted(needs)}"


@pytest.mark.parametrize("code", ["import dyvit_deploy", "import dyvit_deploy.cli.main",
                                  "from click.testing import CliRunner; from dyvit_deploy.cli.main import main; "
                                  "assert CliRunner().invoke(main, ['--help']).exit_code == 0"])
def test_importing_and_help_load_no_heavy_library(code):
    check = f"{code}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("path", [f for f in FILES if room(f) != "cli" and short(f) not in PROGRAMS], ids=short)
def test_only_the_command_line_prints(path):
    assert not list(printing(ast.parse(path.read_text())))


@pytest.mark.parametrize("line", ["print('x')", "click.echo('x')", "rich.console.Console().print('x')",
                                  "sys.stdout.write('x')", "self._console.print('x')"])
def test_every_way_to_print_is_noticed(line):
    assert list(printing(ast.parse(line)))


@pytest.mark.parametrize("path", [f for f in FILES if short(f) not in POSIX_ALLOWED], ids=short)
def test_what_windows_lacks_is_in_one_module(path):
    assert not list(posix_only(ast.parse(path.read_text())))


@pytest.mark.parametrize("line", ["import fcntl", "from resource import getrusage", "os.killpg(1, 9)",
                                  "from signal import SIGKILL", "signal.SIGALRM",
                                  "with path.open('rb') as file:\n    os.fsync(file.fileno())"])
def test_everything_that_windows_lacks_is_noticed(line):
    assert list(posix_only(ast.parse(line)))


def test_every_public_name_resolves():
    import dyvit_deploy

    # Brings packages that a name could be mistaken for.
    import dyvit_deploy.cli.main
    for name in dyvit_deploy.__all__:
        value = getattr(dyvit_deploy, name)
        assert value is not None and not inspect.ismodule(value), name
    with pytest.raises(AttributeError):
        dyvit_deploy.no_such_name  # noqa: B018
