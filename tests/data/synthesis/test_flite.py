"""flite's arguments and failures, by a stand-in command on PATH that writes a tone of what it was asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sta.config.limits import SAMPLE_RATE
from sta.data.synthesis.base import LEVEL, Delivery, Voice
from sta.data.synthesis.flite import SPEAKERS, Flite, command
from sta.errors import VoiceError

STAND_IN = """#!{python}
import json, sys, wave
from pathlib import Path
import numpy as np
arguments = sys.argv[1:]
Path("{log}").write_text(json.dumps(arguments))
text, out = arguments[arguments.index("-t") + 1], arguments[arguments.index("-o") + 1]
if text == "crash":
    sys.exit(3)
time = np.arange(8000) / 16000
samples = 0 * time if text == "silence" else 9000 * np.sin(2 * np.pi * 200 * time)
with wave.open(out, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
    file.writeframes(samples.astype("<i2").tobytes())
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in was called with."""
    path = tmp_path / "arguments.json"
    program = tmp_path / "bin" / "flite"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable, log=path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return path


def feature(log: Path, name: str) -> float:
    given = [a.partition("=")[2] for a in json.loads(log.read_text()) if a.startswith(f"{name}=")]
    return float(given[0])


def slt() -> Voice:
    return next(v for v in Flite().voices(["en"]) if v.variant == "slt")


def test_a_delivery_reaches_the_engine(log: Path) -> None:
    wave = Flite().speak("a red bird", slt(), Delivery(rate=0.5, pitch=60, range=25, volume=0.5), 172)
    assert (feature(log, "duration_stretch"), feature(log, "int_f0_target_mean")) == (2.0, 360.0)
    assert feature(log, "int_f0_target_stddev") == 10.0
    assert wave.dtype == np.float32
    assert len(wave) == SAMPLE_RATE // 2
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.5 * LEVEL, rel=0.01)


def test_it_speaks_english_only(log: Path) -> None:
    assert [v.variant for v in Flite().voices(["en"])] == list(SPEAKERS)
    with pytest.raises(VoiceError, match="no voice for 'ar'"):
        Flite().voices(["ar"])
    with pytest.raises(VoiceError, match="'hal'; known are: kal16"):
        Flite().speak("a bird", Voice("hal", "en", "hal"), Delivery(), 170)


@pytest.mark.parametrize(("text", "said"), [("crash", "could not say 'crash'"), ("silence", "no sound")])
def test_a_failure_is_one_sentence(log: Path, text: str, said: str) -> None:
    with pytest.raises(VoiceError, match=said):
        Flite().speak(text, slt(), Delivery(), 170)


def test_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VoiceError, match="apt-get install flite"):
        command()
