"""The version of agejax, below all that write it into their files."""

__version__ = "0.1.0"
