"""Contestants of `experiments.benchmarks.peers`: agejax, PyTorch and Keras, each in its process.

PyTorch and Keras must run as for their users, so their modules import nothing of agejax, whose
commands change how the C library treats freed memory.
"""
