"""Predictions of image files: their faces, a record for each, and how records are written."""
