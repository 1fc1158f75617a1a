"""The report: one HTML page about a set of artifacts."""
