"""What in an image a prediction rests on: methods, what they explain, and figures."""
