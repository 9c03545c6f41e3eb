"""Tiny trees in the formats of the packages that `emoji` and `tuxpaint` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

THINGS = 40  # concepts `1F900` and so on, called `thing 0` and so on
#: id -> English name, group, version; what is not a thing of its own among them.
SPECIAL = {
    "1F415": ("dog", 3, 0.7), "1F436": ("dog face", 3, 0.6), "1F43B-200D-2744-FE0F": ("polar bear", 3, 13.0),
    "2602-FE0F": ("umbrella", 5, 0.7), "1F550": ("one o’clock", 5, 0.6), "1F522": ("1234", 7, 0.6),
    "1F997": ("cricket", 3, 5.0), "1F1EB-1F1F7": ("flag: France", 9, 0.6), "1F468-200D-1F33E": ("man farmer", 1, 4.0),
    "1F9D1": ("person", 1, 0.6),
}  # fmt: skip
GROUPS = ["smileys-emotion", "people-body", "component", "animals-nature", "food-drink", "travel-places", "activities",
          "objects", "symbols", "flags"]  # fmt: skip
LICENCES = {"noto": "Apache-2.0", "noto-v1": "Apache-2.0", "twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
VERSION = "9.9.9"


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def emoji() -> dict[str, tuple[str, int, float]]:
    """Return hexcode -> English name, group, version of all emoji of the tree."""
    return {**{f"1F9{n:02X}".replace("1F997", "1F9FF"): (f"thing {n}", 7, 0.6) for n in range(THINGS)}, **SPECIAL}


def bare(hexcode: str) -> str:
    """Return code points without variation selectors, as sets call them."""
    return hexcode.replace("-FE0F", "")


def write_emoji(root: Path) -> Path:
    """Write the packages below `root`/node_modules; returns `root`."""
    modules, every = root / "node_modules", emoji()
    for package in ("cldr-annotations-full", "cldr-annotations-derived-full", "emojibase-data"):
        write_json(modules / package / "package.json", {"version": VERSION})
    write_json(modules / "emojibase-data/en/messages.json",
               {"groups": [{"key": key, "order": order} for order, key in enumerate(GROUPS)]})  # fmt: skip
    data = [
        {"label": name, "hexcode": code, "group": group, "order": order, "version": version}
        for order, (code, (name, group, version)) in enumerate(every.items())
    ]
    write_json(modules / "emojibase-data/en/data.json", [*data, {"label": "a", "hexcode": "1F1E6", "version": 0}])
    for language, said in {"en": "{}", "ar": "شيء {}"}.items():
        for package, what, derived in (("full", "annotations", False), ("derived-full", "annotationsDerived", True)):
            words = {
                "".join(chr(int(part, 16)) for part in bare(code).split("-")): {
                    "tts": [said.format(name)],
                    "default": [said.format(name), f"{name} of its own", "everything", "dog", "12"],
                }
                for code, (name, _, _) in every.items() if ("-200D-" in code) == derived
            }  # fmt: skip
            path = modules / f"cldr-annotations-{package}/{what}/{language}/annotations.json"
            write_json(path, {what: {"annotations": words}})
    for number, style in enumerate(LICENCES):
        _write_icons(modules / "@iconify-json" / style, style, by_code=style != "noto-v1", shade=60 * number)
    folder = modules / "@lobehub/fluent-emoji-3d"
    about = {"version": VERSION, "license": "MIT", "description": "Drawn by M", "homepage": "https://m"}
    write_json(folder / "package.json", about)
    (folder / "assets").mkdir()
    for number, code in enumerate(every):
        Image.new("RGBA", (32, 16), (number, 0, 0, 255)).save(folder / f"assets/{code.lower()}.webp", lossless=True)
    return root


def _write_icons(folder: Path, style: str, by_code: bool, shade: int) -> None:
    names = {code: name.replace(" ", "-").replace("’", "") for code, (name, _, _) in emoji().items()}
    icons = {
        name: {"body": f'<path fill="#{number:02x}{shade:02x}ff" d="M0 0h8v8H0z"/>'}
        for number, name in enumerate(names.values())
    }
    icons["mirrored"] = icons.pop("umbrella")
    write_json(folder / "icons.json", {
        "prefix": style, "icons": icons, "width": 16, "height": 8,
        "aliases": {"umbrella": {"parent": "turned"}, "turned": {"parent": "mirrored", "hFlip": True}},
    })  # fmt: skip
    write_json(folder / "chars.json", {bare(c).lower(): name for c, name in names.items()} if by_code else {})
    write_json(folder / "package.json", {"version": VERSION})
    write_json(folder / "info.json", {
        "name": style.title(), "author": {"name": "Makers", "url": "https://makers"},
        "license": {"spdx": LICENCES[style]},
    })  # fmt: skip


def write_stamps(root: Path, things: int = 12) -> Path:
    """Write a folder of Tux Paint's stamps: two of each thing, captions in four languages, some recorded."""
    for folder in ("animals", "symbols"):
        (root / folder).mkdir(parents=True)
    for number in range(things):
        for take in "ab":
            stamp, name = root / "animals" / f"{number}{take}", f"thing number {'i' * (number + 1)}"
            stamp.with_suffix(".txt").write_text(
                f"A {name}.\nfr.utf8=Une {name}.\nbe.utf8=Рэч {name}.\nar.utf8=شيء {name}\nca@valencia.utf8=x\n",
                "utf-8",
            )
            if take == "a":
                Image.new("RGBA", (8, 4), (200, number, 0, 128)).save(stamp.with_suffix(".png"))
            else:
                svg = '<svg xmlns="http://www.w3.org/2000/svg" width="8pt" height="8pt"><path d="M0 0h9v9H0z"/></svg>'
                stamp.with_suffix(".svg").write_text(svg, "utf-8")
            for language in ("fr", "be"):
                write_speech(root / "animals" / f"{number}{take}_desc_{language}.ogg", 0.05 * (10 + number))
    (root / "symbols/a.txt").write_text("The letter a.\n", "utf-8")
    Image.new("RGB", (4, 4)).save(root / "symbols/a.png")
    return root


def write_speech(path: Path, seconds: float) -> None:
    """Write a tone as OGG."""
    wave = 0.3 * np.sin(np.arange(round(seconds * 16_000)) / 9)
    soundfile.write(path, wave.astype(np.float32), 16_000, format="OGG", subtype="VORBIS")
