"""Faces in photos: finding them, and framing them as in a data set."""
