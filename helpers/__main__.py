"""The course's one command line, `python -m helpers COMMAND`: what is useful without a notebook."""
import argparse
import errno
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import helpers

STOPPED = "Stopped; nothing was left behind."
STATUS = "Exit status: 0 all well, 1 a fault was found or something failed, 2 wrong use."
MODEL_CLASSES = {  # by the task of an adapter
    "CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM", "FEATURE_EXTRACTION": "AutoModel", "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification", "QUESTION_ANS": "AutoModelForQuestionAnswering"}
TOKENS = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")  # without such a file transformers makes a tokenizer of a handful of tokens


class WrongUse(Exception):
    """What was typed can't be done; the message says why and what to type."""


def prepare() -> bool:
    """Fetch the base model once, convert it, and print its folder."""
    from helpers.model.base_model import BaseModelError, base_model_path
    from helpers.model.hub import fetch_snapshot

    try:
        model = base_model_path()
        print(model if Path(model).is_dir() else fetch_snapshot(model))  # a name of the hub, to be fetched now and not on the first page
    except (BaseModelError, KeyboardInterrupt) as error:
        return _failed(error if str(error) else STOPPED)
    return True


def ready() -> bool:
    """Say on one page whether this laptop is ready for the course, and what to do if it is not."""
    from helpers.tools.ready import check_laptop

    page = check_laptop()
    print(page)
    return all(line.ok for line in page.lines)


def check(file: str) -> bool:
    """Check a JSONL file of chat records for fine-tuning, and name each fault with its line and what to do."""
    from helpers.data.dataset import read_records
    from helpers.data.files import DatasetError, PathError

    try:
        records, notes = read_records(file, convert=True)
    except PathError as error:
        raise WrongUse(str(error)) from error
    except DatasetError as error:
        print(error)
        return False
    chats = [record["messages"] for record in records]
    print(f"{file}: {len(chats):,} records, no fault; {sum(len(chat) > 3 for chat in chats):,} have several turns, "
          f"{sum(chat[0]['role'] == 'system' for chat in chats):,} a system message.", *notes, sep="\n")
    return True


def diagnose(adapter: str, base: str, question: list[str]) -> bool:
    """Say whether training changed anything in a saved LoRA adapter (PEFT's format, whatever wrote it), and if not, why."""
    folder = helpers.at_home(base)
    if not folder.is_dir() and helpers.HUB_OFFLINE is None:  # before anything imports the hub's library, which reads it once
        os.environ.pop("HF_HUB_OFFLINE", None)  # the base is on the hub, and nobody but the course asked to stay away from it
    from helpers.training.saving import adapter_folder, read_record

    try:
        adapter = str(adapter_folder(adapter))
        record = read_record(adapter) or {"base_dtype": "auto"}
    except ValueError as error:
        raise WrongUse(str(error)) from error
    if (folder / "adapter_config.json").is_file():
        raise WrongUse(f"--base {base}: this is an adapter; give the model that it was trained on")
    import torch
    from transformers import AutoTokenizer

    from helpers.adapter import FAULTS, diagnose_adapter
    from helpers.adapter.checks import HEADED
    from helpers.adapter.diagnosis import lora_config
    from helpers.adapter.state import read_tensors
    from helpers.model import best_device

    place, dtype = str(folder) if folder.is_dir() else base, record["base_dtype"]
    if dtype != "auto" and not all(isinstance(getattr(torch, each, None), torch.dtype) for each in dtype.split(", ")):
        raise WrongUse(f"{adapter}: the record beside the adapter names the number format {dtype!r:.40}, which there is not; delete training_record.json")
    try:
        shapes, config = {name: tensor.shape for name, tensor in read_tensors(Path(adapter)).items()}, lora_config(Path(adapter))
    except ValueError as error:
        return _failed(error)
    try:
        kind = _model_class(config, shapes, place)
        headed = HEADED.search(kind.__name__)  # a head that was trained and saved tells how many labels there are
        heads = [shape for name, shape in shapes.items() if headed and re.search(r"\b(score|classifier(\.out_proj)?|qa_outputs)\.weight$", name)]
        labels = {"num_labels": heads[0][0]} if heads else {}
        model, loading = kind.from_pretrained(place, dtype="auto" if "," in dtype else dtype, output_loading_info=True, **labels)
        model.to(best_device())
    except Exception as error:  # whatever the library makes of what was typed, or of files that are not whole
        raise WrongUse(f"--base {base}: no model can be loaded there ({helpers.first_line(error):.300}); give its folder, or its name on the hub, or "
                       "load it in Python, and pass it to diagnose_adapter") from error
    part = f"{model.base_model_prefix}." if headed else ""  # many a base has no head for a classifier, and no pooler
    if lost := sorted(key for key in loading["missing_keys"] if key.startswith(part) and not re.search(r"\bpooler\.", key)):
        raise WrongUse(f"--base {base}: its checkpoint lacks {len(lost)} of the model's weights ({lost[0]} first), which would be drawn at random; give a whole model")
    known = [where for where in (adapter, place) if any(any(Path(where).glob(name)) for name in TOKENS)]
    saved = [where for where in known if (Path(where) / "tokenizer_config.json").is_file()]  # the adapter's own knows new ones
    if question and not known and folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        raise WrongUse(f"--question: neither {adapter} nor {place} holds a tokenizer; put one there, or ask no question")
    from_where = [*saved, place][0]
    try:
        tokenizer = AutoTokenizer.from_pretrained(from_where) if saved or question else None
    except Exception as error:
        raise WrongUse(f"{from_where}: the tokenizer there can't be loaded ({helpers.first_line(error):.300}); mend or remove its files") from error
    try:
        diagnosis = diagnose_adapter(adapter, tokenizer, base=model, questions=question)
    except ValueError as error:
        return _failed(error)
    print(diagnosis)
    return diagnosis.verdict not in {verdict for verdict, *_ in FAULTS.values()}


