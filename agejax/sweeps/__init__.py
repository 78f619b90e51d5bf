"""Searches for settings: the space, the study, its workers, and the search."""
