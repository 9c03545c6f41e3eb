"""The documentation stays true: links resolve, sizes hold, the tree is that of the folders, and the blocks run.

A block runs, in the order of its page, unless an HTML comment above it says why not; its syntax is checked in any case.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from sta import load_recipe
from tests.markdown import ROOT, Block, anchors, blocks, commands, links, prose

README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", CHANGELOG, *DOCS]
MARKS = {"needs a GPU", "needs a network", "needs your files", "takes long", "run by .ci/run"}
SHELL, PYTHON, RECIPES = ([b for page in PAGES for b in blocks(page, name)] for name in ("bash", "python", "yaml"))
RUN = [page for page in PAGES if any(not b.mark for b in blocks(page, "bash", "python"))]
OTHERS = {"pip", "ruff", "mypy", "codespell", "pytest"}  # programs that are not ours
README_MOST, PAGE_MOST = 12_000, 10_000  # bytes
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line as `sta` does; files and overrides may also stand after an option."""
    from sta.cli.main import build_parser

    options, rest = build_parser().parse_known_args(arguments)
    several = vars(options).get("files", vars(options).get("overrides"))
    assert not rest or (several is not None and not any(r.startswith("-") for r in rest)), f"unknown: {rest}"
    if several is not None:
        several += rest
    return options


