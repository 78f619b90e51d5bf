"""Inputs that nobody would write, a module for each kind: `prepare(folder)` gives its `Target`."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable

# Gives one random input, written into a folder of its own, to the code that users reach. True where
# it is accepted, False where what is wrong with it is skipped; refusing it is a UserError.
Target = Callable[[random.Random, pathlib.Path], bool]
# Called once with a folder for what all inputs share.
Prepare = Callable[[pathlib.Path], Target]
