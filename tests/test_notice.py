"""NOTICE names whose material the weights that ship are made of, by the recipe that they were made by."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from sta.config.cards import load_teacher
from sta.config.recipe import load_recipe
from sta.inference.release import PRETRAINED
from tests.markdown import ROOT

NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")
PERMISSIVE = {"apache-2.0", "mit", "cc-by-4.0", "unicode-3.0"}
RECIPE: Any = load_recipe("picturebook")


def table(number: int) -> list[dict[str, str]]:
    """The rows of the table in a section, by the heads of its columns."""
    section = NOTICE.split(f"\n{number}. ")[1].split(f"\n{number + 1}. ")[0]
    heads, *rows = [[cell.strip("` ") for cell in line.split(" | ")] for line in section.splitlines() if " | " in line]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def test_it_names_maker_and_licence_of_each_style_that_is_trained_on() -> None:
    styles = table(2)
    assert {row["Style"] for row in styles} == set(RECIPE.corpus.styles)
    for row in styles:
        assert re.search(r"\w+, .*https://", row["By"]), row
        assert row["Licence"].lower() in PERMISSIVE, row
    known = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", (ROOT / "docs" / "picturebook.md").read_text("utf-8"), re.M)
    said = {style: licence for names, licence, use in known for style in re.findall(r"`([\w-]+)`", names)}
    assert {row["Style"]: row["Licence"].replace("CC-BY-", "CC BY ") for row in styles}.items() <= said.items()


def test_what_only_tests_show_is_said_to_be_inside_nowhere() -> None:
    assert not {row["Style"] for row in table(2)} & set(RECIPE.corpus.test_styles)
    assert "served tests alone: nothing was trained on them" in NOTICE


def test_it_says_what_the_card_of_the_release_says() -> None:
    """Which the packages' own files say of their makers."""
    card = (PRETRAINED / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"pictures ([\w-]+) \((.+?) by ([^,]+), (https://\S+)\): ([\w.-]+)", card)
    assert {style for style, *_ in said} == set(RECIPE.corpus.styles)
    rows = {row["Style"]: row for row in table(2)}
    for style, title, maker, address, licence in said:
        row = rows[style]
        assert title in row["Title"]
        assert maker in row["By"]
        assert address in row["By"]
        assert row["Licence"].lower() == licence


def test_it_names_the_published_networks() -> None:
    encoder, teacher = RECIPE.encoder, load_teacher(RECIPE.teacher)
    (inside,) = table(1)
    assert f"`{encoder.backbone}`" in inside["Part"]
    assert inside["Licence"].lower() == encoder.backbone_licence
    learnt = {row["Part"]: row["Licence"] for row in table(4)}
    for part, licence in teacher.licences.items():
        assert [known for name, known in learnt.items() if part.rpartition(" ")[2] in name] == [licence]
    assert len(learnt) == len(teacher.licences) == 2


@pytest.mark.parametrize("holder", ["2022 OpenAI", "Microsoft Corporation", "2017-2019 Miles Johnson"])
def test_licences_that_ask_for_their_text_are_there(holder: str) -> None:
    after = NOTICE.partition(f"Copyright (c) {holder}\n")[2]
    assert "Permission is hereby granted, free of charge, to any person obtaining a copy\nof this software" in after
    assert "Copyright © 2004-2026 Unicode, Inc." in NOTICE


def test_it_goes_into_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license-files"] == ["LICENSE", "NOTICE"]
