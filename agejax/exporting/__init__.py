"""A run as a file for others: JAX, ONNX, quantised, a web page, and the card that goes with it."""
