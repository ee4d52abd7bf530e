"""The course's one command line, `python -m helpers COMMAND`: what is useful without a notebook."""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import helpers

FEW = 10  # faults of a file that are printed, out of perhaps thousands


def prepare(options: argparse.Namespace) -> int:
    """Fetch the base model once, convert it, and print its folder."""
    from helpers.model.base_model import BaseModelError, base_model_path

    try:
        print(base_model_path())
    except BaseModelError as error:
        return _failed(error)
    return 0


def ready(options: argparse.Namespace) -> int:
    """Say on one page whether this laptop is ready for the course, and what to do if it is not."""
    from helpers.tools.ready import check_laptop

    page = check_laptop()
    print(page)
    return int(not all(line.ok for line in page.lines))


def check(options: argparse.Namespace) -> int:
    """Check a JSONL file of chat records for fine-tuning, and name each fault with its line and what to do."""
    from helpers.data.dataset import DatasetError, load_sft_jsonl

    if not options.file.is_file():
        return _wrong_use(f"{options.file}: there is no such file; check the path, seen from {Path.cwd()}")
    try:
        records = load_sft_jsonl(options.file, convert=True)
    except DatasetError as error:
        faults = str(error).splitlines()
        print(*faults[:FEW], *[f"and {len(faults) - FEW:,} more faults"] * (len(faults) > FEW), sep="\n")
        return 1
    turns = [len(record["messages"]) for record in records]
    print(f"{options.file}: {len(records):,} records, no fault; {sum(count > 3 for count in turns):,} have several turns, "
          f"{sum(record['messages'][0]['role'] == 'system' for record in records):,} a system message.")
    return 0


def diagnose(options: argparse.Namespace) -> int:
    """Say whether training changed anything in a saved LoRA adapter (PEFT's format, whatever wrote it), and if not, why."""
    from helpers.training.saving import adapter_folder, read_record

    try:
        record = read_record(adapter_folder(options.adapter))
    except ValueError as error:
        return _wrong_use(error)
    if not Path(options.base).expanduser().is_dir() and helpers.HUB_OFFLINE is None:
        os.environ.pop("HF_HUB_OFFLINE")  # the base is on the hub, and nobody but the course asked to stay away from it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from helpers.adapter.checks import FAULTS
    from helpers.adapter.diagnosis import diagnose_adapter
    from helpers.model.hardware import best_device

    base = str(Path(options.base).expanduser()) if Path(options.base).expanduser().is_dir() else options.base
    dtype = record["base_dtype"] if record and "," not in record["base_dtype"] else "auto"
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(best_device())
        tokenizer = AutoTokenizer.from_pretrained(base) if options.question else None
    except (OSError, ValueError) as error:
        return _wrong_use(f"--base {options.base}: this model can't be loaded; give its folder or its name on the hub ({_first_line(error)})")
    try:
        diagnosis = diagnose_adapter(options.adapter, tokenizer, base=model, questions=options.question)
    except ValueError as error:
        return _failed(error)
    print(diagnosis)
    return int(diagnosis.verdict in {verdict for verdict, *_ in FAULTS.values()})


def kit(options: argparse.Namespace) -> int:
    """Pack the course, the packages and the model for a room without internet, about 0.5 GB."""
    from helpers.tools.offline_kit import KitError, install_text, pack, size

    try:
        folder = pack(options.folder)
    except KitError as error:
        return _failed(error)
    except KeyboardInterrupt:
        return _failed("Stopped; nothing was left behind.")
    print(f"\n{folder}: wheels {size(folder / 'wheels')}, course {size(folder / 'course')}. INSTALL.txt says:\n\n{install_text()}")
    return 0


def render(options: argparse.Namespace) -> int:
    """Build the rendered edition: the executed course as pages that need neither a network nor Jupyter."""
    from helpers.tools.rendered_edition import build

    build(options.folder, options.executed)
    return 0


def _failed(reason: object) -> int:
    print(reason, file=sys.stderr)
    return 1


def _wrong_use(reason: object) -> int:
    print(reason, file=sys.stderr)
    return 2


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def main() -> int:
    """Run the command that was typed; return its exit status: 0 all well, 1 a fault was found or something failed, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__,
                                     epilog="Exit status: 0 all well, 1 a fault was found or something failed, 2 wrong use.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(command) -> argparse.ArgumentParser:
        one = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__, epilog=parser.epilog)
        one.set_defaults(command=command)
        return one

    add(prepare)
    add(ready)
    add(check).add_argument("file", type=Path, metavar="FILE.jsonl", help="one JSON object a line: messages, or prompt and completion, "
                                                                          "or instruction, input and output")
    diagnosing = add(diagnose)
    diagnosing.add_argument("adapter", metavar="ADAPTER", help="the folder that holds adapter_config.json")
    diagnosing.add_argument("--base", required=True, metavar="MODEL", help="the model that it was trained on: a folder, or a name on the hub")
    diagnosing.add_argument("--question", action="append", default=[], metavar="TEXT", help="something that it was taught, to compare the "
                                                                                          "answers with and without it; may be given again")
    add(kit).add_argument("folder", metavar="FOLDER", help="a new folder, or an empty one")
    rendering = add(render)
    rendering.add_argument("folder", type=Path, metavar="FOLDER", help="where the pages go")
    rendering.add_argument("executed", type=Path, nargs="?", metavar="EXECUTED", help="notebooks that were run already, as pytest leaves "
                                                                                      "them in outputs/executed; the others are run now")
    options = parser.parse_args()
    return options.command(options)


if __name__ == "__main__":
    sys.exit(main())
