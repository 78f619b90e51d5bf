"""Faces in photos: finding them, and framing them as a data set does."""
