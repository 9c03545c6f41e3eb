"""Recordings in, log-mel frames out: every way into the model passes through the checks of this module.

Legend: `T` samples at 16 kHz, `S` frames of 10 ms. A waveform is float32 [T] in [-1, 1], mono; frames are
uint8 [S, 80]. Whatever is wrong with a recording is an `AudioError` of one sentence.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from sta.config.limits import MAX_SECONDS, SAMPLE_RATE
from sta.data.cache import write_atomically
from sta.errors import AudioError

MIN_SECONDS = 0.1
FRAME, HOP, BANDS, FFT = 400, 160, 80, 512

MIN_RATE, MAX_RATE = 4_000, 384_000
#: Float samples a little above 1 are clipped as a sound card would; far above, they are integers in disguise.
MAX_PEAK = 4.0
#: Quantisation of log-mel: q = (ln(power) + 14) * 12, so one step is 0.36 dB and 0..255 spans 92 dB; power is scaled
#: so that a sine of full scale has ln(power) = 7 and q = 252.
LOG_OFFSET, LOG_STEPS, LOG_FULL_SCALE = 14.0, 12.0, 7.0
#: Mean and standard deviation of q over synthesised Garden captions of all moods (see `SpeechEncoder.inputs`).
Q_MEAN, Q_STD = 78.0, 54.0
FLOOR = math.exp(-LOG_OFFSET)

SILENCE, MARGIN = 40.0, 0.05  # dB below the loudest frame; seconds kept on either side of the speech

ACCEPTED = "WAV, FLAC, MP3 or OGG"
#: Leading bytes of files that people do try, and what they are.
FOREIGN = {
    b"\x1aE\xdf\xa3": "WebM or Matroska", b"FORM": "AIFF", b"#!AMR": "AMR", b"caff": "CAF", b"RF64": "RF64",
    b"PK\x03\x04": "a ZIP archive", b"%PDF": "a PDF", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture",
}  # fmt: skip
#: WAV format tags: PCM, float, A-law, mu-law. The rest (ADPCM and older) never reaches libsndfile,
#: whose ADPCM reader overflows (CVE-2022-33065, CVE-2026-37555).
WAV_TAGS = (1, 3, 6, 7)
WAV_EXTENSIBLE = 0xFFFE
MAX_CHUNKS = 1000
#: Sizes that a program writes when it streams a WAV whose length it does not know yet.
WAV_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)

Wave = NDArray[np.float32]


def read_audio(
    source: str | os.PathLike[str] | bytes, *, start: float = 0.0, seconds: float | None = None,
    max_seconds: float = MAX_SECONDS,
) -> Wave:  # fmt: skip
    """Read a recording, or a window of it, as float32 [T] mono 16 kHz in [-1, 1].

    `source` is a path or the bytes of a WAV, FLAC, MP3 or OGG (Vorbis, Opus) file of 4 to 384 kHz, mono or stereo.
    `start` and `seconds` choose a window, which has to lie inside the file. The header is read first and at
    most the window, `max_seconds` and a frame more are ever decoded. Raises `AudioError`.
    """
    name = "the audio given as bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
            kind = sniff(stream, name)
            check_complete(stream, kind, name)
            stream.seek(0)
            with soundfile.SoundFile(stream) as file:
                frames = read_window(file, kind, name, start, seconds, max_seconds)
                rate = file.samplerate
    except FileNotFoundError:
        raise AudioError(f"{name} does not exist; give the path of a {ACCEPTED} file.") from None
    except IsADirectoryError:
        raise AudioError(f"{name} is a folder; give the path of a {ACCEPTED} file in it.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{name!r} cannot be opened ({reason}); give a readable {ACCEPTED} file.") from None
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise AudioError(f"{name} is corrupt or cut off ({reason}); copy or record it again, as {ACCEPTED}.") from None
    return to_mono_16k(frames, rate, name)


def sniff(stream: BinaryIO, name: str) -> str:
    """Tell the container by its first bytes, since a file's name can say anything: wav, flac, mp3, bare mp3 or ogg."""
    head = stream.read(512)
    if not head:
        raise AudioError(f"{name} is empty (0 bytes); give a {ACCEPTED} file that holds a recording.")
    if head[:3] == b"ID3":
        return sniff_behind_id3(stream, head, name)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if kind := {b"fLaC": "flac", b"OggS": "ogg"}.get(head[:4]) or mp3_kind(head):
        return kind
    raise AudioError(f"{name} is {describe(head)}, not audio that can be read here; convert it to {ACCEPTED}.")


