"""The address of MLflow's store: without its password, and the file that it names."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote

from timing.secrets import user_and_password


def take_password_out() -> None:
    """Move user and password from MLFLOW_TRACKING_URI to where else MLflow looks for them.

    Whatever is said of the address in this process, by whomever, then has no password in it.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    whole = user_and_password(address)
    user, _, password = (unquote(part) for part in whole.partition(":"))
    if address.startswith(("http://", "https://")) and user and password:
        os.environ["MLFLOW_TRACKING_URI"] = address.replace(f"{whole}@", "", 1)
        os.environ["MLFLOW_TRACKING_USERNAME"] = user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password


def sqlite_file(address: str) -> Path | None:
    """Return the file of a SQLite store; its name is quoted in the address."""
    name = _name(address)
    return Path(unquote(name)) if name else None


def _name(address: str) -> str:
    scheme, _, name = address.partition("?")[0].partition("///")
    return name if scheme == "sqlite:" and name != ":memory:" else ""


def placed(address: str) -> tuple[Path, str]:
    """Return a folder, and the store's address from there, at which MLflow makes no other folder.

    It takes the quoted name of a SQLite file for that of a folder, and makes it, beside the right
    one. From its own folder such a file has a name without one. Any other address stays as it is.
    """
    name = _name(address)
    if unquote(name) == name:
        return Path.cwd(), address
    file = Path(unquote(name))
    _, question, options = address.partition("?")
    return file.parent.absolute(), f"sqlite:///{quote(file.name)}{question}{options}"
