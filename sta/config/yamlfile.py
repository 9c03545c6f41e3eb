"""Strict YAML: cards and recipes found by path or by name, and errors that name file, key and value."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from sta.errors import RecipeError, known_names

Model = TypeVar("Model", bound=BaseModel)
PACKAGE = Path(__file__).parents[1]
#: The file that is being validated, for the errors of its sections.
_validated: ContextVar[str] = ContextVar("validated", default="the recipe")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which only true and false are booleans (`no` is Norwegian) and `1e-3` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [k for k in keys if keys.count(k) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key '{twice[0]}' appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$"),
    list("-+.0123456789"),
)


class _StrictDumper(yaml.SafeDumper):
    """Quotes whatever `_StrictLoader` would not read back as a string."""


_read, _written = _StrictLoader.yaml_implicit_resolvers, yaml.SafeDumper.yaml_implicit_resolvers
_StrictDumper.yaml_implicit_resolvers = {
    first: [*_read.get(first, []), *_written.get(first, [])] for first in {*_read, *_written}
}


def dump(data: Any) -> str:
    """YAML text that `parse` reads back as it was."""
    return yaml.dump(data, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def packaged(folder: str) -> Path:
    """Return where the cards or recipes of `folder` lie: beside the package in a checkout, inside it in a wheel."""
    checkout = PACKAGE.parent / folder
    return checkout if (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE / "packaged" / folder


def names(folder: str) -> list[str]:
    """Return the names of the packaged cards or recipes of `folder`, sorted."""
    return sorted(p.stem for p in packaged(folder).glob("*.yaml"))


def find(name_or_path: str | Path, folder: str) -> Path:
    """Return the file meant by a path, or by the name of a packaged one: a name has no suffix and no folder."""
    path = Path(name_or_path)
    if path.is_file() and (path.suffix or "/" in str(name_or_path)):
        return path
    candidate = packaged(folder) / f"{name_or_path}.yaml"
    if candidate.is_file():
        return candidate
    known = known_names(path.stem, names(folder), also=", or a path to a .yaml")
    raise RecipeError(f"{folder}: no file or name '{name_or_path}'{known}")


class _Located(str):
    """A string of a file, which knows the folder that a relative path in it is relative to."""

    folder: Path


def located(data: Any, folder: Path) -> Any:
    """Return what a file of `folder` holds, so that `AbsolutePath` finds its relative paths from anywhere."""
    if isinstance(data, dict):
        return {key: located(value, folder) for key, value in data.items()}
    if isinstance(data, list):
        return [located(value, folder) for value in data]
    if isinstance(data, str):
        data = _Located(data)
        data.folder = folder
    return data


def absolute(path: Any) -> Any:
    """Return a path as absolute, from the folder of the file that gives it or else from the current one."""
    return os.path.abspath(getattr(path, "folder", Path()) / path) if isinstance(path, str) else path


def is_path(name: Any) -> bool:
    """Return whether what names a card is a path: it has a folder or a suffix."""
    return isinstance(name, str) and ("/" in name or name.endswith((".yaml", ".yml")))


#: Types of settings that name a file or folder, or a card by its name or path; a recipe holds them as absolute paths.
AbsolutePath = Annotated[str, BeforeValidator(absolute)]
CardName = Annotated[str, BeforeValidator(lambda name: absolute(name) if is_path(name) else name)]


def parse(text: str, source: str) -> Any:
    """Parse YAML text; `source` is what an error calls it."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise RecipeError(f"{source}{where}: not valid YAML: {problem}") from error
    except ValueError as error:  # such as a date with a thirteenth month
        raise RecipeError(f"{source}: not valid YAML: {error}") from error


def read(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a UTF-8 text file ({error})") from error
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: holds {type(data).__name__}, expected a mapping of keys to values")
    return data


def validate(model: type[Model], data: Any, source: str) -> Model:
    """Build `model` from `data`; the first thing wrong becomes one sentence naming file, key, value and choice."""
    token = _validated.set(source)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_sentence(error, model, source)) from None
    finally:
        _validated.reset(token)


def validated() -> str:
    """Return the name of the file that is being validated."""
    return _validated.get()


def validate_section(model: type[Model], data: Any, key: str) -> Model:
    """Build the `model` of one section within `validate`; an error names the section's place in the whole file."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_sentence(error, model, validated(), key)) from None


def load(path: str | Path, model: type[Model]) -> Model:
    """Read and validate one card."""
    return validate(model, read(path), str(path))


def _sentence(error: ValidationError, model: type[BaseModel], source: str, section: str = "") -> str:
    first, count = error.errors()[0], error.error_count()
    location = [section] * bool(section) + [str(part) for part in first["loc"] if part != "[key]"]
    key = ".".join(location)
    more = f" (and {count - 1} more)" if count > 1 else ""
    if first["type"] == "extra_forbidden":
        known = known_names(location[-1], _known_keys(model, first["loc"][:-1]), "known here")
        return f"{source}: unknown key '{key}'{known}{more}"
    if first["type"] == "missing":
        return f"{source}: key '{key}' is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = first["input"]
    shown = f" is {value!r}" if not isinstance(value, dict | BaseModel) else ""
    return f"{source}: key '{key}'{shown}: {message}{more}" if key else f"{source}: {message}{more}"


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model found by following `location` through nested models, unions and containers."""
    current: list[Any] = [model]
    for part in location:
        following: list[Any] = []
        for candidate in current:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and part in candidate.model_fields:
                following += _models_in(candidate.model_fields[str(part)].annotation)
        current = following or current
    return sorted({name for m in current for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
