"""What is shown of an address, or of anything else, never has a secret in it."""

import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from baselines.tracking.store_address import take_password_out
from timing.secrets import hide

# All that an address, a shell or a regular expression has its own meaning for; no "*", by which a
# secret is replaced.
SECRETS = st.text("aZ09éß -._~:/?#[]@!$&'()+,;=%\\^{}|\"<>", min_size=4, max_size=12)
SCHEMES = st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "mssql", "unknown"])


def told(*, address: str, password: str) -> str:
    return (
        f"API request to {address}/api failed: '{address}'. connect(password={password!r}) of "
        f"{address}, {quote(password, safe='')} and {unquote(password)}"
    )


@given(SCHEMES, st.text("abc@:/ü", max_size=5), SECRETS)
def test_a_password_in_an_address_is_hidden(scheme: str, user: str, password: str) -> None:
    in_address = quote(password, safe="")
    address = f"{scheme}://{quote(user, safe='')}:{in_address}@host.org:5000/path"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        hidden = hide(told(address=address, password=password))
    assert password not in hidden
    assert in_address not in hidden
    assert "API request to" in hidden or "API" in password


@given(SCHEMES, SECRETS.filter(lambda text: not set(text) & set(" '\"")))
def test_so_is_one_that_should_have_been_quoted(scheme: str, password: str) -> None:
    # One that reads as a host or a port, and a path, is no password for all who read the address.
    assume(not re.search("(^[0-9]*|@.*)[/?#]", password))
    address = f"{scheme}://user:{password}@host.org:5000"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        assert password not in hide(told(address=address, password=password))


@given(
    SECRETS,
    st.sampled_from(["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"]),
)
def test_so_is_one_of_the_environment(secret: str, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, secret)
        assert secret not in hide(f"401 for {secret!r}, {secret}")


@given(SECRETS)
def test_so_is_one_among_the_options_of_an_address(secret: str) -> None:
    in_address = quote(secret, safe="")
    address = f"postgresql://host/db?user=me&password={in_address}&connect_timeout=7"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        hidden = hide(f"{address} {secret}")
    assert secret not in hidden
    assert in_address not in hidden


def test_an_address_that_is_not_the_store_s_loses_its_user_too() -> None:
    assert hide("GET https://me:word@host/a@b: 404") == "GET https://host/a@b: 404"


@pytest.mark.parametrize(
    "address", ["http://host:5000/a@b", "sqlite:////tmp/a@b/mlflow.db", "file:///x@y/mlruns"]
)
def test_an_address_without_a_secret_stays_as_it_is(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert hide(f"sent to {address}") == f"sent to {address}"
    take_password_out()
    assert hide(address) == address
