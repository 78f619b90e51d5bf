"""A run's folder: open it, claim it for training, combine runs, and trace their training data."""