def _model_class(config, names: Iterable[str], base: str):
    """Return the class that the adapter names, else of the task's and the base's own the one with more of the adapter's layers."""
    import torch
    import transformers

    from helpers.model.weights import plain_name

    own, layers = transformers.AutoConfig.from_pretrained(base), {plain_name(name).split(".lora_")[0] for name in names}
    named = [(config.auto_mapping or {}).get("base_model_class"), MODEL_CLASSES.get(config.task_type), *(own.architectures or ())]
    found, failure = {}, LookupError("neither the adapter nor this base names a class of transformers that it can be loaded as")
    for kind in filter(None, (getattr(transformers, str(name), None) for name in named)):
        try:
            with torch.device("meta"):
                found[kind] = len(layers & dict(getattr(kind, "from_config", kind)(own).named_modules()).keys())
        except Exception as error:  # it takes no such configuration, or a package is missing
            failure = error
    if not found:
        raise failure
    return max(found, key=found.get)


def kit(folder: str) -> bool:
    """Pack the course, the packages and the model for a room without internet, about 0.6 GB."""
    from helpers.tools.offline_kit import KitError, install_text, pack, size

    try:
        made = pack(folder)
    except (KitError, KeyboardInterrupt) as error:
        return _failed(error if str(error) else STOPPED)
    print(f"\n{made}: wheels {size(made / 'wheels')}, course {size(made / 'course')}. INSTALL.txt says:\n\n{install_text()}")
    return True


def render(folder: Path, executed: Path | None) -> bool:
    """Build the rendered edition: the executed course as pages that need neither a network nor Jupyter."""
    from helpers.tools.rendered_edition import RenderError, build

    try:
        failed = build(folder, executed)
    except RenderError as error:
        raise WrongUse(str(error)) from error
    return not failed or _failed(f"{', '.join(failed)}: a cell failed there; the pages show it")


def _failed(reason: object) -> bool:
    print(reason, file=sys.stderr)
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__, epilog=STATUS)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    made = {}
    for command in (prepare, ready, check, diagnose, kit, render):
        made[command] = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__, epilog=STATUS)
        made[command].set_defaults(command=command)
    made[check].add_argument("file", metavar="FILE.jsonl", help="a JSON object a line: messages, prompt and completion, instruction and output, "
                                                                "or conversations")
    made[diagnose].add_argument("adapter", metavar="ADAPTER", help="the folder that holds adapter_config.json")
    made[diagnose].add_argument("--base", required=True, metavar="MODEL", help="the model that it was trained on: a folder, or a name on the hub")
    made[diagnose].add_argument("--question", action="append", default=[], metavar="TEXT", help="what it was taught; may be given several times")
    made[kit].add_argument("folder", metavar="FOLDER", help="a new folder, or an empty one")
    made[render].add_argument("folder", type=Path, metavar="FOLDER", help="where the pages go")
    made[render].add_argument("executed", type=Path, nargs="?", metavar="EXECUTED", help="notebooks that were run already, as pytest leaves them "
                                                                                         "in outputs/executed; what is not there, or is another version, is run now")
    return parser


def main() -> int:
    """Run the command that was typed; return its exit status."""
    options = vars(_parser().parse_args())
    try:
        status = int(not options.pop("command")(**options))
        if sys.stdout:  # `>&-` closes it
            sys.stdout.flush()
        return status
    except WrongUse as error:
        _failed(str(error))
        return 2
    except KeyboardInterrupt:
        _failed("Stopped.")
        return 1
    except OSError as error:  # nobody reads any more, as behind `| head`, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more when it ends
        closed = isinstance(error, BrokenPipeError) or os.name == "nt" and error.errno == errno.EINVAL and not error.filename
        if not closed:
            _failed(f"{error.filename or 'the output'}: {error.strerror or error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
