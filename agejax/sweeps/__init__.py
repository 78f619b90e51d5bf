"""Hyperparameter search: the space, the study, its workers, and the search."""
