"""The `sta` command. Every error that a user can cause is one sentence on stderr and exit code 2.

Under a launcher, commands that know how share their work out among its processes; the others are the main one's alone.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sta.cli.bench import bench_encoder, bench_sampling, bench_speed, bench_train
from sta.cli.commands import demo, doctor, draw, evaluate, language_check, rehearse, run, speak, train
from sta.cli.plan import plan
from sta.config.limits import MAX_GUIDANCE, MAX_SECONDS
from sta.distributed import ranks
from sta.errors import Interrupted, LanguageWarning, StaError
from sta.signals import interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parse(arguments)
    if not (options.shared or ranks.is_main()):
        return 0
    _quieten()
    try:
        with interruptible():
            if options.shared:
                _join()
            options.run(options)
            if options.shared:
                _part()
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


def _join() -> None:
    """Let the processes of a launch find each other before anything can go wrong on one of them."""
    if ranks.world_size() > 1:
        from sta.training.runtime import join

        join()


def _part() -> None:
    """Let the processes of a launch go once all are done; one that just went would abort now and then."""
    if ranks.world_size() > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()


def _end(sentence: object, code: int) -> int:
    """Say why, unless another process of the launch has; returns the exit code."""
    if ranks.claim_error_report():
        print(f"sta: {sentence}", file=sys.stderr)
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; recordings and overrides may also stand after an option, where argparse does not look for them."""
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
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not _has_gpu() else "cuda")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|deepspeed|accelerate)\..*")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of other packages about each other
    warnings.filterwarnings("ignore", category=LanguageWarning)  # which `sta draw` says in a line of its own


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; the same option means the same everywhere."""
    parser = _Parser("sta", description="Direct speech-to-image generation in any language.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(
        _command(commands, "demo", demo, "Say captions in every language, draw them, and write a page to look at.")
    )
    about = "Do every stage of a recipe, from nothing to a report; finished stages are skipped."
    _add_recipe(_command(commands, "run", run, about, shared=True))
    about = "Do one stage of a recipe (the same as `accelerate launch -m sta.train`)."
    one = _command(commands, "train", train, about, shared=True)
    _add_recipe(one)
    one.add_argument("--stage", required=True, help="prepare, teacher, tokenizer, distill-pooled, decoder, ...")
    about = "Say what a recipe takes on some GPUs: parameters, memory, hours, disk."
    _add_plan(_command(commands, "plan", plan, about))
    about = "Draw recordings (WAV, FLAC, MP3, OGG; any rate; mono or stereo)."
    _add_draw(_command(commands, "draw", draw, about, shared=True))
    about = "Say a sentence with the synthesiser of a language and write a WAV file."
    _add_speak(_command(commands, "speak", speak, about))
    about = "Evaluate a finished run again and write its report."
    one = _command(commands, "evaluate", evaluate, about, shared=True)
    _add_run_folder(one)
    _add_json(one)
    _add_benches(commands.add_parser("bench", help="Measure training, sampling, and speed against diffusers."))
    about = "Kill a stage again and again, and compare it with one that was not."
    _add_rehearse(_command(commands, "rehearse", rehearse, about))
    language = commands.add_parser("language", help="Check a language file.")
    kinds = language.add_subparsers(required=True, metavar="COMMAND")
    one = _command(kinds, "check", language_check, "Validate a language file and say a sentence of it.")
    one.add_argument("file", help="path or name, such as languages/sw.yaml or en")
    _command(
        commands, "doctor", doctor, "Say what this machine can do: devices, precision, launch files, voices, disk."
    )
    return parser


def _command(
    where: Any, name: str, run: Callable[[argparse.Namespace], None], about: str, shared: bool = False
) -> argparse.ArgumentParser:
    """Add a command; the processes of a launch share its work where it is `shared`."""
    sub: argparse.ArgumentParser = where.add_parser(name, help=about, description=about)
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=run, shared=shared)
    return sub


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")


def _add_run_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder, such as runs/garden-mini")


def _add_demo(one: argparse.ArgumentParser) -> None:
    one.add_argument("--say", metavar="TEXT", help="say this instead; needs --language")
    one.add_argument("--language", metavar="CODE", help="only this language (default: all of the release)")
    one.add_argument("--mood", help="with --say: the mood of the voice (default: every mood of the release)")
    _add_weights(one, "those of the package, else as for draw")
    one.add_argument("--pictures", type=_positive, default=3, help="pictures of each recording (default: 3)")
    one.add_argument("--captions", type=_positive, default=6, help="captions of each language (default: 6)")
    one.add_argument("--seed", type=_seed, default=0, help="the same seed says and draws the same (default: 0)")
    one.add_argument("--out", type=Path, default=Path("demo"), help="folder for the page (default: demo)")


def _add_draw(one: argparse.ArgumentParser) -> None:
    one.add_argument("files", nargs="+", metavar="FILE")
    one.add_argument("--language", required=True, metavar="CODE", help="language spoken, such as en or ar")
    _add_weights(one)
    one.add_argument("--out", type=Path, default=Path("drawings"), help="folder for the pictures (default: drawings)")
    one.add_argument("--pictures", type=_positive, default=1, help="pictures of each recording (default: 1)")
    one.add_argument("--seed", type=_seed, default=0, help="the same seed draws the same pictures (default: 0)")
    one.add_argument("--steps", type=_positive, help="steps of the sampler (default: the release's)")
    one.add_argument("--guidance", type=_guidance, help="strength of guidance, 1 is none (default: the release's)")
    one.add_argument(
        "--tta-samples", type=_positive, help="speeds that each recording is encoded at (default: the release's)"
    )
    one.add_argument("--start", type=float, default=0.0, help="seconds to skip at the start of each recording")
    one.add_argument("--seconds", type=float, help="draw only so many seconds; long recordings need it")


def _add_speak(one: argparse.ArgumentParser) -> None:
    one.add_argument("text")
    one.add_argument("--language", required=True, metavar="CODE")
    one.add_argument("--mood", default="neutral", help="neutral, happy, sad, angry or fearful (default: neutral)")
    one.add_argument("--voice", help="speaker's name (default: drawn by --seed)")
    one.add_argument("--seed", type=_seed, default=0)
    one.add_argument("--out", type=Path, default=Path("speech.wav"), help="file to write (default: speech.wav)")


def _add_benches(bench: argparse.ArgumentParser) -> None:
    benches = bench.add_subparsers(required=True, metavar="COMMAND")
    one = _command(benches, "sampling", bench_sampling, "Steps, guidance and tta samples against quality and seconds.")
    _add_run_folder(one)
    one.add_argument("--steps", type=_positive, nargs="+", default=[4, 8, 12, 25], help="default: 4 8 12 25")
    one.add_argument("--guidance", type=_guidance, nargs="+", default=[1.0, 2.0, 3.0, 5.0], help="default: 1 2 3 5")
    one.add_argument("--tta-samples", type=_positive, nargs="+", default=[1, 5], help="default: 1 5")
    one.add_argument("--split", default="validation", help="recordings to draw (default: validation)")
    _add_json(one)

    one = _command(benches, "speed", bench_speed, "Seconds per picture, against diffusers' VQDiffusionPipeline.")
    _add_weights(one)
    one.add_argument("--batch", type=_positive, nargs="+", default=[1, 4], help="pictures at once (default: 1 4)")
    one.add_argument("--repeats", type=_positive, default=2, help="rounds, of which the median counts (default: 2)")
    _add_json(one)

    about = "Recordings a second through a speech backbone, on the processor."
    one = _command(benches, "encoder", bench_encoder, about)
    one.add_argument("--backbone", metavar="NAME", help="as encoder.backbone of a recipe (default: log-mel)")
    one.add_argument("--seconds", type=_above_zero, default=2.0, help="of each recording (default: 2)")
    one.add_argument("--batch", type=_positive, default=8, help="recordings at once (default: 8)")

    about = "Samples per second of stages, against loops written by hand."
    one = _command(benches, "train", bench_train, about, shared=True)
    _add_recipe(one)
    one.add_argument("--stage", action="append", help="a stage; may be given again (default: all)")
    one.add_argument("--steps", type=_positive, default=10, help="steps timed in a round (default: 10)")
    one.add_argument("--rounds", type=_positive, default=3, help="rounds, of which the median counts (default: 3)")
    one.add_argument(
        "--processes", type=_positive, nargs="+", metavar="N", help="compare launches of these numbers of processes"
    )
    one.add_argument("--tflops", type=_above_zero, help="the device's most, 10^12 a second (default: of a known GPU)")
    _add_json(one)


def _add_rehearse(one: argparse.ArgumentParser) -> None:
    _add_recipe(one)
    one.add_argument("--stage", default="tokenizer", help="whose earlier stages are done (default: tokenizer)")
    one.add_argument("--kills", type=_positive, default=20, help="kills under each launch (default: 20)")
    one.add_argument(
        "--launch", nargs="+", default=["alone", "cpu-2", "cpu-2-zero2"],
        help="launch files of recipes/accelerate; alone: one process (default: alone cpu-2 cpu-2-zero2)",
    )  # fmt: skip
    _add_json(one)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_experiment(parser)
    parser.set_defaults(seed=None)
    parser.add_argument("--gpus", type=_positive, default=1, help="GPUs of one machine (default: 1)")
    parser.add_argument("--nodes", type=_positive, default=1, help="machines (default: 1)")
    parser.add_argument("--memory", type=_above_zero, default=80.0, help="GiB of one GPU (default: 80)")
    parser.add_argument(
        "--tflops", type=_above_zero, default=989.0,
        help="peak of one GPU in dense bfloat16 products, TFLOP/s (default: 989, of H100 and H200 SXM)",
    )  # fmt: skip
    parser.add_argument(
        "--utilisation", type=_share, default=0.35,
        help="share of that peak that is reached (default: 0.35, which small models and small batches do not reach)",
    )  # fmt: skip
    parser.add_argument("--captions", type=_positive, help="spoken captions of each language (default: the recipe's)")
    parser.add_argument("--languages", type=_positive, help="number of languages (default: the recipe's)")
    parser.add_argument("--seconds", type=_recording, help="mean length of a recording (default: the recipe's)")
    parser.add_argument("--longest", type=_recording, help="longest recording, s (default: twice --seconds, or 30)")
    parser.add_argument("--pictures", type=_positive, help="pictures (default: as many for a caption as in the recipe)")
    _add_json(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    _add_experiment(parser)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder that holds the runs (default: runs)")
    parser.add_argument("--seed", type=_seed, help="the recipe's seed")


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="path, or name of a packaged recipe such as garden-mini")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.decoder.steps=500")


def _add_weights(
    parser: argparse.ArgumentParser, default: str = "the newest of runs/*/release, else those of the package"
) -> None:
    parser.add_argument(
        "--weights", type=Path, help=f"release: a folder, or a name on the Hub (default: $STA_WEIGHTS, else {default})"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="import the module that the release names as its decoder's"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _share(text: str) -> float:
    share = _above_zero(text)
    if share > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is more than 1, which is the whole")
    return share


def _guidance(text: str) -> float:
    if not 1 <= (scale := _number(text)) <= MAX_GUIDANCE:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to {MAX_GUIDANCE:g}")
    return scale


def _above_zero(text: str) -> float:
    if not 0 < (number := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def _recording(text: str) -> float:
    if (seconds := _above_zero(text)) > MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"'{text}' is more than {MAX_SECONDS:g} s, which no recording may last")
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


if __name__ == "__main__":
    sys.exit(main())
