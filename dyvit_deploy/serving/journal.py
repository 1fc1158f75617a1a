"""What an export is moving into a repository, in a file there until all of it has arrived.

After a kill, the next export removes what is listed and starts again; until then `dyvit serve` refuses the repository.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..artifacts.files import write_json
from ..artifacts.locks import remove
from ..errors import ArtifactError, reason

NAME = ".dyvit-unfinished.json"
# A model, or one version of it.
PLACE = re.compile(r"(?!\.\.?(/|$))[^/\\:]+(/\d+)?")


def begin(folder: Path, places: Iterable[Path]) -> None:
    """Records `places`, folders relative to the repository that do not exist yet, before they are moved there."""
    write_json(folder / NAME, [place.as_posix() for place in places])


def finish(folder: Path) -> None:
    """Call it when everything is in its place."""
    (folder / NAME).unlink()


def require_finished(folder: Path) -> None:
    """Raises ArtifactError if the last export into the repository did not come to its end."""
    if (folder / NAME).exists():
        raise ArtifactError(f"The last export into {folder} was interrupted; repeat it, which removes what it left.")


def undo_unfinished(folder: Path) -> None:
    """Removes what an interrupted export has moved into the repository, whose lock must be held.

    Raises:
        ArtifactError: the list of what was moved is not one that dyvit wrote.
    """
    journal = folder / NAME
    if not journal.is_file():
        return
    try:
        places = [str(place) for place in json.loads(journal.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{journal} cannot be read ({reason(error)}); remove it, and the models beside it that are "
                            "not complete.") from error
    for place in reversed(places):
        # A repository may come from elsewhere: only its own folders are removed.
        if not PLACE.fullmatch(place) or (folder / place.split("/")[0]).is_symlink():
            raise ArtifactError(f"{journal} was not written by dyvit; remove it.")
        remove(folder / place)
    journal.unlink()
