"""Variants found by name: a module of a package, or any class that can be imported, and no registry of them."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from typing import Any, TypeVar

from sta.config import yamlfile
from sta.errors import RecipeError, first_line, known_names

Variant = TypeVar("Variant")


def find_variant(package: str, name: str, base: type[Variant], key: str) -> type[Variant]:
    """Return the class that a recipe or card names.

    Args:
        package: where the built-in variants lie, one module each, such as `sta.models.decoders`.
        name: a built-in one (`vq-diffusion` is `vq_diffusion.py` of the package), or `module:Class`, which is imported.
        base: the interface that the class must implement.
        key: of the recipe or card, as an error names it.

    Raises:
        RecipeError: there is no such module or class, or it does not implement the interface.
    """
    if ":" in name:
        return _imported(name, base, key)
    module_name = name.replace("-", "_")
    known_here = module_name in modules_of(package) and "_" not in name
    classes = _classes(f"{package}.{module_name}", base) if known_here else []
    if len(classes) != 1:
        known = known_names(name, known_variants(package, base), also=", or module:Class of your own")
        raise RecipeError(f"key '{key}' is '{name}'{known}")
    return classes[0]


def interface(package: str, name: str) -> Any:
    """Return the abstract class of a package of variants, which lies in its `base`; imported when it is asked for."""
    return getattr(import_module(f"{package}.base"), name)


def read_settings(package: str, base: type[Variant], given: Any, key: str, name_key: str, default: str = "") -> Any:
    """Validate a recipe's section by the `Settings` of the variant that it names; what is no mapping is returned as is.

    Args:
        given: the section, whose `name_key` names the variant (`default` where it does not).
        key: of the section in the recipe, such as `decoder`.
    """
    if not isinstance(given, dict):
        return given
    if not (name := given.get(name_key, default)):
        raise RecipeError(f"{yamlfile.validated()}: key '{key}.{name_key}' is missing")
    try:
        variant: Any = find_variant(package, str(name), base, f"{key}.{name_key}")
    except RecipeError as error:
        raise RecipeError(f"{yamlfile.validated()}: {error}") from error
    return yamlfile.validate_section(variant.Settings, given, key)


def known_variants(package: str, base: type) -> list[str]:
    """Return the names of the built-in variants of an interface, sorted."""
    return sorted(m.replace("_", "-") for m in modules_of(package) if _classes(f"{package}.{m}", base))


def modules_of(package: str) -> list[str]:
    """Return the names of a package's modules, private ones left out, without importing them."""
    return [m.name for m in pkgutil.iter_modules(import_module(package).__path__) if not m.name.startswith("_")]


def _classes(module_name: str, base: type[Variant]) -> list[type[Variant]]:
    """Return the classes that a module or package itself defines of an interface, abstract ones left out."""
    module = import_module(module_name)
    return [
        c for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)
        and f"{c.__module__}.".startswith(f"{module_name}.")
    ]  # fmt: skip


def _imported(name: str, base: type[Variant], key: str) -> type[Variant]:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"key '{key}': '{name}' cannot be imported ({first_line(error)})") from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise RecipeError(f"key '{key}': '{name}' is no {base.__name__} of {base.__module__}, whose interface it needs")
    return found