def sniff_behind_id3(stream: BinaryIO, head: bytes, name: str) -> str:
    """Accept MP3 behind an ID3 tag, nothing else; libsndfile would look there for any format, ADPCM among them."""
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    stream.seek(10 + size)
    if kind := mp3_kind(stream.read(512)):
        return kind
    raise AudioError(f"{name} is corrupt or cut off (no MP3 sound follows its ID3 tag); copy or record it again.")


def mp3_kind(head: bytes) -> str | None:
    """Return "mp3" if an MPEG frame of layer III with the file's length starts here, "bare mp3" if one without."""
    if len(head) < 2 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    return "mp3" if any(tag in head for tag in (b"Xing", b"Info", b"VBRI")) else "bare mp3"


def describe(head: bytes) -> str:
    """Say what a file that is none of ours seems to be, for the error sentence."""
    for magic, title in FOREIGN.items():
        if head.startswith(magic):
            return title
    if head[4:8] == b"ftyp":
        return "M4A or MP4"
    with contextlib.suppress(UnicodeDecodeError):
        # A character may be cut at the end of the head.
        if b"\0" not in head and head[: len(head) - 4 * (len(head) == 512)].decode():
            return "a text file"
    return "a file of unknown format"


def check_complete(stream: BinaryIO, kind: str, name: str) -> None:
    """Refuse a WAV or OGG that ends before its own headers say it does; libsndfile shortens them silently."""
    size = stream.seek(0, io.SEEK_END)
    ends = {"wav": lambda: wav_data_end(stream, name), "ogg": lambda: ogg_last_page_end(stream, size)}
    if kind in ends and (promised := ends[kind]()) > size:
        raise AudioError(
            f"{name} is cut off: its header promises {promised} bytes and {size} are there; copy or record it again."
        )


def wav_data_end(stream: BinaryIO, name: str) -> int:
    """Walk a WAV's chunks; return where its samples should end, 0 if it does not say. Refuses odd codecs."""
    position = 12
    for _ in range(MAX_CHUNKS):
        stream.seek(position)
        head = stream.read(34)
        if len(head) < 8:
            break
        chunk, size = struct.unpack("<4sI", head[:8])
        if chunk == b"fmt " and (tag := wav_codec(head)) not in WAV_TAGS:
            raise AudioError(f"{name} is a WAV with codec {tag:#06x}, which is not read here; save it as 16-bit PCM.")
        if chunk == b"data":
            return 0 if size in WAV_UNKNOWN_SIZES else position + 8 + size
        position += 8 + size + size % 2
    raise AudioError(f"{name} is corrupt or cut off (a WAV without samples); copy or record it again.")


def wav_codec(chunk: bytes) -> int:
    """Return the format tag of a "fmt " chunk, or the one inside an extensible one."""
    tag = int.from_bytes(chunk[8:10], "little")
    return int.from_bytes(chunk[32:34], "little") if tag == WAV_EXTENSIBLE else tag


def ogg_last_page_end(stream: BinaryIO, size: int) -> int:
    """Return where the last page of an OGG file should end by its own segment table."""
    tail = min(size, 1 << 17)  # a page has at most 65,307 bytes
    stream.seek(size - tail)
    data = stream.read(tail)
    page = data.rfind(b"OggS")
    if page < 0 or page + 27 > tail:
        return size + 1
    table = data[page + 27 : page + 27 + data[page + 26]]
    return size - tail + page + 27 + data[page + 26] + sum(table)


