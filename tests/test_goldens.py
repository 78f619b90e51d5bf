"""Backbones against stored outputs of the original libraries: python -m experiments.parity.

A golden holds the library's keys, shapes and logits; weights depend only on key and shape.
"""

import json

import numpy as np
import pytest
import safetensors.numpy

from experiments.parity import case as case_lib
from experiments.parity import cases
from experiments.parity.ours import Ours

GOLDEN = [case for case in cases.CASES if case.golden]


def test_every_golden_has_its_case():
    folder = GOLDEN[0].golden_path.parent
    assert {case.golden_path for case in GOLDEN} == set(folder.glob("*.json"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_a_backbone_answers_as_its_library_did(case, tmp_path):
    golden = json.loads(case.golden_path.read_text())
    weights = {k: case_lib.values(k, tuple(shape)) for k, shape in golden["keys"].items()}
    safetensors.numpy.save_file(weights, tmp_path / "weights")  # formats have their own tests
    actual = Ours(case, str(tmp_path / "weights")).answer(case_lib.images(case.size))
    expected = np.array(golden["logits"], np.float32)
    assert case_lib.relative_error(case_lib.thinned(actual), expected) < 1e-5
