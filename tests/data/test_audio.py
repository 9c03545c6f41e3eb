"""Recordings: every format in, every mistake named, frames that keep level."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sta.config.limits import SAMPLE_RATE
from sta.data import audio
from sta.data.audio import check_waveform, log_mel, read_audio, wav_bytes, write_wav
from sta.errors import AudioError, StaError

FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")]
RATES = [8_000, 16_000, 22_050, 44_100, 48_000]
OPUS_RATES = (8_000, 16_000, 48_000)
CASES = [(f, s, r) for f, s in FORMATS for r in RATES if s != "OPUS" or r in OPUS_RATES]


def sine(seconds: float = 1.0, hertz: float = 440.0, rate: int = SAMPLE_RATE, level: float = 0.5) -> audio.Wave:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(wave: np.ndarray, rate: int = SAMPLE_RATE, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def loudest_hertz(wave: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(wave))) * SAMPLE_RATE / len(wave))


# --- what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("form", "subtype", "rate"), CASES)
def test_formats(tmp_path: Path, form: str, subtype: str | None, rate: int, channels: int) -> None:
    path = tmp_path / "clip.bin"
    path.write_bytes(encoded(np.stack([sine(rate=rate)] * channels, axis=1), rate, form, subtype))
    wave = read_audio(path)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert abs(len(wave) / SAMPLE_RATE - 1) < 0.15  # MP3 pads
    assert abs(loudest_hertz(wave) - 440) < 3
    assert 0.3 < np.abs(wave).max() <= 1
    np.testing.assert_array_equal(wave, read_audio(path.read_bytes()))


def test_extensible_wav() -> None:
    np.testing.assert_allclose(read_audio(extensible(b"\x01\x00")), sine(), atol=1e-4)


def test_stereo_is_averaged() -> None:
    both = np.stack([sine(), np.zeros(SAMPLE_RATE, np.float32)], axis=1)
    np.testing.assert_allclose(read_audio(encoded(both)), sine() / 2, atol=1e-4)


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_window(form: str, subtype: str | None) -> None:
    wave = np.concatenate([sine(2, 300), sine(2, 900)])
    part = read_audio(encoded(wave, form=form, subtype=subtype), start=2.5, seconds=1)
    assert len(part) == SAMPLE_RATE
    assert abs(loudest_hertz(part) - 900) < 3


def test_long_file_with_window() -> None:
    long = encoded(np.tile(sine(1), 90), form="FLAC")
    assert len(read_audio(long, start=80, seconds=5)) == 5 * SAMPLE_RATE
    assert len(read_audio(long, start=80)) == 10 * SAMPLE_RATE


def test_the_shortest_window_at_a_rate_that_does_not_divide_it() -> None:
    assert len(read_audio(encoded(sine(rate=11_025), 11_025), seconds=0.1)) == pytest.approx(1600, abs=2)


def test_streamed_wav_of_unknown_size_is_read() -> None:
    data = bytearray(encoded(sine()))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert len(read_audio(bytes(data))) == SAMPLE_RATE


# --- what is refused -------------------------------------------------------------------------------------------


def cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


def flac_that_promises(samples: int) -> bytes:
    data = bytearray(encoded(sine(), form="FLAC"))
    data[21] = (data[21] & 0xF0) | (samples >> 32)
    data[22:26] = struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(data)


def adpcm() -> bytes:
    data = bytearray(encoded(sine()))
    data[20:22] = b"\x11\x00"
    return bytes(data)


def extensible(codec: bytes) -> bytes:
    """A 16-bit WAV whose format chunk is of the extensible kind."""
    data = encoded(sine(), form="WAVEX", subtype="PCM_16")
    return data[:44] + codec + data[46:]


NAN = sine()
NAN[5] = np.nan
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": ("A small bird.\nA réd flower.\n".encode() * 90, "is a text file"),
    "binary": (bytes(range(128, 256)) * 20, "unknown format"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(100), "WebM"),
    "m4a": (b"\0\0\0\x20ftypM4A " + bytes(100), "M4A"),
    "wav header only": (encoded(sine())[:30], "cut off"),
    "wav cut": (cut(encoded(sine())), "cut off"),
    "flac cut": (cut(encoded(sine(3), form="FLAC")), "cut off"),
    "ogg cut": (cut(encoded(sine(3), form="OGG", subtype="VORBIS")), "cut off"),
    "mp3 cut": (cut(encoded(sine(3), form="MP3")), "cut off"),
    "mp3 without sound": (b"ID3\x03\0\0\0\0\0\0" + bytes(4000), "corrupt"),
    "adpcm behind a tag": (b"ID3\x03\0\0\0\0\0\0" + adpcm(), "corrupt"),
    "flac noise": (b"fLaC" + bytes(range(256)) * 8, "corrupt"),
    "adpcm": (adpcm(), "16-bit PCM"),
    "extensible adpcm": (extensible(b"\x11\x00"), "16-bit PCM"),
    "ever more chunks": (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 2000, "without samples"),
    "short": (encoded(sine(0.05)), r"too short \(0.05 s\)"),
    "ten minutes": (encoded(np.zeros(600 * 8000, np.int16), 8000), "--start and --seconds"),
    "surround": (encoded(np.stack([sine()] * 6, axis=1)), "6 channels; mix it down to mono or stereo"),
    "nan": (encoded(NAN, subtype="FLOAT"), "NaN"),
    "silent": (encoded(np.zeros(SAMPLE_RATE, np.float32)), "silent"),
    "low rate": (encoded(sine(rate=2000), 2000), "2000 Hz"),
    "integers as floats": (encoded(sine() * 32768, subtype="FLOAT"), "scale"),
    "lying flac, short": (flac_that_promises(2 * SAMPLE_RATE), "cut off"),
    "lying flac, long": (flac_that_promises(2**35), "too long"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(BAD[case][0])
    with pytest.raises(AudioError, match=BAD[case][1]) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_damage_is_an_audio_error_or_still_sound(form: str, subtype: str | None) -> None:
    clean, rng = encoded(sine(), form=form, subtype=subtype), np.random.default_rng(0)
    for _ in range(60):
        data = np.frombuffer(clean, np.uint8).copy()
        data[rng.integers(len(data) if rng.random() < 0.5 else 100, size=4)] = rng.integers(256, size=4)
        with contextlib.suppress(AudioError):
            wave = read_audio(data[: rng.integers(1, len(data) + 1)].tobytes())
            assert np.abs(wave).max() <= 1


def bare_mp3(seconds: float) -> bytes:
    """An MP3 without the frame that tells its length, which libsndfile then guesses too long."""
    data = encoded(np.concatenate([np.zeros(SAMPLE_RATE, np.float32), sine(seconds - 1)]), form="MP3")
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    return data[data.find(data[:2], tag) :]


def test_mp3_without_length() -> None:
    data = bare_mp3(20)
    assert abs(len(read_audio(data)) / SAMPLE_RATE - 20) < 0.2
    assert len(read_audio(data, start=15, seconds=2)) == 2 * SAMPLE_RATE
    with pytest.raises(AudioError, match="outside"):
        read_audio(data, start=15, seconds=8)
    with pytest.raises(AudioError, match="outside"):
        read_audio(data, start=25)
    with pytest.raises(AudioError, match="--start and --seconds"):
        read_audio(bare_mp3(40))


def test_tagged_mp3() -> None:
    tag = b"ID3\x03\0\0\0\0\x01\x00" + bytes(128)
    assert abs(loudest_hertz(read_audio(tag + encoded(sine(), form="MP3"))) - 440) < 3


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"no\.wav does not exist"):
        read_audio(tmp_path / "no.wav")
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({"start": 5.0}, "outside"),
        ({"start": 0.5, "seconds": 1.0}, "outside"),
        ({"seconds": 0.01}, "too short"),
        ({"start": -1.0}, "at least 0"),
        ({"seconds": float("nan")}, "above 0"),
    ],
)
def test_bad_windows(window: dict[str, float], words: str) -> None:
    with pytest.raises(AudioError, match=words):
        read_audio(encoded(sine()), **window)


def test_window_longer_than_the_limit() -> None:
    with pytest.raises(AudioError, match="--seconds 2"):
        read_audio(encoded(sine(5)), seconds=4, max_seconds=2)


def test_lying_header_decodes_no_more_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = soundfile.SoundFile.read

    def spy(self: soundfile.SoundFile, frames: int = -1, **options: object) -> np.ndarray:
        asked.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    # A stream of unknown length that holds a minute.
    data = bytearray(encoded(np.tile(sine(), 60), form="FLAC"))
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)
    with pytest.raises(AudioError):
        read_audio(bytes(data))
    assert all(0 < frames <= audio.MAX_SECONDS * SAMPLE_RATE + 1 for frames in asked)


# --- samples in memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["T", "1T", "T2", "2T"])
def test_check_waveform_shapes(shape: str) -> None:
    wave = sine(rate=44_100)
    given = {"T": wave, "1T": wave[None], "T2": np.stack([wave, wave], 1), "2T": np.stack([wave, wave])}[shape]
    checked = check_waveform(given, 44_100)
    assert checked.shape == (SAMPLE_RATE,)
    assert abs(loudest_hertz(checked) - 440) < 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_check_waveform_types(dtype: type) -> None:
    given = (sine() * 32767).astype(np.int16) if dtype is np.int16 else sine().astype(dtype)
    checked = check_waveform(given, SAMPLE_RATE)
    assert checked.dtype == np.float32
    np.testing.assert_allclose(checked, sine(), atol=1e-3)


@pytest.mark.parametrize(
    ("wave", "rate", "words"),
    [
        (np.ones((6, 16_000), np.float32), 16_000, "6 channels"),
        (np.ones(16_000, np.int64), 16_000, "int64"),
        (np.ones((1, 1, 16_000), np.float32), 16_000, "shape"),
        (np.zeros(0, np.float32), 16_000, "shape"),
        (np.zeros(16_000, np.float32), 16_000, "silent"),
        (NAN, 16_000, "NaN"),
        (sine(0.05), 16_000, "too short"),
        (np.ones(31 * 16_000, np.float32), 16_000, "too long"),
        (sine(), 0, "0 Hz"),
        (sine() * 30_000, 16_000, "scale"),
    ],
)
def test_check_waveform_refuses(wave: np.ndarray, rate: int, words: str) -> None:
    with pytest.raises(AudioError, match=words) as caught:
        check_waveform(wave, rate, name="take 3")
    assert "take 3" in str(caught.value)


# --- writing ---------------------------------------------------------------------------------------------------


def test_write_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    write_wav(path, sine())
    assert path.read_bytes() == wav_bytes(sine())
    assert soundfile.info(path).subtype == "PCM_16"
    once = read_audio(path)
    np.testing.assert_allclose(once, sine(), atol=1 / 32768)
    assert wav_bytes(once) == path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_write_makes_its_folder_where_that_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StaError, match="cannot be written"):
        write_wav(tmp_path / "file" / "out.wav", sine())
    write_wav(tmp_path / "new" / "out.wav", sine())
    assert read_audio(tmp_path / "new" / "out.wav").shape == (SAMPLE_RATE,)


def test_write_refuses_what_is_no_wave() -> None:
    with pytest.raises(AudioError, match="NaN"):
        wav_bytes(NAN)


# --- frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hertz", [100, 440, 1000, 3000, 7000])
def test_sine_lands_in_its_band(hertz: float) -> None:
    edges = audio.band_edges()
    band = int(log_mel(sine(hertz=hertz)).mean(axis=0).argmax())
    assert edges[band] < hertz < edges[band + 2]


def test_twenty_decibels_shift_by_what_they_should() -> None:
    loud, soft = (log_mel(sine(hertz=1000, level=level)).max(axis=1).astype(int) for level in (0.5, 0.05))
    assert np.abs(loud - soft - np.log(100) * audio.LOG_STEPS).max() <= 1


def test_full_scale_reaches_the_top() -> None:
    assert 245 <= log_mel(sine(hertz=1000, level=1.0)).max() <= 255


@pytest.mark.parametrize("samples", [400, 559, 560, 16_000])
def test_one_more_hop_is_one_more_frame(samples: int) -> None:
    wave = sine()[:1] * 0 + np.resize(sine(), samples + audio.HOP)
    few, more = log_mel(wave[:samples]), log_mel(wave)
    assert few.shape == (1 + (samples - 400) // 160, 80)
    np.testing.assert_array_equal(more[:-1], few)


def test_every_filter_hears_something() -> None:
    filters = audio.mel_filters()
    assert filters.shape == (257, 80)
    assert (filters.sum(axis=0) > 0.5).all()


def test_slaney_inverse_pair() -> None:
    hertz = np.array([20.0, 500, 999, 1000, 1001, 7600])
    np.testing.assert_allclose(audio.slaney_to_hertz(audio.hertz_to_slaney(hertz)), hertz)


# --- silence around the speech -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(2.0, 0.0), (0.0, 1.5), (2.0, 3.0)])
def test_silence_around_the_speech_is_cut_to_a_margin(before: float, after: float) -> None:
    spoken = sine(hertz=440)
    wave = np.concatenate([np.zeros(round(before * 16_000)), spoken, np.zeros(round(after * 16_000))])
    wave = (wave + 1e-4 * np.random.default_rng(0).standard_normal(len(wave))).astype(np.float32)
    kept = audio.trim_silence(wave)
    margins = min(before, audio.MARGIN) + min(after, audio.MARGIN)
    assert abs(len(kept) / 16_000 - len(spoken) / 16_000 - margins) < 0.06
    start = round(min(before, audio.MARGIN) * 16_000)
    assert np.abs(kept[start + 200 : start + 1000]).max() > 0.9 * np.abs(spoken).max()


def test_speech_without_silence_stays_as_it_is() -> None:
    wave = sine()
    np.testing.assert_array_equal(audio.trim_silence(wave), wave)
    soft = np.concatenate([0.05 * wave, wave])  # 26 dB softer is speech
    np.testing.assert_array_equal(audio.trim_silence(soft), soft)


def test_a_pause_between_words_is_not_cut() -> None:
    wave = np.concatenate([sine(), np.zeros(32_000, np.float32), sine()])
    np.testing.assert_array_equal(audio.trim_silence(wave), wave)


@pytest.mark.parametrize("wave", [np.zeros(16_000, np.float32), np.zeros(100, np.float32), sine()[:399]])
def test_silence_and_scraps_are_left(wave: np.ndarray) -> None:
    np.testing.assert_array_equal(audio.trim_silence(wave), wave)


def test_a_pause_before_speech_does_not_change_what_the_encoder_is_given() -> None:
    wave = sine()
    early = np.concatenate([np.zeros(8_000, np.float32), wave])
    late = np.concatenate([np.zeros(48_000, np.float32), early])
    for features in (audio.mel_features, audio.sample_features):
        np.testing.assert_array_equal(features(late), features(early))
