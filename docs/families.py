"""The API pages: which public names stand on which page, and the text of each page.

The pages are made from these families when the site is built. `tests/test_site.py` checks
that each public name is in exactly one family.
"""

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jaxdrop
from jaxdrop.base import types
from jaxdrop.core import apply

FRAMEWORKS = ("linen", "nnx", "equinox", "haiku")
NAMESPACES = ("checks", "match", "rescale", "uncertainty")


class Family(NamedTuple):
    """One API page: its title, what it is about, and its names without `jaxdrop.`."""

    title: str
    about: str
    names: str


FAMILIES = {
    "elements": Family(
        "Elements",
        "Methods that treat each element on its own.",
        "dropout gaussian_dropout alpha_dropout fixed_count_dropout",
    ),
    "masks": Family(
        "Masks and types",
        "A mask is drawn once and applied as often as needed.",
        "draw_mask draw_fixed_count_mask apply_mask Mask Part Key Rate Drop",
    ),
    "regions": Family(
        "Feature maps and branches",
        "Methods that drop channels, regions, residual branches and whole layers.",
        "spatial_dropout drop_block drop_block_gamma drop_path drop_path_rates shake_drop cutout"
        " random_erasing layer_drop",
    ),
    "tokens": Family(
        "Tokens, spans and conditions",
        "Methods that drop tokens or spans of a sequence, or the condition of a model.",
        "drop_spans drop_tokens restore_tokens replace_tokens drop_condition",
    ),
    "weights": Family(
        "Weights",
        "Methods that drop weights, in pytrees and in tables of embeddings.",
        "drop_connect embedding_dropout mixout",
    ),
    "recurrent": Family(
        "Recurrent networks",
        "Methods for states and for sequences over time.",
        "locked_dropout zoneout",
    ),
    "graphs": Family(
        "Graphs", "Methods for edges and nodes of a graph.", "drop_edges drop_nodes"
    ),
    "attention": Family(
        "Attention",
        "Attention with dropped weights, and methods that drop heads or keys.",
        "dot_product_attention drop_heads drop_key",
    ),
    "learned": Family(
        "Learned rates",
        "Methods whose rate is trained, and the terms that they add to the loss.",
        "concrete_dropout concrete_dropout_penalty variational_dropout variational_dropout_kl"
        " hard_concrete hard_concrete_penalty hard_concrete_gate",
    ),
    "planting": Family(
        "Plant",
        "Dropout in functions that were written without it.",
        "plant site sites site_key Rule SiteTable SiteRow",
    ),
    "match": Family("Matchers", "", "match.*"),
    "combinators": Family(
        "Combinators and schedules",
        "Functions that take a drop and return a drop, and schedules for rates.",
        "per_sample per_leaf chain scheduled early_dropout_schedule late_dropout_schedule"
        " curriculum_dropout_schedule",
    ),
    "samples": Family(
        "Several masks",
        "Functions that run a function under several keys or masks.",
        "monte_carlo monte_carlo_moments Moments two_views complementary_views symmetric_kl"
        " multi_sample draw_masksembles masksembles",
    ),
    "uncertainty": Family("Uncertainty", "", "uncertainty.*"),
    "rescale": Family("Rescale rules", "", "rescale.*"),
    "checks": Family("Checks", "", "checks.*"),
    "frameworks": Family("Layers for frameworks", "", "frameworks.*"),
}


def public_names() -> dict[str, Any]:
    """Each public object by its name without `jaxdrop.`."""
    return {
        prefix + name: getattr(space, name)
        for prefix, space in spaces().items()
        for name in space.__all__
        if not inspect.ismodule(getattr(space, name))
    }


def spaces() -> dict[str, ModuleType]:
    """Each module with public names, by what stands before them."""
    found = {"": jaxdrop} | {
        f"{name}.": getattr(jaxdrop, name) for name in NAMESPACES
    }
    for name in FRAMEWORKS:
        found[f"frameworks.{name}."] = importlib.import_module(
            f"jaxdrop.frameworks.{name}"
        )
    return found


def names_of(family: Family) -> list[str]:
    """The names of a family; `match.*` stands for all names of a namespace."""
    names = []
    for name in family.names.split():
        if name.endswith(".*"):
            names += [one for one in public_names() if one.startswith(name[:-1])]
        else:
            names.append(name)
    return names


def page(family: Family) -> str:
    """The page of a family, as reStructuredText."""
    return "\n".join(_lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield from (family.title, "=" * len(family.title), "", family.about, "")
    names = names_of(family)
    for namespace in dict.fromkeys(name.rpartition(".")[0] for name in names):
        if namespace:
            yield from _about(namespace)
        for name in names:
            if name.rpartition(".")[0] == namespace:
                yield from _entry(name)


def _about(namespace: str) -> Iterator[str]:
    """The docstring of a namespace; each framework has a heading of its own."""
    if namespace.startswith("frameworks."):
        title = f"jaxdrop.{namespace}"
        yield from (title, "-" * len(title), "")
    yield from (f".. automodule:: jaxdrop.{namespace}", "   :no-members:", "")
    yield from (".. py:currentmodule:: None", "")  # names below are written in full


def _entry(name: str) -> Iterator[str]:
    value = public_names()[name]
    if inspect.isclass(value):
        yield from (f".. autoclass:: jaxdrop.{name}", "   :members:", "")
    elif inspect.isfunction(value):
        yield from (f".. autofunction:: jaxdrop.{name}", "")
    else:
        module = apply if name == "rescale.Rescale" else types
        yield from (
            f".. py:data:: jaxdrop.{name}",
            "",
            f"   {_comment(module, name)}",
            "",
        )


def _comment(module: Any, name: str) -> str:
    """The string below the definition of a type."""
    source = inspect.getsource(module)
    definition = source.split(f"\n{name.rpartition('.')[2]}: TypeAlias", 1)[1]
    return definition.split('"""')[1].replace("`", "``")
