"""What the user must know of a file that was read: one sentence each, through `logging`.

The command line shows each sentence once. In Python, assumptions are warnings of the logger LOGGER.
"""
from __future__ import annotations

import logging

LOGGER = __name__
_log = logging.getLogger(LOGGER)


def tell(sentence: str) -> None:
    """Reports what was done, such as a prefix that was removed."""
    _log.info("%s", sentence)


def assume(sentence: str) -> None:
    """Reports what was assumed, because no file says it."""
    _log.warning("%s", sentence)
