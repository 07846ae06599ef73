"""A client of `perwatt serve` with nothing but Python: a photograph in, labels out; or a tensor in, a tensor out.

python examples/client.py http://127.0.0.1:8000 cat.jpg
python examples/client.py http://127.0.0.1:8000 --tensor 1x3x224x224
"""

import argparse
import array
import json
import math
import random
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# What may be sent again: the server was busy, or about to end.
AGAIN = (429, 503)


def main() -> None:
    """Send one photograph or one random tensor and print what comes back."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("url")
    words.add_argument("photo", nargs="?", type=Path)
    words.add_argument("--model", default="", help="default: the first that the server lists")
    words.add_argument("--tensor", default="", metavar="SHAPE", help="send random numbers of this shape instead")
    words.add_argument("--token", default="")
    words.add_argument("--timeout-ms", type=int, default=5000, help="the deadline of a request")
    given = words.parse_intermixed_args()
    if (given.photo is None) == (not given.tensor):
        words.error("give a photograph, or --tensor SHAPE")
    headers = {"x-request-timeout-ms": str(given.timeout_ms)}
    if given.token:
        headers["authorization"] = f"Bearer {given.token}"
    url = given.url.rstrip("/")
    model = given.model or first_model(url, headers)
    if given.photo is not None:
        for row in classify(url, model, given.photo.read_bytes(), headers):
            print(f"{row['score']:.4f}  {row['label'] or row['index']}")
    else:
        for name, values in infer(url, model, [int(side) for side in given.tensor.split("x")], headers).items():
            print(name, values[:8], "..." if len(values) > 8 else "")


def first_model(url: str, headers: dict[str, str]) -> str:
    """Return the name of the first model that is ready."""
    body, _ = post(f"{url}/v2/repository/index", b'{"ready": true}', headers)
    return str(json.loads(body)[0]["name"])


def classify(url: str, model: str, photo: bytes, headers: dict[str, str]) -> list[dict[str, Any]]:
    """Return the best labels of a photograph, as it came from its file."""
    body, _ = post(f"{url}/v2/models/{model}/classify?top=5", photo, headers)
    labels: list[dict[str, Any]] = json.loads(body)["labels"]
    return labels


def infer(url: str, model: str, shape: list[int], headers: dict[str, str]) -> dict[str, list[float]]:
    """Return every output for a tensor of random numbers, by the binary form of the protocol.

    The body is JSON and the tensor's bytes after it; a header tells where the one ends.
    """
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v2/models/{model}", headers=headers)) as answer:
        facts = json.load(answer)
    tensor = array.array("f", [random.gauss(0, 1) for _ in range(math.prod(shape))]).tobytes()
    named = {"name": facts["inputs"][0]["name"], "shape": shape, "datatype": "FP32"}
    described = {
        "inputs": [{**named, "parameters": {"binary_data_size": len(tensor)}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(described).encode()
    body, answered = post(
        f"{url}/v2/models/{model}/infer",
        head + tensor,
        {**headers, "inference-header-content-length": str(len(head))},
    )
    end = int(answered["inference-header-content-length"])
    outputs = {}
    for output in json.loads(body[:end])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = list(array.array("f", body[end : end + size]))
        end += size
    return outputs


def post(url: str, body: bytes, headers: dict[str, str], attempts: int = 5) -> tuple[bytes, Any]:
    """Return the body and the headers of an answer; a refused request is sent again when the server says to."""
    for attempt in range(attempts):
        request = urllib.request.Request(url, body, {"content-type": "application/octet-stream", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            message = json.loads(error.read())["error"]
            if error.code not in AGAIN or attempt == attempts - 1:
                raise SystemExit(f"{error.code}: {message}") from error
            # Clients that all came back at the same moment would be refused again.
            time.sleep(float(error.headers.get("retry-after", "0.1")) * random.uniform(1.0, 1.5))
    raise AssertionError("every attempt returns or raises")


if __name__ == "__main__":
    main()
