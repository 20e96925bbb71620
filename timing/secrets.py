"""Secrets that no message or file may hold: passwords, tokens, in variables or an address."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote, urlsplit

# Where MLflow, and what it keeps files in, look for a password or a token.
_SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_SECRET_OPTION = re.compile("passw|pwd|token|secret|key|odbc_connect", re.IGNORECASE)
# A shorter one keeps nothing secret, and may be a part of any word or number.
_FEWEST_CHARACTERS = 4


def hide(text: str) -> str:
    """Return the text without the secrets of the environment and of any address in it."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return re.sub(r"://[^/\s'\"]*@", "://", text)


def _secrets() -> list[str]:
    """Return the passwords and tokens that the environment has for MLflow, the longest first."""
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    for name, address in os.environ.items():
        if name.startswith("MLFLOW_") and "://" in address:
            whole = user_and_password(address)
            user, colon, password = whole.partition(":")
            # A user without a password is a token.
            found |= {whole, *_spellings(password if colon else user)}
            for pair in address.partition("?")[2].split("&"):
                option, _, value = pair.partition("=")
                if _SECRET_OPTION.search(option):
                    found |= _spellings(value)
    long_enough = (secret for secret in found if len(secret) >= _FEWEST_CHARACTERS)
    return sorted(long_enough, key=len, reverse=True)


def _spellings(secret: str) -> set[str]:
    return {secret, unquote(secret), quote(unquote(secret), safe="")}


def user_and_password(address: str) -> str:
    """Return what stands before the host of an address, as it is spelt; empty if nothing does."""
    rest = address.partition("://")[2]
    try:
        urlsplit(address).port  # noqa: B018
    except ValueError:
        # A password with a bare "/" in it ends the host too early, for all who read the address.
        return rest.rpartition("@")[0]
    return re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[0]
