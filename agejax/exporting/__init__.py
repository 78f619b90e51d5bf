"""Exports of a run: JAX, ONNX, quantised ONNX, a web page, and the model card."""