def our_arguments(command: list[str]) -> list[str] | None:
    """The arguments of `sta` in a command, through a launcher or not; None for another program."""
    program, *rest = command
    if program == "sta":
        return rest
    if program == "accelerate":
        assert (ROOT / rest[rest.index("--config_file") + 1]).is_file(), "the launch file is not there"
        module = rest.index("-m") + 1
        assert rest[module] in ("sta", "sta.train")
        return rest[module + 1 :] if rest[module] == "sta" else ["train", *rest[module + 1 :]]
    if program == "sbatch":
        script = next(word for word in rest if word.endswith(".sbatch"))
        assert (ROOT / script).is_file()
        return ["train", *rest[rest.index(script) + 1 :]]
    assert program in OTHERS, f"{program}: not a program that the documentation uses"
    return None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, with the recipes of the checkout where a command looks for them."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page: Path, folder: Path) -> None:
    """Write the files that blocks of a page name in their first line."""
    for block in blocks(page, "yaml"):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def test_there_is_something_to_check() -> None:
    assert len(DOCS) >= 10
    assert all(len(found) >= 3 for found in (SHELL, PYTHON, RECIPES, RUN))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_resolve(page: Path) -> None:
    for target in links(page):
        if re.match(r"^(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)}: {target}"
        assert file.is_relative_to(ROOT), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(file), f"{name_of(page)}: {target} is none of {sorted(anchors(file))}"


def test_the_index_lists_every_page() -> None:
    assert {target for target in links(ROOT / "docs" / "index.md") if "/" not in target} == {
        page.name for page in DOCS if page.name != "index.md"
    }


@pytest.mark.parametrize("page", [README, *DOCS], ids=name_of)
def test_a_page_is_short(page: Path) -> None:
    assert page.stat().st_size <= (README_MOST if page == README else PAGE_MOST)


def tree() -> Iterator[str]:
    """What the README's tree names: folders with a slash at the end, and modules."""
    block = next(b for b in blocks(README, "") if "\nsta/\n" in b.text)
    parents: list[str] = []
    for line in block.text.splitlines():
        indent, names = re.match(r"^( *)((?:[\w.]+(?:/|\.py) ?)+)", line).groups()  # type: ignore[union-attr]
        del parents[len(indent) // 2 :]
        yield from ("".join(parents) + name for name in names.split())
        parents.append(names.split()[0])


def test_the_tree_names_what_is_there() -> None:
    named = set(tree())
    assert not [name for name in named if not (ROOT / name).exists()]
    folders = {p.parent for p in (ROOT / "sta").rglob("*.py")} | set((ROOT / "sta").glob("*/"))
    shown = {f"{name_of(p)}/" for p in folders if len(p.relative_to(ROOT).parts) <= 3 and p.name != "__pycache__"}
    modules = {name_of(p) for p in (ROOT / "sta").glob("*.py") if not p.stem.startswith("__")}
    assert shown | modules <= named


@pytest.mark.parametrize("page", [p for p in PAGES if p != CHANGELOG], ids=name_of)
def test_paths_in_the_text_are_there(page: Path) -> None:
    named = re.findall(r"`((?:sta|tests|docs|recipes|languages|teachers|notebooks)/[\w./-]*)`", prose(page))
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("block", [*SHELL, *PYTHON], ids=str)
def test_a_block_that_does_not_run_says_why(block: Block) -> None:
    assert not block.mark or block.mark in MARKS


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_parse(block: Block, here: Path) -> None:
    write_files(block.page, here)
    for command in commands(block.text):
        arguments = our_arguments(command)
        options = None if arguments is None else parse(arguments)
        if options is not None and "recipe" in options:
            load_recipe(options.recipe, options.overrides)


def test_every_command_is_documented() -> None:
    from sta.cli.main import build_parser

    page = prose(ROOT / "docs" / "commands.md")
    missing = [name for name in leaves(build_parser()) if f"`{name}" not in page]
    assert not missing


def leaves(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The commands below a parser, such as `sta bench speed`."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in below:
        for sub in action.choices.values():
            yield from leaves(sub)
    if not below:
        yield parser.prog


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_yaml_loads(block: Block, here: Path) -> None:
    from sta.config.cards import load_language

    write_files(block.page, here)
    data: dict[str, Any] = yaml.safe_load(block.text)
    if data.keys() <= {"code", "garden"} or "code" in data:
        english = yaml.safe_load((ROOT / "languages" / "en.yaml").read_text(encoding="utf-8"))
        path = here / f"{data.get('code', 'en')}.yaml"
        path.write_text(block.text if "code" in data else yaml.safe_dump(english | data), encoding="utf-8")
        load_language(str(path))
        return
    path = here / (block.file or "part.yaml")
    path.write_text(block.text if "extends" in data else f"extends: garden-mini\n{block.text}", encoding="utf-8")
    load_recipe(path)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, here: Path) -> None:
    write_files(page, here)
    (here / "bin").mkdir()
    sta = here / "bin" / "sta"
    sta.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sta "$@"\n')
    sta.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "STA_WEIGHTS"}
    environment |= {"PATH": f"{sta.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for block in blocks(page, "bash", "python"):
        program = ["bash", "-euc"] if block.language == "bash" else [sys.executable, "-c"]
        if not block.mark:
            done = subprocess.run(
                [*program, block.text], env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{block}:\n{done.stdout}\n{done.stderr}"


def test_the_results_in_the_readme_are_those_of_the_evaluation() -> None:
    rows = [line for line in prose(README).splitlines() if line.startswith("|") and "–" in line]
    assert len(rows) >= 8
    assert set(rows) <= set(prose(ROOT / "docs" / "evaluation.md").splitlines())


def test_the_citation_is_of_this_version() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= said.keys(), "what CFF 1.2.0 requires"
    assert said["cff-version"] == "1.2.0"
    assert said["authors"] == [{"name": "Speak the Art contributors"}]
    assert (said["license"], said["version"]) == ("Apache-2.0", VERSION)
    assert isinstance(said["date-released"], date)
    assert f"## [{VERSION}] - {said['date-released']}" in CHANGELOG.read_text(encoding="utf-8")


def test_the_changelog_keeps_its_form() -> None:
    """Versions with their dates, newest first, below what is not released; sections of Keep a Changelog."""
    text = CHANGELOG.read_text(encoding="utf-8")
    first, *released = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    dates = [re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d)", version)[1] for version in released]  # type: ignore[index]
    assert dates == sorted(dates, reverse=True) != []
    sections = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= sections
