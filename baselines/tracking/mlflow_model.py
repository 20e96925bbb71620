"""Describe an exported model as MLflow reads models, so that `mlflow.pytorch` loads it."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from baselines.tracking.mlflow_store import NeedsUserError
from baselines.training.exported_model import EXAMPLE, GRAPH, SHAPES


@contextmanager
def describe(folder: Path) -> Iterator[Path]:
    """Give a folder with an exported model, and beside it what MLflow needs.

    By hand, since `mlflow.pytorch.save_model` imports Lightning where that is installed, and looks
    through all packages there are: ten seconds, for a file of thirty lines. The model itself is
    linked to, since it may be large.

    Raises:
        NeedsUserError: a file of the model is not there, or is none of its own.
    """
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        for part in (GRAPH, EXAMPLE, SHAPES):
            source = folder / part
            # A link in a folder that came from elsewhere may lead to any file of this machine.
            inside = source.resolve().is_relative_to(folder.parent.resolve())
            if not inside or not source.is_file():
                raise NeedsUserError(
                    f"the model in {folder} is not whole: there is no file {part}. Remove "
                    f"{folder.parent} to train it again"
                )
            (made / part).parent.mkdir(exist_ok=True)
            (made / part).symlink_to(source.absolute())
        _write(made)
        yield made


def _write(folder: Path) -> None:
    shapes = json.loads((folder / SHAPES).read_text())
    versions = [f"mlflow=={mlflow.__version__}", f"torch=={shapes['torch'].partition('+')[0]}"]
    (folder / "requirements.txt").write_text("\n".join(versions))
    python = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    # YAML holds all of JSON.
    (folder / "python_env.yaml").write_text(json.dumps(python))
    inputs, outputs = (
        Schema([TensorSpec(np.dtype(shapes[name]["dtype"]), shapes[name]["shape"])])
        for name in ("inputs", "outputs")
    )
    model = mlflow.models.Model(
        signature=ModelSignature(inputs, outputs),
        saved_input_example_info={"artifact_path": EXAMPLE, "type": "ndarray"},
    )
    data = str(Path(GRAPH).parent)
    model.add_flavor("pytorch", model_data=data, pytorch_version=shapes["torch"], code=None)
    model.add_flavor(
        "python_function",
        loader_module="mlflow.pytorch",
        data=data,
        env={"virtualenv": "python_env.yaml"},
        python_version=platform.python_version(),
        config={"device": None},
    )
    model.save(str(folder / "MLmodel"))
