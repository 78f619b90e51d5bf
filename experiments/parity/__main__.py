"""Compares every backbone with the library it comes from: make parity, or

    .venv-parity/bin/python -m experiments.parity [--only=REGEX] [--goldens]

Both get the same arbitrary weights, ours through the file that the library writes. Recorded in
experiments/results/parity.json: the largest difference of the logits over the largest logit, and of
the batch-norm statistics after one training step. --goldens also stores the references' outputs in
tests/goldens, so that `make test` needs no reference.
"""

from __future__ import annotations

import json
import pathlib
import re
import tempfile
import time
from typing import Any

from absl import app, flags

from experiments.parity import case as case_lib
from experiments.parity import cases
from experiments.parity.case import relative_error
from experiments.parity.ours import Ours

ONLY = flags.DEFINE_string("only", "", "regex on MODEL/LIBRARY of the cases to run")
OUTPUT = flags.DEFINE_string("output", "experiments/results/parity.json", "the file to update")
GOLDENS = flags.DEFINE_bool("goldens", False, "write the outputs of the cases to tests/goldens")


def compare(case: case_lib.Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row for the results, and the contents of the golden."""
    start = time.monotonic()
    reference = case.build()
    shapes = reference.shapes()
    x = case_lib.images(case.size)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / case.file
        reference.fill({k: case_lib.values(k, s) for k, s in shapes.items()}, path)
        expected = reference.logits(x)
        ours = Ours(case, str(path))
    row = {
        "library": ours.layout.library,
        "reference": type(getattr(reference, "module", reference)).__module__,
        "size": case.size,
        "parameters": ours.parameters,
        "logits": relative_error(ours.answer(x), expected),
    }
    if case.train:
        reference.logits(x, train=True)
        prepared = ours.layout.prepare(reference.statistics())
        theirs = {ours.layout.our_name(key, value): value for key, value in prepared.items()}
        moved = ours.statistics(x)
        row["statistics"] = max(relative_error(v, theirs[k]) for k, v in moved.items())
    row["seconds"] = round(time.monotonic() - start, 1)
    golden = {
        "keys": {k: list(s) for k, s in shapes.items()},
        "logits": case_lib.thinned(expected).tolist(),
    }
    return row, golden


def main(_: Any) -> None:
    output = pathlib.Path(OUTPUT.value)
    for case in cases.CASES:
        if not re.search(ONLY.value, case.name):
            continue
        row, golden = compare(case)
        # Read now, not before: several processes may run in parallel.
        rows = json.loads(output.read_text()) if output.exists() else {}
        rows[case.name] = row
        print(case.name, json.dumps(row), flush=True)
        output.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
        if GOLDENS.value and case.golden:
            case.golden_path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    app.run(main)
