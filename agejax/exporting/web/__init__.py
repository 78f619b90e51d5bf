"""Exports a run as one HTML page that opens offline and predicts in the browser."""
