"""A contestant's process: sleeps until it reads a line of JSON on stdin.

    {"prepare": {"kind": "train"}}   prepares a task -> {"turn": its number}
    {"turn": 0, "steps": 20}         runs it -> {"seconds": per step}
    {"ask": "memory"}                returns a method's result; also "facts" and "cost"

Errors are returned as {"error": one line}.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
import traceback
from typing import Any

from experiments.benchmarks.contestants.case import Case, Contestant, Data, Turn

MODULES = {"agejax": "ours", "torch": "with_torch", "keras": "with_keras"}


def create(spec: dict[str, Any]) -> Contestant:
    """{"library", "case", "folder", "edge", "options"} -> the contestant."""
    if spec["library"] == "agejax":  # as its commands do; the others run as for their users
        from agejax.process import start

        start.as_command()
    module = importlib.import_module(f"{__package__}.{MODULES[spec['library']]}")
    data = Data(pathlib.Path(spec["folder"]), spec["edge"])
    contestant: Contestant = module.create(Case(**spec["case"]), data, **spec["options"])
    return contestant


def respond(contestant: Contestant, turns: list[Turn], request: dict[str, Any]) -> dict[str, Any]:
    """Answers a request; adds a prepared task to `turns`."""
    if "prepare" in request:
        options = dict(request["prepare"])
        turns.append(getattr(contestant, options.pop("kind"))(**options))
        return {"turn": len(turns) - 1}
    if "turn" in request:
        return {"seconds": turns[request["turn"]](request["steps"])}
    answer: dict[str, Any] = getattr(contestant, request["ask"])()
    return answer


def main(argv: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries' output must not mix with the answers
    contestant: Contestant | None = None
    turns: list[Turn] = []
    for line in sys.stdin:
        try:
            contestant = contestant or create(json.loads(argv[1]))
            answer = respond(contestant, turns, json.loads(line))
        except ModuleNotFoundError as error:
            answer = {"error": f"{error.name} is not installed"}
        except Exception as error:  # a contestant that fails is left out; the others continue
            traceback.print_exc()
            said = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {said[0]}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(sys.argv)
