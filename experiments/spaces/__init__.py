"""Search spaces for agejax.sweep, for each system."""
