"""Files of evaluations' Records: the same form as bench's, told apart by their kind."""

from pathlib import Path
from typing import Any

from perwatt.errors import RecordError
from perwatt.lab.evaluation.record import KIND, READABLE_VERSIONS, EvaluationRecord
from perwatt.lab.record_file import read_fields, save_text, to_text, validated


def save(record: EvaluationRecord, folder: Path) -> Path:
    """Write the Record into the folder and return its path. Raises OutputError."""
    return save_text(to_text(record), f"perwatt-{KIND}", record.created, record.digest, folder)


def load(path: Path) -> EvaluationRecord:
    """Read an evaluation's Record. Raises RecordError."""
    fields = read_fields(path)
    if fields.get("kind") != KIND:
        raise RecordError(
            f"{path}: expected a Record of kind {KIND!r}, got {fields.get('kind')!r}; choose another file"
        )
    return validated(EvaluationRecord, fields, READABLE_VERSIONS, path)


def is_evaluation(path: Path) -> bool:
    """Return whether a Record file is an evaluation's. Raises RecordError when it is no Record."""
    return read_fields(path).get("kind") == KIND


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an evaluation's Record."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **EvaluationRecord.model_json_schema(mode="serialization"),
    }
