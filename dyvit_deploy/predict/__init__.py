"""Many images through any artifact, into rows: on this machine or on many."""
