"""A training run in a process of its own that kills itself with SIGKILL at a chosen place: FOLDER new|resume PLACE.

PLACE is never, step:N (behind the N-th step of this process), write:N (in the N-th checkpoint, before it gets its name)
or validate:N (in the N-th validation).
"""

import os
import signal
import sys
from pathlib import Path

from perwatt.data.look import look
from perwatt.package.package import Package
from perwatt.train import request, training
from perwatt.train.learner import Learner, Score
from perwatt.train.recipe import recipe_for
from perwatt.train.request import Request
from perwatt.train.training import Watching, train

SEEN = {"step": 0, "write": 0, "validate": 0}


def asked(folder: Path) -> Request:
    """Return the run: 40 steps with everything that draws at random."""
    recipe = recipe_for(
        "quick", "lenet", grey=True, epochs=2, mixup=0.3, ema=0.9, accumulate=2, optimizer="adamw", class_weights=True
    )
    return Request("digits", "lenet", None, recipe, seed=5, out=folder, threads=1)


def reached(kind: str, place: str) -> None:
    """Die, if this is the place."""
    SEEN[kind] += 1
    if place == f"{kind}:{SEEN[kind]}":
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, again: bool, place: str) -> None:
    learn, score, replace = Learner.learn, Learner.score, os.replace

    def learn_and_die(self: Learner, batch: object) -> None:
        learn(self, batch)  # type: ignore[arg-type]
        reached("step", place)

    def score_and_die(self: Learner, batches: object) -> Score:
        found = score(self, batches)  # type: ignore[arg-type]
        reached("validate", place)
        return found

    def replace_and_die(source: object, target: object) -> None:
        if str(target).endswith(".safetensors"):
            reached("write", place)
        replace(source, target)  # type: ignore[arg-type]

    def publish(*arguments: object, **names: object) -> Package | None:
        Path(str(arguments[5])).write_bytes(b"the export has its own tests")
        return None

    Learner.learn, Learner.score = learn_and_die, score_and_die  # type: ignore[method-assign,assignment]
    os.replace, training.publish = replace_and_die, publish  # type: ignore[assignment]
    watching = Watching(look, lambda progress: None, print, lambda text: None, lambda: False)
    train(request.load(folder)[0] if again else asked(folder), watching, again=again, checkpoint_steps=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "resume", sys.argv[3])
