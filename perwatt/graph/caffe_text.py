"""A Caffe network's text (prototxt), parsed, with the fields that are not Caffe's own noted where they stand.

Forks of Caffe add fields, and people misspell them. A field that nobody knows must neither be passed over in silence
nor spoil a file in which it stands inside a layer that inference does not need: it becomes a note in its own message.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from perwatt.errors import NetworkError
from perwatt.graph.caffe_format import ENUMS, STRANGE, text_message

# ResNet-152 takes 60 kB.
MOST_BYTES = 4 * 2**20
MOST_STRANGE = 200
MOST_WORK_BYTES = 32 * 2**20  # each unknown field costs another reading
MOST_LAYERS = 20_000
# Fields of NVIDIA's fork that choose number formats and algorithms, which does not change what a network means.
HARMLESS = frozenset(
    {
        f"{prefix}{way}_{what}"
        for prefix in ("", "default_")
        for way in ("forward", "backward")
        for what in ("type", "math")
    }
    | {"cudnn_math_override", "conv_algos_override", "cudnn_convolution_algo_seeker", "default_cudnn_math_override"}
    | {"default_conv_algos_override", "global_grad_scale", "global_grad_scale_adaptive", "reduce_buckets", "debug"}
)
SOLVER_FIELDS = {"net", "train_net", "test_net", "base_lr", "lr_policy", "max_iter", "solver_mode", "snapshot_prefix"}

_UNKNOWN = re.compile(r'Message type "[^"]*" has no field named "([^"]*)"')
_CHOICE = re.compile(r'Enum type "[^"]*\.([^".]*)" has no value named ([^\s.]*)')
# A text, a comment, a bracket or separator, or anything else up to the next of these.
_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*|[{}<>\[\]:;,]|[^\s{}<>\[\]:;,"\'#]+')


def parse(path: Path) -> Any:
    """Return the NetParameter of a text file; what it says with unknown fields stands in the field STRANGE.

    Raises NetworkError when there is no such file, or it is too large, no text, no Caffe network, or misspelt.
    """
    data = read_bounded(path, MOST_BYTES, "a network's text (prototxt)")
    if b"\0" in data:
        raise NetworkError(
            f"{path}: expected a text (prototxt), got a binary file; give the prototxt first, then the caffemodel"
        )
    text = data.decode("utf-8-sig", "replace")  # comments in other encodings are common, and harmless
    last = ""
    for attempt in range(MOST_STRANGE):
        if attempt * len(text) > MOST_WORK_BYTES:
            break
        try:
            network = text_format.Parse(text, text_message("NetParameter"))
        except text_format.ParseError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None:
                raise NetworkError(
                    f"{path}: expected Caffe's text form, got, at {_plain(error)}; correct it"
                ) from error
            last = unknown[1]
            text = _noted(text, _offset(text, error.GetLine(), error.GetColumn()), last, error.GetLine())
        except RecursionError as error:
            raise NetworkError(f"{path}: expected a network, got brackets within brackets without end") from error
        else:
            return _checked(network, path)
    raise NetworkError(
        f"{path}: expected a Caffe network, got {attempt} fields or more that Caffe does not have, the last is "
        f"{last!r}; is it another kind of file?"
    )


def read_bounded(path: Path, most_bytes: int, what: str) -> bytes:
    """Return a file's bytes; raises NetworkError when it is missing, cannot be read, is empty or larger than that."""
    try:
        if path.is_dir():
            raise NetworkError(f"{path}: expected {what}, got a folder; name the file in it")
        size = path.stat().st_size
        if size > most_bytes:
            raise NetworkError(
                f"{path}: expected {what} of at most {most_bytes} bytes, got {size}; is it another file?"
            )
        data = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"{path}: expected {what}, got {error.strerror}; check the path") from error
    if not data:
        raise NetworkError(f"{path}: expected {what}, got an empty file; export or download it again")
    return data


def _checked(network: Any, path: Path) -> Any:
    strange = [entry.split(" ", 1) for entry in getattr(network, STRANGE)]
    if any(name in SOLVER_FIELDS for _, name in strange):
        raise NetworkError(f"{path}: expected a network, got a solver's settings; give the file that its `net` names")
    if strange:
        line, name = strange[0]
        raise NetworkError(f"{path}: expected the fields of a Caffe network, got {name!r} in line {line}; correct it")
    count = len(network.layer) + len(network.layers)
    if not count:
        raise NetworkError(f"{path}: expected a network, got a text without layers; give the deploy prototxt")
    if count > MOST_LAYERS:
        raise NetworkError(f"{path}: expected at most {MOST_LAYERS} layers, got {count}")
    return network


def _plain(error: text_format.ParseError) -> str:
    """Return protobuf's message without the line of text that it quotes."""
    place = f"line {error.GetLine()}, column {error.GetColumn()}"
    told = re.sub(r"^\d+:\d+ : ", "", str(error))
    choice = _CHOICE.search(told)
    if choice:
        return f"{place}: {choice[2]!r}, which is none of {', '.join(ENUMS[choice[1]])}"
    return f"{place}: {re.sub(r'^(.*): (?=[A-Z])', '', told)[:200]}"


def _offset(text: str, line: int, column: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = text.index("\n", start) + 1
    return start + column - 1


def _noted(text: str, start: int, name: str, line: int) -> str:
    """Return the text in which a note stands in the place of the field that begins at `start`."""
    end = _end_of_field(text, start + len(name))
    note = "" if name in HARMLESS else f'{STRANGE}: "{line} {name}" '
    return f"{text[:start]}{note}{chr(10) * text.count(chr(10), start, end)}{text[end:]}"


def _end_of_field(text: str, start: int) -> int:
    """Return where the field ends whose name ends at `start`: behind its one value, bracket or row of texts."""
    depth, end, seen = 0, start, False
    for token, after in _tokens(text, start):
        if token in "{<[":
            depth += 1
        elif token in "}>]":
            if depth == 0:
                return end
            depth -= 1
        elif depth == 0 and seen and token[0] not in "\"'":
            return end
        elif token == ":" and not seen:
            continue
        end, seen = after, True
        if depth == 0 and token[0] not in "\"'":
            return end
    return end


def _tokens(text: str, start: int) -> Iterator[tuple[str, int]]:
    for found in _TOKEN.finditer(text, start):
        if not found[0].startswith("#"):
            yield found[0], found.end()
