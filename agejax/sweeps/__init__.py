"""Several trainings of one config: the search of settings (space, study, workers), and folds."""
