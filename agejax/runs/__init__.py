"""A run's folder: opened to read, claimed to train, joined with others, and what it has seen."""
