"""The parts of the training loop: step, state, optimizer, devices, checkpoints, starting values."""
