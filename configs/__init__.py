"""The configs that come with agejax: `agejax train --config=quickstart` finds them by name.

`agejax/configs` is a link to this folder, so that the package installs them.
"""
