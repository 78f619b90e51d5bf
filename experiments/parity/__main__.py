"""Every backbone against the library it comes from: python -m experiments.parity [--only=REGEX].

Both get the same arbitrary weights, ours through the file that the library writes. Recorded in
experiments/results/parity.json: the largest difference of the logits over the largest logit, and of
the batch-norm statistics after one training step. --goldens also keeps what the references answered
in tests/goldens, so that `make test` needs no reference.
"""

from __future__ import annotations

import json
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx

from agejax.models import pretrained, registry
from experiments.parity import case as case_lib
from experiments.parity import cases

ONLY = flags.DEFINE_string("only", "", "regex on MODEL/LIBRARY of the cases to run")
OUTPUT = flags.DEFINE_string("output", "experiments/results/parity.json", "the file to update")
GOLDENS = flags.DEFINE_bool("goldens", False, "write the answers of the cases in tests/goldens")


def compare(case: case_lib.Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row for the results, and what a golden keeps."""
    start = time.monotonic()
    reference = case.build()
    shapes = reference.shapes()
    x = case_lib.images(case.size)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / case.file
        reference.fill({k: case_lib.values(k, s) for k, s in shapes.items()}, path)
        expected = reference.logits(x)
        layout = pretrained.identify(str(path), case.model)[1]
        model = nnx.eval_shape(
            lambda: registry.create(
                case.model,
                image_size=case.size,
                num_classes=case.num_classes,
                rngs=nnx.Rngs(0),
                **{**layout.options, **case.options},
            )
        )
        arrays = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(nnx.state(model))}
        ours = {name: tuple(v.get_value().shape) for name, v in arrays.items()}
        loaded = pretrained.load(str(path), case.model, ours, prefix="")
    for name, variable in arrays.items():
        variable.set_value(jax.numpy.asarray(loaded.arrays[name]))
    nnx.update(model, nnx.from_flat_state(
        [(p, arrays["/".join(map(str, p))]) for p, _ in nnx.to_flat_state(nnx.state(model))]
    ))  # fmt: skip
    graphdef, state = nnx.split(model)
    actual = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    row = {
        "library": layout.library,
        "reference": type(getattr(reference, "module", reference)).__module__,
        "size": case.size,
        "parameters": sum(v.size for v in loaded.arrays.values()),
        "logits": _error(np.asarray(actual), expected),
    }
    if case.train:

        def step(state: Any, x: Any) -> Any:
            model = nnx.merge(graphdef, state)
            model(x, train=True)
            return nnx.state(model, nnx.BatchStat)

        moved = jax.jit(step)(state, x)
        moved = {"/".join(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(moved)}
        reference.logits(x, train=True)
        theirs = {
            layout.our_name(k, v): v for k, v in layout.prepare(reference.statistics()).items()
        }
        row["statistics"] = max(_error(np.asarray(v), theirs[k]) for k, v in moved.items())
    row["seconds"] = round(time.monotonic() - start, 1)
    golden = {
        "keys": {k: list(s) for k, s in shapes.items()},
        "logits": expected[:, :: max(1, expected.shape[1] // 16)][:, :16].tolist(),
    }
    return row, golden


def _error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def main(_: Any) -> None:
    output = pathlib.Path(OUTPUT.value)
    rows = json.loads(output.read_text()) if output.exists() else {}
    for case in cases.CASES:
        if not re.search(ONLY.value, case.name):
            continue
        row, golden = compare(case)
        rows[case.name] = row
        print(case.name, json.dumps(row), flush=True)
        output.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
        if GOLDENS.value and case.golden:
            path = pathlib.Path("tests/goldens") / f"{case.name.replace('/', '_')}.json"
            path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    app.run(main)
