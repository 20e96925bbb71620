"""The embedded workloads: real data, divided once and for all."""

import hashlib
import itertools
from pathlib import Path

import pytest
import torch

from baselines.workloads import digits, pydocs, text
from baselines.workloads.workload import Workload


@pytest.fixture(scope="module", params=[digits, pydocs], ids=["digits", "pydocs"])
def workload(request: pytest.FixtureRequest) -> Workload:
    return request.param.load()


def test_batches_depend_on_the_seed_alone(workload: Workload) -> None:
    def some(seed: int) -> list[torch.Tensor]:
        return [t for batch in itertools.islice(workload.batches(seed), 30) for t in batch]

    first, again, other = some(1), some(1), some(2)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_the_weights_of_a_seed_are_the_same_for_all_methods(workload: Workload) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(workload.make_model())
    pairs = zip(*(model.state_dict().values() for model in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_evaluation_changes_nothing(workload: Workload) -> None:
    torch.manual_seed(0)
    model = workload.make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert workload.evaluate(model) == workload.evaluate(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_training_lowers_the_metric(workload: Workload) -> None:
    torch.manual_seed(0)
    model = workload.make_model().train()
    optimizer = workload.make_optimizer(model, workload.learning_rate)
    before = workload.evaluate(model)
    for batch in itertools.islice(workload.batches(0), 40):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    assert workload.evaluate(model) < 0.7 * before


def test_the_digest_is_recorded(workload: Workload) -> None:
    assert len(workload.data["sha256"]) == 64


def test_text_is_divided_by_chunks_and_nothing_is_in_two_parts() -> None:
    # Each chunk says its own number, so a part can be read back as the chunks in it.
    chunks = [f"{i:04d}".encode() * (text.CHUNK_BYTES // 4) for i in range(47)]
    parts = text.split(b"".join(chunks))
    numbers = {
        name: {int(bytes(part[at : at + 4].tolist())) for at in range(0, len(part), 4)}
        for name, part in parts.items()
    }
    assert set.union(*numbers.values()) == set(range(47))
    assert sum(map(len, numbers.values())) == 47
    assert numbers["validation"] == {8, 18, 28, 38}
    assert numbers["test"] == {9, 19, 29, 39}


def test_a_target_is_the_byte_after_its_input() -> None:
    workload = pydocs.load()
    inputs, targets = next(workload.batches(0))
    assert inputs.shape == targets.shape == (text.BATCH, text.CONTEXT)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_the_transformer_does_not_see_the_future() -> None:
    torch.manual_seed(0)
    model = text.Transformer().eval()
    tokens = torch.randint(256, (1, text.CONTEXT))
    changed = tokens.clone()
    changed[0, 40:] = 0
    with torch.no_grad():
        assert torch.equal(model(tokens)[0, :40], model(changed)[0, :40])


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short")
    with pytest.raises(ValueError, match=r"short.txt has 9 bytes; at least 20480 are needed"):
        text.load(path)


def test_wikitext_is_read(wikitext: Path) -> None:
    workload = text.load(wikitext)
    raw = wikitext.read_bytes()
    assert workload.data["sha256"] == hashlib.sha256(raw).hexdigest()
    assert workload.data["bytes"] == len(raw)
    torch.manual_seed(0)
    assert 4 < workload.evaluate(workload.make_model()) < 8