def read_window(
    file: soundfile.SoundFile, kind: str, name: str, start: float, seconds: float | None, max_seconds: float
) -> Wave:
    """Decode the window [start, start + seconds) as [T, channels] at the file's rate, never more than `max_seconds`."""
    check_layout(file.channels, file.samplerate, name)
    if not 0 <= start < math.inf or not (seconds is None or 0 < seconds < math.inf):
        raise AudioError(f"{name}: a window needs --start of at least 0 and --seconds above 0, not {start}, {seconds}.")
    first = round(start * file.samplerate)
    # libsndfile guesses the length of a bare MP3 by its first frames and may be out by a factor of six.
    known = kind != "bare mp3" and 0 < file.frames < 2**48
    if known:
        check_window(file.frames / file.samplerate, start, seconds, max_seconds, name)
    limit = round(min(max_seconds, seconds or math.inf) * file.samplerate)
    try:
        file.seek(first)
    except soundfile.SoundFileError:  # a cut or bare file may end before it although its header had room
        raise AudioError(f"{name} ends before {start:g} s, outside the window; lower --start.") from None
    frames = file.read(limit + (seconds is None), dtype="float32", always_2d=True)
    if len(frames) > limit:
        raise AudioError(too_long(name, f"more than {max_seconds:g} s", max_seconds))
    if not known:
        check_window((first + len(frames)) / file.samplerate, start, seconds, max_seconds, name)
    elif len(frames) < min(limit, file.frames - first):
        raise AudioError(
            f"{name} is cut off: its header promises {file.frames} samples and {first + len(frames)} can be decoded; "
            "copy or record it again."
        )
    return frames


def check_waveform(
    wave: ArrayLike, sampling_rate: int, *, name: str = "audio", max_seconds: float = MAX_SECONDS
) -> Wave:
    """Check and convert samples that are already in memory to float32 [T] mono 16 kHz in [-1, 1].

    `wave` is [T], [channels, T] or [T, channels] with one or two channels, int16 or floating in [-1, 1].
    Raises `AudioError` as `read_audio` does.
    """
    array = np.asarray(wave)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / 32768
    elif not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{name} has samples of type {array.dtype}; give int16, or floats in [-1, 1].")
    if array.ndim not in (1, 2) or array.size == 0:
        raise AudioError(f"{name} has the shape {array.shape}; give [T], [channels, T] or [T, channels].")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    check_layout(array.shape[1], sampling_rate, name)
    check_window(len(array) / sampling_rate, 0.0, None, max_seconds, name)
    return to_mono_16k(array.astype(np.float32, copy=False), sampling_rate, name)


def check_layout(channels: int, rate: int, name: str) -> None:
    """Refuse surround sound and sampling rates that speech does not come in."""
    if channels > 2:
        raise AudioError(f"{name} has {channels} channels; mix it down to mono or stereo first.")
    if not isinstance(rate, Real) or not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name} has a sampling rate of {rate!r} Hz; give {MIN_RATE} to {MAX_RATE} Hz.")


def check_window(duration: float, start: float, seconds: float | None, max_seconds: float, name: str) -> None:
    """Refuse a window that is too short, too long or outside a recording of `duration` seconds."""
    if duration < MIN_SECONDS:
        raise AudioError(f"{name} is too short ({duration:.3g} s); give at least {MIN_SECONDS:g} s of speech.")
    length = duration - start if seconds is None else seconds
    if length > max_seconds:
        raise AudioError(too_long(name, f"{length:.4g} s", max_seconds))
    # Half a millisecond forgives the rounding of a duration that was printed.
    if start >= duration or start + length > duration + 5e-4:
        raise AudioError(
            f"{name} lasts {duration:.4g} s and the window from {start:g} s to {start + max(length, 0):g} s lies "
            "outside it; choose --start and --seconds within the file."
        )
    if length < MIN_SECONDS:
        raise AudioError(f"{name}: the window is too short ({length:.3g} s); choose at least {MIN_SECONDS:g} s.")


def too_long(name: str, length: str, max_seconds: float) -> str:
    """Return the sentence about a recording that lasts `length`."""
    return (
        f"{name} is too long ({length}, and at most {max_seconds:g} s are drawn); "
        f"choose a window with --start and --seconds, such as --start 0 --seconds {min(max_seconds, 10):g}."
    )


def to_mono_16k(frames: Wave, rate: int, name: str) -> Wave:
    """Average [T, channels], refuse what is not sound, and resample to [T] at 16 kHz."""
    wave = frames.mean(axis=1, dtype=np.float32)
    peak = float(np.abs(wave).max())
    if not math.isfinite(peak):
        raise AudioError(f"{name} holds samples that are not numbers (NaN or infinite); export it again as 16-bit PCM.")
    if np.ptp(wave) == 0:
        what = f"every sample is {wave[0]:.3g}" if peak else "every sample is zero"
        if np.ptp(frames):
            raise AudioError(f"{name}: its two channels cancel (they are in opposite phase); save one of them as mono.")
        raise AudioError(f"{name} is silent: {what}; check the microphone and record it again.")
    if peak > MAX_PEAK:
        raise AudioError(f"{name} has samples up to {peak:.4g}; scale floats to [-1, 1] or give int16.")
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE)
    return np.clip(wave, -1, 1).astype(np.float32, copy=False)


