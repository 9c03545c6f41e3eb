"""The report page: everything on it, nothing fetched, nothing unescaped."""

import io
import re
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sta.metrics.page import Example, write_grid, write_page
from sta.metrics.rows import Interval, Report, ResultKey, Row

ARABIC = "طائر صغير رأسه أحمر"


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(320))
    return buffer.getvalue()


def example(caption: str = ARABIC, language: str = "ar", direction: str = "rtl", **changes: object) -> Example:
    said = {"kind": "bird", "head": "red"}
    fields = {
        "mood": "sad",
        "source": "split both",
        "audio": sound(),
        "truth": picture(),
        "drawn": [picture(1), picture(2)],
        "attributes": said,
        "predicted": [said | {"mood": "sad"}, {"kind": "bird", "head": "blue", "mood": "happy"}],
    } | changes
    return Example(caption, language, direction, **fields)  # type: ignore[arg-type]


def rows() -> list[Row]:
    found = []
    for system, value in (("shuffled", 0.2), ("speech", 0.613), ("truth-to-decoder", 0.9), ("cascade-perfect", 0.7)):
        for split in ("seen", "both"):
            where: ResultKey = {"language": "ar", "split": split, "condition": "clean", "system": system}
            shown = value if split == "both" else value + 0.05
            found.append(Row.of("attributes", Interval(shown, shown - 0.02, shown + 0.02), 100, 0.1, **where))
    where = {"language": "ar", "split": "both", "condition": "babble-5dB", "system": "speech"}
    return [*found, Row.of("attributes", Interval(0.333), 100, 0.1, **where), Row.of("fid", Interval(12.5), 9, **where)]


class Reader(HTMLParser):
    """Collects tags with attributes, and complains of tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(tmp_path: Path, *examples: Example, title: str = "garden-mini") -> str:
    write_page(tmp_path / "report.html", Report({"corpus": "garden", "seeds": [1, 2]}, rows()), examples, title)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_is_well_formed_and_fetches_nothing(tmp_path: Path) -> None:
    text = page(tmp_path, example(), example("a red bird", "en", "ltr"))
    reader = Reader(text)
    sources = [a["src"] or "" for tag in ("img", "audio") for a in reader.all(tag)]
    assert len(sources) == 2 * (3 + 1)
    assert all(re.match(r"data:(image/png|audio/wav);base64,[A-Za-z0-9+/=]+$", s) for s in sources)
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    assert not reader.all("link")


def test_caption_has_its_language_and_direction(tmp_path: Path) -> None:
    text = page(tmp_path, example())
    assert {"lang": "ar", "dir": "rtl"} in Reader(text).all("blockquote")
    assert ARABIC in text


def test_pictures_have_alternative_text_and_sharp_pixels(tmp_path: Path) -> None:
    text = page(tmp_path, example())
    texts = [a["alt"] or "" for a in Reader(text).all("img")]
    assert texts[0] == "Real picture: bird, head red"
    assert texts[2] == "Drawn picture for: bird, head red; 1 of 3 right"
    assert "image-rendering: pixelated" in text


def test_chips_tell_right_from_wrong_also_without_colour(tmp_path: Path) -> None:
    text = page(tmp_path, example())
    chips = [" ".join(re.sub("<[^>]+>", " ", c).split()) for c in re.findall(r'<li class="chip.*?</li>', text, re.S)]
    assert chips[:3] == ["✓ right: kind bird", "✓ right: head red", "✓ right: mood sad"]
    assert chips[3:] == ["✓ right: kind bird", "✗ wrong: head red → blue", "✗ wrong: mood sad → happy"]
    classes = [a["class"] for a in Reader(text).all("li")]
    assert classes == ["chip right"] * 4 + ["chip wrong"] * 2


def test_slot_that_was_not_read_is_shown_as_not_seen(tmp_path: Path) -> None:
    assert "→ not seen" in page(tmp_path, example(drawn=[picture()], predicted=[{"kind": "bird"}]))


def test_page_shows_the_numbers_with_interval_and_chance(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "61.3 (59.3–63.3)" in text
    assert "chance 10.0, n = 100" in text
    assert "speech, babble-5dB" in text
    assert "33.3" in text
    assert "12.5<small>" in text


def test_summary_takes_the_hardest_split_of_the_undisturbed_system(tmp_path: Path) -> None:
    cards = re.findall(r'<div class="card">.*?<strong>(.*?)<small>', page(tmp_path), re.S)
    assert cards == ["61.3"]


def test_ladder_orders_the_systems_and_draws_bars(tmp_path: Path) -> None:
    ladder = page(tmp_path).split('id="loss"')[1].split("</section>")[0]
    names = re.findall(r'<th scope="row">([^<]+)', ladder)
    assert names == ["speech", "truth-to-decoder", "cascade-perfect", "shuffled"]
    assert re.findall(r"<i style=\"width:([\d.]+)%", ladder) == ["61.3", "90.0", "70.0", "20.0"]


def test_text_is_escaped(tmp_path: Path) -> None:
    text = page(tmp_path, example("<img src=x onerror=alert(1)>", '"><b>', "ltr"), title="<i>run</i>")
    assert "<img src=x" not in text
    assert '"><b>' not in text
    assert "&lt;i&gt;run" in text
    Reader(text)


def test_page_without_rows_or_sound_or_truth(tmp_path: Path) -> None:
    bare = example(audio=None, truth=None, predicted=[])
    write_page(tmp_path / "new" / "p.html", Report({}, []), [bare], "bare")
    reader = Reader((tmp_path / "new" / "p.html").read_text())
    assert not reader.all("audio")
    assert not reader.all("li")
    assert len(reader.all("img")) == 2


def test_readings_must_match_the_pictures() -> None:
    with pytest.raises(ValueError, match="2 drawn pictures but 1"):
        example(predicted=[{}])


def test_grid_holds_every_picture_enlarged(tmp_path: Path) -> None:
    shown = [example(), example("a red bird", "en", "ltr"), example(truth=None)]
    write_grid(tmp_path / "grid.png", shown, columns=2, side=32)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * (32 + 64), 2 * (3 * 38 + 18), 3)
    large = np.asarray(picture().resize((32, 32), Image.Resampling.NEAREST))
    assert (sheet[10:42, 12:44] == large).all()
    assert (sheet[48:90, :130] < 128).any(), "no caption"


def test_grid_captions_other_scripts_in_english(tmp_path: Path) -> None:
    write_grid(tmp_path / "arabic.png", [example()])
    write_grid(tmp_path / "english.png", [example("bird, head red")])
    assert (tmp_path / "arabic.png").read_bytes() == (tmp_path / "english.png").read_bytes()


def test_grid_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no examples"):
        write_grid(tmp_path / "grid.png", [])
