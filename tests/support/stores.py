"""Empty stores of MLflow: it takes seconds to make one, so one is made and copied."""

import logging
import shutil
from pathlib import Path

from tests.support.once import once


def _make(folder: Path) -> None:
    # Not at the top: importing it takes seconds too, and most tests need no store.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # Whichever test asks first, what it reads of standard error is its own.
    logging.disable(logging.INFO)
    try:
        SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", f"{folder}/mlruns").engine.dispose()
    finally:
        logging.disable(logging.NOTSET)


def empty_store(folder: Path) -> str:
    """Return the address of a store in a folder, made there unless it is there already."""
    path = folder / "mlflow.db"
    if not path.exists():
        shutil.copy(once("mlflow-store", _make) / "mlflow.db", path)
    return f"sqlite:///{path}"
