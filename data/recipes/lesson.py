"""What a lesson defines for its recorded runs: its cells that are tagged `sweep`, executed for a model."""

import re
from functools import cache

import nbformat

from helpers import env


def cells(name):
    """The cells of a notebook, by its name without the ending."""
    return nbformat.read(env.REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4).cells


@cache
def space(name, model):
    """The names that the `sweep` cells of a notebook define, with the model's name in the setup cell."""
    source = "\n\n".join(cell.source for cell in cells(name) if "sweep" in cell.metadata.get("tags", []))
    source, found = re.subn(r'(?m)^MODEL = "[^"]*"', f'MODEL = "{model}"', source)
    assert found == 1, f"{name}: the setup cell has no line MODEL = ..."
    names = {}
    exec(source, names)
    return names
