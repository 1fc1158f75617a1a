"""The formats on disk: the facts that artifacts record, and how files and reports are written."""
