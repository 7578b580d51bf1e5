"""Look-ups in a config with its defaults."""

from collections.abc import Iterable, Mapping
from typing import Any


def encoders_of(task: Mapping[str, Any]) -> list[str]:
    """The encoders that a task lists: `encoder` is one, a list of them, or null."""
    names = task["encoder"]
    return names if isinstance(names, list) else [names] if names is not None else []


def unit(budget: Mapping[str, Any]) -> str:
    """What a lineage's budget counts: epochs or examples."""
    return "examples" if "examples" in budget else "epochs"


def spending(recipes: Mapping[str, Any], names: Iterable[str], amount: int, unit: str) -> list[tuple[str, int]]:
    """(recipe, rung) of those of `names` that spend this amount: so many epochs, or epochs x examples."""
    if unit == "epochs":
        return [(name, amount) for name in names]
    sizes = [(name, rung, rung * recipes[name]["examples"]) for name in names for rung in sized(recipes[name])]
    return [(name, rung) for name, rung, size in sizes if size == amount]


def sized(recipe: dict[str, Any]) -> list[int]:
    """The rungs of a recipe that says its number of examples; none if it does not."""
    return recipe["epochs"] if recipe.get("examples") is not None else []
