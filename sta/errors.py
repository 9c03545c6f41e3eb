"""The package's exceptions: each carries one sentence that says what, where and what would work.

The command line prints that sentence on stderr and exits with the code of its class.
"""

import difflib
from collections.abc import Iterable


class StaError(Exception):
    """A mistake that a user can cause and mend; the command line shows its one sentence."""

    exit_code = 2


class RecipeError(StaError):
    """A recipe or card that does not hold: names the file, the key, the value and what is accepted."""


class ArgumentError(StaError, ValueError):
    """An argument of the pipeline that it cannot take: names the argument, its value and what is accepted."""


class AudioError(StaError):
    """A recording that cannot be read or drawn: names the file and what would work."""


class CorpusError(StaError):
    """A corpus row, folder or manifest that is missing or unreadable."""


class LanguageWarning(UserWarning):
    """A recording that is plainly not in the language that was said."""


class VoiceError(StaError):
    """A synthesiser, language or voice that is not there: names those that are."""


class NoSoundError(VoiceError):
    """A text of which a voice has nothing to say, such as one without letters."""


class WeightsError(StaError):
    """A checkpoint or release that is missing, truncated or made for another token space."""


class TrainingError(StaError):
    """A training run that must not go on, such as one with a non-finite loss."""


class Interrupted(BaseException):
    """A stop on SIGINT, SIGTERM or SIGUSR1 after the state was saved; the same command continues.

    Not an `Exception`, so that nothing takes it for a failure and goes on.

    The exit code is EX_TEMPFAIL of sysexits.h, which schedulers read as "try again".
    """

    exit_code = 75


#: EX_SOFTWARE of sysexits.h: training did not move for too long, and this process ended itself.
STALLED = 70


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, for one sentence; its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def known_names(name: str, known: Iterable[str], label: str = "known", also: str = "") -> str:
    """Return the end of a sentence about a name that is not known: `; did you mean 'seed'? (known: name, seed)`."""
    close = difflib.get_close_matches(name, names := list(known), 1)
    return (f"; did you mean '{close[0]}'?" if close else "") + f" ({label}: {', '.join(names)}{also})"
