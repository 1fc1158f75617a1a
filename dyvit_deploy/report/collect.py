"""Reads the artifacts in a folder, and the reports of what was measured with them."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..artifacts.facts import ArtifactFacts
from ..artifacts.kinds import CONFIGURATIONS, ENGINE, INDEX, SUFFIXES
from ..data.images import Track
from ..engine.sidecar import read_sidecar
from ..errors import ArtifactError, DyvitError
from ..graph.read import load_graph, product_precisions
from ..inspect.artifact import InspectReport, inspect_artifact
from ..sweep.store import NAME as SWEEP
from .records import Check, Eval, Records, Speed, read_report, read_sweep

R = TypeVar("R", Check, Eval, Speed)
IN_GRAPH = "as recorded in the graph"
DAMAGED = "its facts are damaged, or were changed by hand; export it again."
COMPILED = "as OpenVINO compiles it on the machine that wrote this page"


# Compared by identity, because two files may have equal content.
@dataclass(frozen=True, eq=False)
class PageArtifact:
    """One artifact: `key` is its path relative to the folder, `letter` its name on the page, `rows` are its facts as
    text. `products` are the precisions of its matrix products by graph node, `precision_source` is their origin."""

    letter: str
    key: str
    path: Path
    about: InspectReport
    rows: dict[str, str]
    products: dict[str, str]
    precision_source: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def facts(self) -> ArtifactFacts | None:
        return self.about.facts

    @property
    def precision(self) -> str:
        """The precision that its facts claim."""
        return self.facts.precision if self.facts else "unknown"


@dataclass(frozen=True)
class Collection:
    """The artifacts in a folder, and the records of its reports; `skipped` has a line per file that was not usable."""

    folder: Path
    entries: tuple[PageArtifact, ...]
    records: Records
    skipped: tuple[str, ...]

    def current(self, entry: PageArtifact, records: tuple[R, ...]) -> list[R]:
        """The records that were measured on this very file, by its hash."""
        return [r for r in self._named(entry, records) if entry.about.sha256 in r.source.hashes(entry.name)]

    def stale(self, entry: PageArtifact, records: tuple[R, ...]) -> list[R]:
        """The records that were measured on an earlier file of the same name."""
        present = {e.about.sha256 for e in self.entries if e.name == entry.name}
        return [r for r in self._named(entry, records)
                if (recorded := r.source.hashes(entry.name)) and not recorded & present]

    def unsure(self, entry: PageArtifact, records: tuple[R, ...]) -> list[R]:
        """The records without a hash of the file that they were measured on; verdicts do not use them."""
        return [r for r in self._named(entry, records) if not r.source.hashes(entry.name)]

    def _named(self, entry: PageArtifact, records: tuple[R, ...]) -> list[R]:
        twins = [e for e in self.entries if e.name == entry.name]

        def beside(record: R) -> bool:
            """Without hashes, a report refers to the file of that name in its own folder, if there are several."""
            near = [e for e in twins if Path(e.key).parent == Path(record.source.file).parent]
            return len(twins) == 1 or bool(record.source.hashes(entry.name)) or entry in near

        return [r for r in records if r.artifact == entry.name and beside(r)]

    def absent(self) -> list[str]:
        """One line per artifact that a report mentions and that is not in the folder."""
        present = {entry.name for entry in self.entries}
        records: list[Check | Eval | Speed] = [*self.records.checks, *self.records.evals,
                                               *(s for s in self.records.speeds if not s.stand_in)]
        return sorted({f"{r.source.file} is about {r.artifact}, which is not in this folder."
                       for r in records if r.artifact not in present})


def collect(folder: Path, track: Track[Path]) -> Collection:
    """Reads `folder` and the folders in it; graphs are compiled, but not run.

    Raises:
        ArtifactError: the folder does not exist, or holds no artifact and no report of dyvit.
    """
    skipped: list[str] = []
    files = list(_files(folder, skipped))
    sources = [path for path in files if _is_artifact(path)]
    entries: list[PageArtifact] = []
    for path in track(sources, "reading artifacts", len(sources)):
        key = path.relative_to(folder).as_posix()
        try:
            entries.append(_entry(path, key))
        except DyvitError as error:
            # With the relative path, so that the page does not depend on the place of the folder.
            message = str(error).replace(str(path), key)
            skipped.append(message if message.startswith(key) else f"{key}: {message}")
    entries = [dataclasses.replace(e, letter=letter_of(i)) for i, e in enumerate(sorted(entries, key=_order))]
    records, known = Records(), False
    for path in files:
        configuration = path.name in CONFIGURATIONS or path.name.endswith(INDEX)
        if path.suffix.lower() != ".json" or configuration or _is_sidecar(path, sources):
            continue
        name = path.relative_to(folder).as_posix()
        try:
            records += read_sweep(path.parent, name) if path.name == SWEEP else read_report(path, name)
            known = True
        except ArtifactError as error:
            skipped.append(str(error))
    if not known and not any(e.facts for e in entries):
        first = f"; the first file that was not usable: {skipped[0]}" if skipped else ""
        raise ArtifactError(f"{folder} holds no artifact and no report of dyvit{first or '; name a folder that does.'}")
    return Collection(folder, tuple(entries), dataclasses.replace(records, speeds=_without_duplicates(records.speeds)),
                      tuple(skipped))


def _without_duplicates(speeds: tuple[Speed, ...]) -> tuple[Speed, ...]:
    """Drops duplicates of timings that are in two reports: in sweep.json and sweep's --json, or in those of quickstart
    and bench."""
    known = {(s.artifact, s.source.hashes(s.artifact), s.batch, s.runs, s.p50, s.p90, s.p99): s
             for s in reversed(speeds)}
    first = {id(speed) for speed in known.values()}
    return tuple(speed for speed in speeds if id(speed) in first)


def letter_of(number: int) -> str:
    """A to Z, then AA, AB, ..."""
    return (letter_of(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _files(folder: Path, skipped: list[str]) -> Iterator[Path]:
    """Yields the files in `folder`, then those in its subfolders, in the order of their names; adds a line to `skipped`
    for a subfolder that cannot be read."""
    try:
        children = sorted(folder.iterdir())
        inner = [child for child in children if child.is_dir() and not child.name.startswith(".")]
        yield from (child for child in children if child.is_file())
    except OSError as error:
        problem = "is not a readable folder" if folder.exists() else "does not exist"
        raise ArtifactError(f"{error.filename or folder} {problem} ({error.strerror}); name the folder with your "
                            "artifacts.") from error
    for child in inner:
        try:
            yield from [file for file in sorted(child.iterdir()) if file.is_file()]
        except OSError as error:
            skipped.append(f"{child.name}/ cannot be read ({error.strerror}); check its permissions.")


def _is_artifact(path: Path) -> bool:
    suffix = path.suffix.lower()
    # A .bin file holds the weights of an OpenVINO model.
    if suffix == ".bin":
        return False
    # Any other .tar file holds images.
    if suffix == ".tar":
        return path.name.lower().endswith(".pth.tar")
    return any(suffix in suffixes for suffixes in SUFFIXES.values())


def _is_sidecar(path: Path, artifacts: list[Path]) -> bool:
    return path.with_suffix("") in artifacts and path.with_suffix("").suffix.lower() in SUFFIXES[ENGINE]


def _order(entry: PageArtifact) -> tuple[int, bool, str]:
    """The order on the page: exported artifacts before checkpoints, dense before pruned."""
    kinds = ["ONNX", "OpenVINO", "engine plan", "checkpoint"]
    dense = entry.facts is not None and entry.facts.dense
    return kinds.index(entry.about.kind), not dense, entry.key


def _entry(path: Path, key: str) -> PageArtifact:
    about = inspect_artifact(path)
    rows = {name: str(value) for name, value in about.rows().items() if value not in (None, "", (), [], {})}
    products: dict[str, str] = {}
    source = ""
    if about.kind == "ONNX":
        products, source = product_precisions(load_graph(path, weights=False)), IN_GRAPH
    elif about.kind == "OpenVINO":
        from ..runners.openvino import OpenVINORunner
        try:
            with OpenVINORunner(path) as runner:
                products, source = runner.product_precisions(), COMPILED
        # This CPU may not support the precision.
        except DyvitError as error:
            source = str(error)
    elif about.engine and (engine := read_sidecar(path)):
        products, source = dict(engine.products), engine.verified
    return PageArtifact("", key, path, about, rows, products, source)

