"""Predictions of image files: find their faces, predict a record for each, write the records."""
