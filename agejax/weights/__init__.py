"""The models that come with agejax, one folder each; `agejax.runs.box` finds them.

`python -m agejax.release --workdir=RUN --output=agejax/weights/NAME` makes one.
"""
