"""Writes a page about a set of artifacts: one HTML file that needs no network; the same data give the same bytes."""
from __future__ import annotations

import base64
import collections
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text

from ..artifacts.facts import own_version
from ..artifacts.files import atomic_write, check_target, require_file
from ..artifacts.locks import sole_use
from ..data.images import Track, no_track
from ..data.open import check_source
from ..errors import ConfigError
from ..optional import installed, require
from ..settings.tables import Table
from .collect import Collection, collect
from .config import ReportConfig
from .gallery import Galleries, make_galleries
from .lineage import data_of
from .sections import costs, environments, family, latency_charts, layer_maps, trade_charts
from .status import FAIL, INFO, OPEN, PASS, WARN
from .verdicts import Judgement, judge

NAME = "report.html"
HERE = Path(__file__).parent
STYLES = {PASS: "green", WARN: "yellow", FAIL: "red", OPEN: "", INFO: "dim"}
GROUPS = ((PASS, "good to ship"), (FAIL, "not to be shipped"), (WARN, "to be looked at"), (OPEN, "not known yet"))


@dataclass(frozen=True)
class PageReport:
    """The page that was written to `path`; true if no verdict on any artifact is bad. A missing measurement is not bad.
    """

    KIND: ClassVar[str] = "report"

    path: str
    kib: float
    judgements: tuple[Judgement, ...]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return all(j.state != FAIL for j in self.judgements)

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(f"{j.entry.key}: {v.name.lower()} {v.headline}" for j in self.judgements for v in j.verdicts
                     if v.state == FAIL)

    def table(self) -> Table:
        """One row per artifact: the four verdicts and their summary."""
        table = Table(title=Text(f"{self.path}, {self.kib:,.0f} KiB"), title_justify="left")
        table.add_column("")
        for column in ("artifact", "parity", "accuracy", "precision", "speed", "verdict"):
            table.add_column(column, overflow="fold")
        for j in self.judgements:
            cells = (Text(f"{v.sign} {v.headline}", STYLES[v.state]) for v in j.verdicts)
            table.add_row(j.entry.letter, Text(j.entry.key), *cells, _headline(j))
        return table

    def to_json(self) -> dict[str, Any]:
        return {"passed": bool(self), "failures": list(self.failures), "path": self.path, "kib": self.kib,
                "notes": list(self.notes), "artifacts": [
                    {"artifact": j.entry.key, "state": j.state, "verdict": j.headline, "assumed": list(j.assumed),
                     **{v.name.lower(): {"state": v.state, "headline": v.headline, "lines": list(v.lines),
                                          "command": v.command}
                        for v in j.verdicts}} for j in self.judgements]}


def write_report(folder: str | Path, out: str | Path | None = None, config: ReportConfig = ReportConfig(),
                 track: Track[Any] = no_track) -> PageReport:
    """Writes one HTML file about the artifacts in `folder` and in its subfolders.

    Args:
        folder: artifacts, and the JSON of `check`, `eval`, `bench`, `export`, `sweep` and `quickstart` about them.
        out: the file to write; None for report.html in the folder.

    Raises:
        ConfigError: `out` does not have the suffix .html or .htm, or another command writes it.
        ArtifactError: the folder does not exist or has nothing of dyvit in it, or the file cannot be written.
        DataError: `config.data` has no images, or `config.labels` are not those of an artifact.
        MissingDependency: Jinja2 is not installed.
    """
    # Checked before the work starts.
    require("jinja2", extra="report")
    folder = Path(folder)
    path = folder / NAME if out is None else Path(out)
    # Also prevents overwriting an artifact.
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"The page is written as .html, not as {path.name!r}.")
    if config.data:
        check_source(config.data)
    if config.labels:
        require_file(config.labels)
    collection = collect(folder, track)
    check_target(path)
    with sole_use(path):
        judgements = judge(collection, config.max_drop)
        galleries = _galleries(collection, config, track)
        notes = tuple(dict.fromkeys((*collection.skipped, *collection.absent(), *galleries.notes)))
        content = _render(collection, judgements, galleries, notes)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return PageReport(str(path), len(content) / 2**10, judgements, (*notes, *_assumptions(judgements)))


