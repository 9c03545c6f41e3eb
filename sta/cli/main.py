"""The `sta` command. Every error that a user can cause is one sentence on stderr and exit code 2.

Under a launcher, commands that know how share their work out among its processes; the others are the main one's alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from sta.cli.bench import bench_encoder, bench_sampling, bench_speed, bench_train
from sta.cli.commands import demo, doctor, draw, evaluate, language_check, plan, rehearse, run, speak, train
from sta.config.limits import MAX_GUIDANCE, MAX_SECONDS
from sta.distributed import ranks
from sta.errors import Interrupted, LanguageWarning, StaError
from sta.inference.weights import DEFAULT
from sta.signals import interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if (here := os.getcwd()) not in sys.path:  # a recipe may name a module beside it, as under `python -m sta`
        sys.path.append(here)
    options = _parse(arguments)
    if not (options.shared or ranks.is_main()):
        return 0
    _quieten()
    try:
        with interruptible(), _launch(options.shared):
            options.run(options)
        sys.stdout.flush()
    except StaError as error:
        if options.debug:
            raise
        return _end(error, error.exit_code)
    except Interrupted as stopped:
        return _end(stopped, Interrupted.exit_code)
    except KeyboardInterrupt:  # asked twice
        return _end("stopped on SIGINT; run the same command again to continue", Interrupted.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if ranks.is_peer_lost(error) and not options.debug:
            return _end("another process of the launch is gone; run the same command again to continue", 1)
        ranks.claim_error_report()  # a traceback says it, and the other processes end because of it
        raise
    return 0


@contextmanager
def _launch(shared: bool) -> Iterator[None]:
    """Join the processes of a launch first, and let them go once all are done; one that just went might abort."""
    if not shared or ranks.world_size() == 1:
        yield
        return
    import torch.distributed as dist

    from sta.training.runtime import join

    join()
    yield
    dist.barrier()
    dist.destroy_process_group()


def _end(sentence: object, code: int) -> int:
    """Say why, unless another process of the launch has; returns the exit code."""
    if ranks.claim_error_report():
        print(f"sta: {sentence}", file=sys.stderr)
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; recordings and overrides may also stand after one, where argparse does not look for them."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    several = vars(options).get("files", vars(options).get("overrides"))
    if several is None or any(r.startswith("-") for r in rest):
        return parser.parse_args(arguments)
    several += rest
    return options


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sta: {message}; `{self.prog} --help` lists what there is\n" if ranks.is_main() else None)


def _quieten() -> None:
    """Keep other packages' chatter off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|deepspeed|accelerate)\..*")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of other packages about each other
    warnings.filterwarnings("ignore", category=LanguageWarning)  # which `sta draw` says in a line of its own


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; the same option means the same everywhere."""
    parser = _Parser("sta", description="Direct speech-to-image generation in any language.")
    groups = {"": parser.add_subparsers(required=True, metavar="COMMAND")}
    for path, shared, command, options in COMMANDS:
        group, _, name = path.rpartition(" ")
        if group not in groups:
            above = groups[""].add_parser(group, help=GROUPS[group])
            groups[group] = above.add_subparsers(required=True, metavar="COMMAND")
        about = (command.__doc__ or "").partition("\n")[0]
        one = groups[group].add_parser(name, help=about, description=about)
        one.set_defaults(run=command, shared=shared)
        for names, settings in [*options, DEBUG]:
            one.add_argument(*names, **settings)
    return parser


Option = tuple[tuple[str, ...], dict[str, Any]]


def _option(*names: str, **settings: Any) -> Option:
    return names, settings


def _number(kind: type, low: float, high: float = sys.float_info.max) -> Callable[[str], Any]:
    """Return the type of an option: a number from `low` to `high`; of a real one that may be small, not 0 itself."""
    name = "a whole number" if kind is int else "a number"
    least = f"of at least {low}" if low or kind is int else "above 0"

    def convert(text: str) -> Any:
        with suppress(ValueError):
            if low <= (number := kind(text)) <= high and (number or kind is int):
                return number
        most = f", at most {high:g}" if high < sys.float_info.max else ""
        raise argparse.ArgumentTypeError(f"'{text}' is not {name} {least}{most}")

    return convert


_count, _seed, _amount = _number(int, 1), _number(int, 0, 2**63 - 1), _number(float, 0)
_guidance, _recording = _number(float, 1, MAX_GUIDANCE), _number(float, 0, MAX_SECONDS)


def _weights(default: str) -> list[Option]:
    about = f"release: a folder, or a name, of those that ship or on the Hub (default: $STA_WEIGHTS, else {default})"
    trust = "import the module that the release names as its decoder's"
    return [
        _option("--weights", type=Path, help=about), _option("--trust-remote-code", action="store_true", help=trust)
    ]  # fmt: skip


DEBUG = _option("--debug", action="store_true", help="show the traceback of an error")
JSON = _option("--json", type=Path, metavar="FILE", help="write the numbers here too")
RUN = _option("folder", type=Path, metavar="RUN", help="the run's folder, such as runs/garden-mini")
WEIGHTS = _weights(f"the newest of runs/*/release, else {DEFAULT}, which ships")
RECIPE = [
    _option("recipe", help="path, or name of a packaged recipe such as garden-mini"),
    _option("overrides", nargs="*", metavar="key=value", help="such as stages.decoder.steps=500"),
]
RUNS = [
    *RECIPE,
    _option("--out", type=Path, default=Path("runs"), help="folder that holds the runs (default: runs)"),
    _option("--seed", type=_seed, help="the recipe's seed"),
]
STAGE = _option("--stage", required=True, help="prepare, teacher, tokenizer, distill-pooled, decoder, ...")
CARD = _option("file", help="path or name, such as languages/sw.yaml or en")
ON = _option("--on", metavar="CORPUS", help="another corpus: its file, or the name of a packaged one, such as people")
OF_CORPUS = _option("overrides", nargs="*", metavar="key=value", help="with --on: such as evaluation.items=50")
DEMO = [
    _option("--say", metavar="TEXT", help="say this instead; needs --language"),
    _option("--language", metavar="CODE", help="only this language (default: all)"),
    _option("--mood", help="with --say: the mood of the voice (default: every one that is known)"),
    *_weights("all that ship"),
    _option("--pictures", type=_count, default=3, help="pictures of each recording (default: 3)"),
    _option("--captions", type=_count, help="recordings of each language (default: 6, of emoji 1 or more)"),
    _option("--seed", type=_seed, default=0, help="the same seed says and draws the same (default: 0)"),
    _option("--out", type=Path, default=Path("demo"), help="folder for the page (default: demo)"),
]
DRAW = [
    _option("files", nargs="+", metavar="FILE"),
    _option("--language", required=True, metavar="CODE", help="language spoken, such as en or ar"),
    *WEIGHTS,
    _option("--out", type=Path, default=Path("drawings"), help="folder for the pictures (default: drawings)"),
    _option("--pictures", type=_count, default=1, help="pictures of each recording (default: 1)"),
    _option("--style", help="how to draw, a style that the release knows (default: one by chance)"),
    _option("--seed", type=_seed, default=0, help="the same seed draws the same pictures (default: 0)"),
    _option("--steps", type=_count, help="steps of the sampler (default: the release's)"),
    _option("--guidance", type=_guidance, help="strength of guidance, 1 is none (default: the release's)"),
    _option("--tta-samples", type=_count, help="speeds to encode each recording at (default: the release's)"),
    _option("--start", type=float, default=0.0, help="seconds to skip at the start of each recording"),
    _option("--seconds", type=float, help="draw only so many seconds; long recordings need it"),
]
SPEAK = [
    _option("text"),
    _option("--language", required=True, metavar="CODE"),
    _option("--mood", default="neutral", help="neutral, happy, sad, angry or fearful (default: neutral)"),
    _option("--voice", help="speaker's name (default: drawn by --seed)"),
    _option("--seed", type=_seed, default=0),
    _option("--out", type=Path, default=Path("speech.wav"), help="file to write (default: speech.wav)"),
]
SAMPLING = [
    _option("--steps", type=_count, nargs="+", default=[4, 8, 12, 25], help="default: 4 8 12 25"),
    _option("--guidance", type=_guidance, nargs="+", default=[1.0, 2.0, 3.0, 5.0], help="default: 1 2 3 5"),
    _option("--tta-samples", type=_count, nargs="+", default=[1, 5], help="default: 1 5"),
    _option("--split", default="validation", help="recordings to draw (default: validation)"),
]
SPEED = [
    _option("--batch", type=_count, nargs="+", default=[1, 4], help="pictures at once (default: 1 4)"),
    _option("--repeats", type=_count, default=2, help="rounds, of which the median counts (default: 2)"),
]
ENCODER = [
    _option("--backbone", metavar="NAME", help="as encoder.backbone of a recipe (default: log-mel)"),
    _option("--seconds", type=_amount, default=2.0, help="of each recording (default: 2)"),
    _option("--batch", type=_count, default=8, help="recordings at once (default: 8)"),
]
TRAINING = [
    _option("--stage", action="append", help="a stage; may be given again (default: all)"),
    _option("--steps", type=_count, default=10, help="steps timed in a round (default: 10)"),
    _option("--rounds", type=_count, default=3, help="rounds, of which the median counts (default: 3)"),
    _option("--processes", type=_count, nargs="+", metavar="N", help="compare launches of so many processes"),
    _option("--tflops", type=_amount, help="the device's peak, 10^12 a second (default: of a known GPU)"),
    _option("--operations", action="store_true", help="only count the operations of a step, on noise"),
]
REHEARSAL = [
    _option("--stage", default="tokenizer", help="whose earlier stages are done (default: tokenizer)"),
    _option("--kills", type=_count, default=20, help="kills under each launch (default: 20)"),
    _option("--launch", nargs="+", default=["alone", "cpu-2", "cpu-2-zero2"],
            help="launch files of recipes/accelerate; alone: one process (default: alone cpu-2 cpu-2-zero2)"),
]  # fmt: skip
PLAN = [
    _option("--gpus", type=_count, default=1, help="GPUs of one machine (default: 1)"),
    _option("--nodes", type=_count, default=1, help="machines (default: 1)"),
    _option("--memory", type=_amount, default=80.0, help="GiB of one GPU (default: 80)"),
    _option("--tflops", type=_amount, default=989.0, help="peak of one GPU in dense bfloat16 products, TFLOP/s "
            "(default: 989, of H100 and H200 SXM)"),
    _option("--utilisation", type=_number(float, 0, 1), default=0.35, help="share of that peak that is reached "
            "(default: 0.35, which small models and small batches do not reach)"),
    _option("--captions", type=_count, help="spoken captions of each language (default: the recipe's)"),
    _option("--languages", type=_count, help="number of languages (default: the recipe's)"),
    _option("--seconds", type=_recording, help="mean length of a recording (default: the recipe's)"),
    _option("--longest", type=_recording, help="longest recording, s (default: twice --seconds, or 30)"),
    _option("--pictures", type=_count, help="pictures (default: as many for a caption as in the recipe)"),
]  # fmt: skip
#: The name; whether the processes of a launch share the work; what it calls, whose docstring is the help; its options.
COMMANDS: tuple[tuple[str, bool, Callable[..., None], list[Option]], ...] = (
    ("demo", False, demo, DEMO),
    ("run", True, run, RUNS),
    ("train", True, train, [*RUNS, STAGE]),
    ("plan", False, plan, [*RECIPE, *PLAN, JSON]),
    ("draw", True, draw, DRAW),
    ("speak", False, speak, SPEAK),
    ("evaluate", True, evaluate, [RUN, ON, OF_CORPUS, JSON]),
    ("bench sampling", False, bench_sampling, [RUN, *SAMPLING, JSON]),
    ("bench speed", False, bench_speed, [*WEIGHTS, *SPEED, JSON]),
    ("bench encoder", False, bench_encoder, ENCODER),
    ("bench train", True, bench_train, [*RUNS, *TRAINING, JSON]),
    ("rehearse", False, rehearse, [*RUNS, *REHEARSAL, JSON]),
    ("language check", False, language_check, [CARD]),
    ("doctor", False, doctor, []),
)
GROUPS = {"bench": "Measure training, sampling, encoding and drawing.", "language": "Check a language file."}


if __name__ == "__main__":
    sys.exit(main())
