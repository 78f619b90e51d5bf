"""How good a model is: metrics with intervals, calibration, uncertainty, image quality."""
