"""Who competes in `experiments.benchmarks.peers`: agejax, PyTorch and Keras, each in its process.

PyTorch and Keras must be here as their users have them, so their modules import nothing of agejax,
which changes how the C library treats freed memory.
"""
