"""The configs that agejax comes with: `agejax train --config=quickstart` finds them by their names.

`agejax/configs` is a link to this folder, so that they are installed with the package.
"""
