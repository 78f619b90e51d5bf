"""What in an image a prediction rests on: the methods, and what they explain."""
