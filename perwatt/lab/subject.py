"""What is measured: a network as an ONNX file at one batch size, its inputs from photographs, its reference outputs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from perwatt.errors import InputError, NetworkError
from perwatt.graph import Graph, read, total_cost, with_batch, write
from perwatt.lab.engine import Device, Job, Precision
from perwatt.lab.photographs import input_batches
from perwatt.lab.record import NetworkFacts, Photograph
from perwatt.networks import NETWORKS
from perwatt.package.preprocessing import Preprocessing

# The usual way to prepare photographs for networks trained on ImageNet, for files that do not say (they never do).
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_SCALE = (1 / 58.395, 1 / 57.12, 1 / 57.375)
_RESIZE = 256 / 224


@dataclass(frozen=True)
class Subject:
    """One network to measure: its facts, its file (or a path, with data beside it), how its inputs are made."""

    facts: NetworkFacts
    source: bytes | Path
    how: Preprocessing


@dataclass(frozen=True)
class Case:
    """One network at one batch size, ready for workers: files on disk, names and shapes for a Job.

    `tuning_path`: images to find the numbers of precision auto on, None where nobody asked for it.
    """

    subject: Subject
    batch: int
    model_path: Path
    inputs_path: Path
    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    inputs: int
    tuning_path: Path | None = None

    def job(self, precision: Precision, threads: int, device: Device, patience_s: float) -> Job:
        """Return what an engine is asked to load."""
        return Job(
            model_path=str(self.model_path),
            input_name=self.input_name,
            input_shape=self.input_shape,
            output_name=self.output_name,
            precision=precision,
            threads=threads,
            device=device,
            patience_s=patience_s,
            tuning_path=str(self.tuning_path) if precision == "auto" and self.tuning_path is not None else None,
        )


def find(name: str) -> Subject:
    """Return the built-in network of this name, or the network of the ONNX file at this path.

    Raises InputError when there is neither, NetworkError when the file cannot be measured.
    """
    if name in NETWORKS:
        network = NETWORKS[name]
        graph = network.build()
        content = write(graph)
        how = Preprocessing(
            size=network.input_size,
            resize_to=network.resize_to,
            interpolation=network.interpolation,
            channel_order=network.channel_order,
            mean=network.mean,
            scale=network.scale,
        )
        return Subject(_facts(name, "built-in", content, graph, how), content, how)
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"network: expected an ONNX file or one of {', '.join(NETWORKS)}, got {name!r}; choose one of them"
        )
    graph = read(path, batch=1)
    how = _guess(name, graph)
    return Subject(_facts(path.stem, path.name, path.read_bytes(), graph, how), path, how)


def prepare(
    subject: Subject, batch: int, inputs: int, photos: Sequence[Path], folder: Path, seed: int, tuning_images: int = 0
) -> tuple[Case, tuple[Photograph, ...]]:
    """Write the network at this batch size and `inputs` input batches into the folder; return both and the photographs.

    `tuning_images`: as many further crops, of another draw, are written for precision auto to be found on.
    Raises NetworkError when the network does not take this batch, InputError when a photograph cannot be used.
    """
    content = with_batch(subject.source, batch)
    graph = read(content)
    shape = graph.values[graph.inputs[0]].shape
    if shape[0] != batch:
        raise NetworkError(
            f"{subject.facts.name}: expected to set the batch to {batch}, its first dimension stays {shape[0]}; "
            "give a network whose first dimension is the batch"
        )
    stem = f"{hashlib.sha256(subject.facts.name.encode()).hexdigest()[:8]}-{batch}"
    model_path, inputs_path = folder / f"{stem}.onnx", folder / f"{stem}.npy"
    model_path.write_bytes(content)
    images, used = input_batches(subject.how, photos, batch, inputs, seed)
    np.save(inputs_path, images)
    tuning_path = None
    if tuning_images:
        tuning_path = folder / f"{stem}-tuning.npy"
        np.save(tuning_path, input_batches(subject.how, photos, 1, tuning_images, seed + 1)[0][:, 0])
    case = Case(
        subject=subject,
        batch=batch,
        model_path=model_path,
        inputs_path=inputs_path,
        input_name=graph.inputs[0],
        input_shape=shape,
        output_name=graph.outputs[0],
        inputs=inputs,
        tuning_path=tuning_path,
    )
    return case, used


def _facts(name: str, source: str, content: bytes, graph: Graph, how: Preprocessing) -> NetworkFacts:
    return NetworkFacts(
        name=name,
        source=source,
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=sum(array.size for array in graph.constants.values() if np.issubdtype(array.dtype, np.floating)),
        multiply_adds=total_cost(graph).multiply_adds,
        input_shape=graph.values[graph.inputs[0]].shape[1:],
        preprocessing={key: json.dumps(value) for key, value in asdict(how).items()},
    )


def _guess(name: str, graph: Graph) -> Preprocessing:
    """Return the usual preprocessing for a network that comes without one."""
    if len(graph.inputs) != 1:
        raise NetworkError(
            f"{name}: expected one input, got {len(graph.inputs)} ({', '.join(graph.inputs)}); "
            "give a network that takes images only"
        )
    value = graph.values[graph.inputs[0]]
    if len(value.shape) != 4 or value.shape[1] not in (1, 3) or value.dtype != np.float32:
        raise NetworkError(
            f"{name}: expected a float32 input [batch, 1 or 3, height, width], "
            f"got {value.dtype.name} {list(value.shape)}; give an image network in ONNX's layout"
        )
    size = (value.shape[2], value.shape[3])
    colour = value.shape[1] == 3
    return Preprocessing(
        size=size,
        resize_to=round(min(size) * _RESIZE),
        interpolation="bilinear",
        channel_order="rgb" if colour else "grey",
        mean=_IMAGENET_MEAN if colour else (0.0,),
        scale=_IMAGENET_SCALE if colour else (1 / 255,),
    )