def _galleries(collection: Collection, config: ReportConfig, track: Track[Any]) -> Galleries:
    pruned = [entry for entry in collection.entries if entry.facts and not entry.facts.dense]
    if not config.run or not config.images or not pruned:
        return Galleries((), (), ())
    if config.data:
        return make_galleries(pruned, config.data, config.images, track, config.labels)
    on_digits = [entry for entry in pruned if data_of(entry) == "digits"]
    if on_digits and installed("sklearn"):
        return make_galleries(on_digits, "digits", config.images, track, config.labels)
    return Galleries((), (), ("There are no galleries of kept patches: add --data with a folder of images.",))


def _headline(judgement: Judgement) -> Text:
    remark = [(", with assumptions", STYLES[WARN])] if judgement.assumed else []
    return Text.assemble((judgement.headline, STYLES[judgement.state]), *remark)


def _assumptions(judgements: Sequence[Judgement]) -> list[str]:
    """One line per assumption, with the artifacts that it concerns."""
    concerned: dict[str, list[str]] = {}
    for judgement in judgements:
        for statement in judgement.assumed:
            concerned.setdefault(statement, []).append(judgement.entry.key)
    return [f"Assumed of {', '.join(keys)}: {statement}." for statement, keys in concerned.items()]


def summary(judgements: Sequence[Judgement]) -> str:
    """The verdicts of the whole page in one or two sentences."""
    counts = collections.Counter(j.state for j in judgements if j.entry.about.kind != "checkpoint")
    total = sum(counts[state] for state, _ in GROUPS)
    failed = sum(j.state == FAIL for j in judgements if j.entry.about.kind == "checkpoint")
    shares = [f"{counts[state]} {label}" for state, label in GROUPS if counts[state]]
    sentences = [f"Of {total} exported artifact{'s' * (total > 1)}, " + ", ".join(shares) + "."] if total else []
    sentences += [f"{failed} checkpoint{'s' * (failed > 1)} failed a check."] if failed else []
    return " ".join(sentences) or "There is nothing here to judge."


def _render(collection: Collection, judgements: Sequence[Judgement], galleries: Galleries,
            notes: Sequence[str]) -> bytes:
    """The HTML of the page; everything is escaped, because names and notes come from files that anyone can write."""
    jinja2 = require("jinja2", extra="report")
    markup = require("markupsafe").Markup
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(HERE))
    environment.filters |= {"breakable": _breakable, "digests": _digests}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html.j2").render(
        folder=collection.folder.resolve().name or str(collection.folder), summary=summary(judgements),
        judgements=judgements, trades=trade_charts(collection), latencies=latency_charts(collection),
        galleries=galleries, costs=costs(collection), maps=layer_maps(collection), tree=family(collection),
        environments=environments(collection), notes=notes, report_notes=_report_notes(collection),
        commands=list(dict.fromkeys((*collection.records.commands, *_rebuilds(collection)))),
        rewritten=_rewritten(collection), style=markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=markup(script), script_hash=digest, version=own_version())
    # File names need not be valid text.
    return str(text).encode("utf-8", "replace")


def _rebuilds(collection: Collection) -> list[str]:
    return [entry.about.engine.rebuild for entry in collection.entries if entry.about.engine]


def _breakable(name: str) -> Any:
    """Markup of a name that can break after - . _ and /, and within very long words."""
    markup = require("markupsafe").Markup
    return markup("<wbr>").join(re.findall(r"[^-._/]{1,24}[-._/]*|[-._/]+", name))


def _digests(text: str) -> Any:
    """Markup of a text, with each sha256 in an element that shows only its first digits."""
    markup = require("markupsafe").Markup
    pieces = re.split(r"\b([0-9a-f]{64})\b", text)
    hashed = markup('<code class="digest" title="{0}">{0}</code>')
    return markup("").join(hashed.format(piece) if number % 2 else piece for number, piece in enumerate(pieces))


def _rewritten(collection: Collection) -> bool:
    """True if artifacts of one model and schedule have graphs of different cost."""
    costs_of: dict[Any, set[str]] = collections.defaultdict(set)
    for entry in collection.entries:
        if entry.facts and entry.about.gmacs is not None:
            counts = None if entry.facts.dense else entry.about.keep_counts
            costs_of[entry.facts.model.name, counts].add(f"{entry.about.gmacs:.3g}")
    return any(len(costs) > 1 for costs in costs_of.values())


def _report_notes(collection: Collection) -> list[str]:
    """The notes in the reports, without duplicates."""
    return list(dict.fromkeys(collection.records.notes))
