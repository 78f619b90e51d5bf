"""A run as one page that opens offline and predicts in the browser."""
