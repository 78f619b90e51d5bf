"""What to search for each system, for agejax.sweep."""