def wav_bytes(wave: ArrayLike) -> bytes:
    """Encode a waveform [T] in [-1, 1] as a 16-bit PCM WAV file at 16 kHz; what lies outside is clipped."""
    samples = np.asarray(wave, dtype=np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise AudioError(f"a waveform to write has the shape {samples.shape} or NaN samples; give finite floats [T].")
    integers = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, integers, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_wav(path: str | os.PathLike[str], wave: ArrayLike) -> None:
    """Write the waveform as `wav_bytes` encodes it; the file is complete or absent, whatever happens."""
    write_atomically(Path(path), wav_bytes(wave))


def mel_features(wave: Wave) -> NDArray[np.uint8]:
    """Return log-mel frames uint8 [S, 80] of a recording [T] without the silence around the speech."""
    return log_mel(trim_silence(wave))


def sample_features(wave: Wave) -> NDArray[np.int16]:
    """Return int16 samples [T', 1] of a recording [T] without the silence around the speech."""
    return (np.clip(trim_silence(wave), -1, 1) * 32767).astype(np.int16)[:, None]


def trim_silence(wave: Wave) -> Wave:
    """Cut a waveform [T] from a moment before its first sound to a moment after its last.

    A frame of 25 ms is silent if it is 40 dB below the loudest one. Recordings start when a button is pressed, and an
    encoder that averages over time would take silence for soft speech.
    """
    if len(wave) < FRAME:
        return wave
    power = np.square(np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP]).mean(1)
    (loud,) = np.nonzero(power > power.max() * 10 ** (-SILENCE / 10))
    if not len(loud):  # silence all through
        return wave
    margin = round(MARGIN * SAMPLE_RATE)
    return wave[max(0, loud[0] * HOP - margin) : loud[-1] * HOP + FRAME + margin]


def log_mel(wave: Wave) -> NDArray[np.uint8]:
    """Compute quantised log-mel frames, uint8 [S, 80], of a waveform [T] at 16 kHz, with S = 1 + (T - 400) // 160.

    25 ms Hann windows every 10 ms, power spectrum in which a sine of full scale has e^7, 80 triangles on the
    Slaney scale from 20 to 7600 Hz (peak 1), natural log, q = clip((log + 14) * 12, 0, 255). The level is kept
    as it is, because loudness carries mood.
    """
    wave = np.asarray(wave, dtype=np.float32)
    if len(wave) < FRAME:
        wave = np.pad(wave, (0, FRAME - len(wave)))
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP] * hann_window()  # [S, 400]
    spectrum = np.fft.rfft(frames, FFT)  # [S, 257]
    power = spectrum.real**2 + spectrum.imag**2
    mel = np.log(np.maximum(power @ mel_filters(), FLOOR))  # [S, 80]
    return np.clip(np.rint((mel + LOG_OFFSET) * LOG_STEPS), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def hann_window() -> Wave:
    """Return the periodic Hann window [400], scaled for a sine of amplitude 1 to peak at the power e^7."""
    window = np.hanning(FRAME + 1)[:-1]
    return (window * math.exp(LOG_FULL_SCALE / 2) / (window.sum() / 2)).astype(np.float32)


@lru_cache(maxsize=1)
def mel_filters() -> Wave:
    """Return triangles [257, 80] of peak 1, equally spaced on the Slaney scale; none falls between two FFT bins."""
    edges = band_edges()
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    hertz = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)[:, None]
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def band_edges() -> NDArray[np.float64]:
    """Return the hertz [82] where the triangles begin, peak and end: band i spans edges i to i + 2."""
    low, high = hertz_to_slaney(np.array([20.0, 7600.0]))
    return slaney_to_hertz(np.linspace(float(low), float(high), BANDS + 2))


def hertz_to_slaney(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert as Slaney's Auditory Toolbox (1998): linear to 1 kHz, 200/3 Hz a step, then 27 log steps to 6.4 kHz."""
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4))


def slaney_to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert `hertz_to_slaney`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27))
