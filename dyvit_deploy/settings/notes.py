"""Notes for the user: one complete sentence per record of one logger, which the command line prints."""
from __future__ import annotations

import logging

_log = logging.getLogger(__name__.partition(".")[0] + ".notes")


def tell(sentence: str) -> None:
    """Records neutral information."""
    _log.info(sentence)


def assume(sentence: str) -> None:
    """Records an assumption that the result depends on."""
    _log.warning(sentence)
