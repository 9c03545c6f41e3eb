"""Strict YAML: what is read as what, what is found where, and errors of one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from sta.config import yamlfile
from sta.errors import RecipeError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    steps: int = Field(gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    inner: Inner
    several: dict[str, Inner] = {}


def write(folder: Path, text: str) -> Path:
    path = folder / "card.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("off", "off"), ("on", "on"), ("n", "n"), ("True", "True"),
        ("true", True), ("false", False), ("null", None), ("~", None),
        ("1e-3", 1e-3), ("-2E4", -2e4), ("1.5", 1.5), (".5", 0.5), ("1.e2", 100.0), ("12", 12), ("-3", -3),
        ("1e", "1e"), ("e3", "e3"), ("1e-3x", "1e-3x"), (".inf", float("inf")),
        ("[no, 1e-4, true]", ["no", 1e-4, True]), ("'1e-3'", "1e-3"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    read = yamlfile.parse(text, "here")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b: {a: 1, c: 2, a: 1}", "x:\n  - {no: 1, no: 2}"])
def test_a_key_that_appears_twice(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError, match=r"card\.yaml, line \d: .*key '(a|no)' appears twice"):
        yamlfile.read(path)


def test_the_same_key_in_two_mappings_is_fine() -> None:
    assert yamlfile.parse("a: {x: 1}\nb: {x: 2}", "here") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "line 1: not valid YAML"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("- 1\n- 2", "holds list, expected a mapping"),
        ("", "holds NoneType, expected a mapping"),
        ("a: \0", "not valid YAML"),
        ("a: 2024-13-45", "card.yaml"),
    ],
)
def test_what_is_no_mapping_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        yamlfile.read(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="absent.yaml: cannot be read"):
        yamlfile.read(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        yamlfile.read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(RecipeError, match="latin.yaml: cannot be read as a UTF-8"):
        yamlfile.read(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"name": "x", "inner": {"steps": 1}, "nam": 2},
            "unknown key 'nam'; did you mean 'name'? (known here: inner, name, ",
        ),
        (
            {"name": "x", "inner": {"step": 1, "steps": 2}},
            "unknown key 'inner.step'; did you mean 'steps'? (known here: steps)",
        ),
        (
            {"name": "x", "inner": {"steps": 2}, "several": {"en": {"steps": 1, "z": 1}}},
            "'several.en.z' (known here: steps)",
        ),
        ({"name": "x", "inner": {}}, "key 'inner.steps' is missing"),
        ({"name": "x", "inner": {"steps": 0}}, "key 'inner.steps' is 0: input should be greater than 0"),
        ({"name": 3, "inner": {"steps": 1}}, "key 'name' is 3: input should be a valid string"),
        ({"name": "a\nb", "inner": {"steps": "a\nb"}}, r"key 'inner.steps' is 'a\nb': input should be a valid integer"),
        ({"name": 3, "inner": {"steps": 0}}, "(and 1 more)"),
    ],
)
def test_the_first_thing_wrong_is_one_sentence(data: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        yamlfile.validate(Outer, data, "file.yaml")
    assert said in str(error.value)
    assert str(error.value).startswith("file.yaml: ")
    assert "\n" not in str(error.value)


def test_load_reads_and_validates(tmp_path: Path) -> None:
    assert yamlfile.load(write(tmp_path, "name: no\ninner: {steps: 2}"), Outer) == Outer(
        name="no", inner=Inner(steps=2)
    )


def test_find_takes_a_path_first_then_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = yamlfile.find("en", "languages")
    assert packaged == yamlfile.packaged("languages") / "en.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en").write_text("code: xx")
    assert yamlfile.find("./en", "languages") == Path("en")
    assert yamlfile.find(packaged, "languages") == packaged


def test_find_names_the_close_and_the_known() -> None:
    with pytest.raises(
        RecipeError, match=r"recipes: no file or name 'garden-mimi'; did you mean 'garden-mini'\? \(known: "
    ):
        yamlfile.find("garden-mimi", "recipes")


def test_a_wheel_reads_its_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "sta"
    (package / "packaged" / "languages").mkdir(parents=True)
    (package / "packaged" / "languages" / "xx.yaml").write_text("code: xx")
    monkeypatch.setattr(yamlfile, "PACKAGE", package)
    assert yamlfile.names("languages") == ["xx"]


def test_a_file_does_not_shadow_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("en").write_text("code: xx\n")
    assert yamlfile.find("en", "languages").name == "en.yaml"
    assert yamlfile.find(f"{tmp_path}/en", "languages") == tmp_path / "en"
