"""Malformed and hostile inputs, one module per kind: `prepare(folder)` returns its `Target`."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable

# Passes one random input, written into its own folder, to the code that users reach. Returns True
# where it is accepted, False where its faults are skipped; refusing it raises UserError.
Target = Callable[[random.Random, pathlib.Path], bool]
# Called once, with a folder for files that all inputs share.
Prepare = Callable[[pathlib.Path], Target]
