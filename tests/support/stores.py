"""Empty stores of MLflow: it takes seconds to make one, so one is made and copied."""

import functools
import shutil
import tempfile
from pathlib import Path

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="mlflow-store-")
    SqlAlchemyStore(f"sqlite:///{folder.name}/mlflow.db", f"{folder.name}/mlruns").engine.dispose()
    return folder


def empty_store(folder: Path) -> str:
    """Return the address of a store in a folder, made there unless it is there already."""
    path = folder / "mlflow.db"
    if not path.exists():
        shutil.copy(Path(_made().name, "mlflow.db"), path)
    return f"sqlite:///{path}"
