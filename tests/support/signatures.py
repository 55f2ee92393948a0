"""The signature of every public name, one a line: names of arguments and their defaults."""

import dataclasses
import importlib
import inspect

import jaxdrop

FRAMEWORKS = ("equinox", "haiku", "linen", "nnx")
SPACES = ("checks", "match", "rescale", "uncertainty")
# Tuples whose first line is that of their fields, and classes that only the package makes.
METHODS = {
    "Mask": ("pack", "unpack"),
    "Moments": ("merge",),
    "Rule": ("at",),
    "SiteRow": ("within",),
    "SiteTable": ("where",),
}
OF_FLAX = ("parent", "name")  # fields that every module of linen has


def public_names():
    """All that users can call, by the name that they write behind `jaxdrop.`"""
    spaces = {"": jaxdrop} | {f"{name}.": getattr(jaxdrop, name) for name in SPACES}
    for name in FRAMEWORKS:
        space = f"frameworks.{name}"
        spaces[f"{space}."] = importlib.import_module(f"jaxdrop.{space}")
    found = {
        prefix + name: getattr(space, name)
        for prefix, space in spaces.items()
        for name in dir(space)
    }
    return {
        name: value
        for name, value in found.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }


def signatures():
    """One line for each."""
    lines = []
    for name, value in public_names().items():
        lines.append(_line(name, value))
        if inspect.isclass(value):
            if name.startswith("frameworks."):
                lines.append(_line(f"{name}.__call__", value.__call__, bound=True))
            lines += [
                _line(f"{name}.{method}", getattr(value, method), bound=method != "pack")
                for method in METHODS.get(name, ())
            ]
    return lines


def _line(name, value, *, bound=False):
    of_class = inspect.isclass(value) and not dataclasses.is_dataclass(value)
    made = value.__init__ if of_class and not issubclass(value, tuple) else value
    arguments = list(inspect.signature(made).parameters.values())
    if bound or made is not value:
        arguments = arguments[1:]  # without `self`
    if name.startswith("frameworks.linen.") and inspect.isclass(value):
        arguments = [each for each in arguments if each.name not in OF_FLAX]
    shown = [each.replace(annotation=each.empty, default=_shown(each)) for each in arguments]
    return name + str(inspect.Signature(shown))


class _Text(str):
    __repr__ = str.__str__


def _shown(parameter):
    """The default as a reader would write it."""
    default = parameter.default
    if default is parameter.empty:
        return default
    if isinstance(default, tuple):
        inside = ", ".join(map(_name_of, default))
        return _Text(f"({inside}{',' * (len(default) == 1)})")
    return _Text(_name_of(default))


def _name_of(value):
    if inspect.isclass(value):
        return f"{value.__module__.split('.')[0]}.{value.__qualname__}"
    return value.__name__ if inspect.isfunction(value) else repr(value)
