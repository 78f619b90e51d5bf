"""What the loop is made of: the step, its state, the optimizer, devices, checkpoints, the start."""
