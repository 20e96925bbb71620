"""The workloads that come along: real data, divided once and for all."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.workloads import Workload, WorkloadError, digits, pydocs, text
from baselines.workloads.check import errors
from baselines.workloads.data.corpus import CHUNK_BYTES, Corpus
from tests.support.workload_data import (
    Knows,
    make_cifar,
    make_imagenet,
    tiny_cifar,
    tiny_gpt,
    tiny_imagenet,
    tiny_roberta,
    write_words,
)

# Enough to pass an epoch of the small data sets.
MANY = 24

Makers = dict[str, Callable[[Path, Path], Workload]]
MAKERS: Makers = {
    "digits": lambda folder, words: digits.load(),
    "pydocs": lambda folder, words: pydocs.load(),
    "text": lambda folder, words: text.load(words),
    "gpt": lambda folder, words: tiny_gpt(words),
    "roberta": lambda folder, words: tiny_roberta(words),
    "cifar10": lambda folder, words: tiny_cifar(make_cifar(folder)),
    "imagenet": lambda folder, words: tiny_imagenet(make_imagenet(folder)),
}


# The text of a file is read as pydocs is, and is tried on its own below.
SLOW = {"imagenet", "roberta", "text"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MAKERS],
)
def workload(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workload:
    words = write_words(tmp_path_factory.mktemp("words") / "words.txt")
    return MAKERS[request.param](tmp_path_factory.mktemp("images"), words)


def some(workload: Workload, seed: int, start: int = 0, count: int = MANY) -> list[Tensor]:
    return [t for batch in itertools.islice(workload.batches(seed, start), count) for t in batch]


def test_it_keeps_the_contract(workload: Workload) -> None:
    assert errors(workload) == []


def test_batches_depend_on_the_seed_alone(workload: Workload) -> None:
    first, again, other = some(workload, 1), some(workload, 1), some(workload, 2, count=3)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize("start", [1, 2, 23])
def test_a_start_is_the_same_as_skipping(workload: Workload, start: int) -> None:
    naive = list(itertools.islice(workload.batches(7), start, start + 5))
    assert len(naive) == 5
    for fast, slow in zip(workload.batches(7, start), naive, strict=False):
        assert all(map(torch.equal, fast, slow))


def test_batches_leave_torchs_generator_alone(workload: Workload) -> None:
    before = torch.get_rng_state()
    some(workload, 0, count=3)
    some(workload, 0, start=5, count=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_of_a_seed_are_the_same_for_all_methods(workload: Workload) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(workload.make_model())
    pairs = zip(*(model.state_dict().values() for model in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_evaluation_changes_nothing(workload: Workload) -> None:
    torch.manual_seed(0)
    model = workload.make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    for evaluate in (workload.evaluate, workload.evaluate_test):
        assert evaluate(model) == evaluate(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.slow
def test_training_lowers_the_metric_on_both_held_out_parts(workload: Workload) -> None:
    torch.manual_seed(0)
    model = workload.make_model().train()
    # The rates of the large models are not for forty steps of tiny ones.
    optimizer = workload.make_optimizer(model, max(workload.learning_rate, 3e-3))
    before = workload.evaluate(model), workload.evaluate_test(model)
    for batch in itertools.islice(workload.batches(0), 40):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    after = workload.evaluate(model), workload.evaluate_test(model)
    for old, new in zip(before, after, strict=True):
        assert new < 0.95 * old


def test_the_digest_is_recorded(workload: Workload) -> None:
    assert len(workload.data["sha256"]) == 64


def test_text_is_divided_by_chunks_and_nothing_is_in_two_parts() -> None:
    # Each chunk says its own number, so a part can be read back as the chunks in it.
    chunks = [f"{i:04d}".encode() * (CHUNK_BYTES // 4) for i in range(47)]
    corpus = Corpus.split(b"".join(chunks), "numbers")
    parts = {name: getattr(corpus, name) for name in ("train", "validation", "test")}
    numbers = {
        name: {int(part[at : at + 4]) for at in range(0, len(part), 4)}
        for name, part in parts.items()
    }
    assert set.union(*numbers.values()) == set(range(47))
    assert sum(map(len, numbers.values())) == 47
    assert numbers["validation"] == {8, 18, 28, 38}
    assert numbers["test"] == {9, 19, 29, 39}


def test_a_target_is_the_byte_after_its_input() -> None:
    workload = pydocs.load()
    inputs, targets = next(workload.batches(0))
    assert inputs.shape == targets.shape == (text.BATCH, text.SIZE.context)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_the_transformer_does_not_see_the_future() -> None:
    torch.manual_seed(0)
    model = text.Transformer().eval()
    tokens = torch.randint(256, (1, text.SIZE.context))
    changed = tokens.clone()
    changed[0, 40:] = 0
    with torch.no_grad():
        assert torch.equal(model(tokens)[0, :40], model(changed)[0, :40])


@pytest.mark.slow
def test_the_evaluation_of_a_text_is_its_mean_over_all_sequences() -> None:
    torch.manual_seed(0)
    model = text.Transformer()
    stream = torch.randint(256, (20_000,), dtype=torch.uint8)
    part = text.held_out(stream, text.SIZE.context)
    count = len(part[0])
    assert count > text.EVALUATION_TOKENS // text.SIZE.context
    with torch.no_grad():
        naive = [
            float(text.loss(model, (part[0][i : i + 1], part[1][i : i + 1]))) for i in range(count)
        ]
    assert text.evaluate(model, part) == pytest.approx(sum(naive) / count, rel=1e-5)


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short")
    with pytest.raises(WorkloadError, match=r"short.txt has 9 bytes; at least 20480 are needed"):
        text.load(path)


def test_wikitext_is_read(wikitext: Path) -> None:
    workload = text.load(wikitext)
    raw = wikitext.read_bytes()
    assert workload.data["sha256"] == hashlib.sha256(raw).hexdigest()
    assert workload.data["bytes"] == len(raw)
    torch.manual_seed(0)
    assert 4 < workload.evaluate(workload.make_model()) < 8


def test_a_digest_belongs_to_every_workload() -> None:
    workload = digits.load()
    with pytest.raises(ValueError, match="must be the SHA-256 digest of its data"):
        dataclasses.replace(workload, data={"source": "somewhere"})
    with pytest.raises(ValueError, match="goes into file names: 'a/b' must be letters"):
        dataclasses.replace(workload, name="a/b")


@pytest.mark.parametrize(
    ("make", "load", "test"),
    [(make_cifar, tiny_cifar, "test"), (make_imagenet, tiny_imagenet, "val")],
    ids=["cifar10", "imagenet"],
)
def test_the_test_part_of_images_is_a_folder_of_its_own(
    make: Callable[[Path], Path], load: Callable[[Path], Workload], test: str, tmp_path: Path
) -> None:
    """A class of that folder, filled with images of another, is all wrong there and only there."""
    model = Knows()
    workload = load(make(tmp_path))
    assert workload.evaluate(model) == workload.evaluate_test(model) == 0
    above, below = (sorted((tmp_path / test / name).iterdir()) for name in ("above", "below"))
    for one, other in zip(above, below, strict=True):
        one.write_bytes(other.read_bytes())
    workload = load(tmp_path)
    assert workload.evaluate(model) == 0
    assert workload.evaluate_test(model) == pytest.approx(1 / 3)


def test_validation_and_test_part_are_read_apart(workload: Workload) -> None:
    if workload.metric.endswith("error rate"):
        pytest.skip("two parts can have the same share of errors: tested with classes exchanged")
    torch.manual_seed(0)
    model = workload.make_model()
    assert workload.evaluate(model) != workload.evaluate_test(model)


@pytest.mark.slow
def test_the_digest_of_cifar10_is_of_its_pixels(tmp_path: Path) -> None:
    """The same files have the same digest, and another file has another."""
    before = tiny_cifar(make_cifar(tmp_path))
    assert tiny_cifar(tmp_path).data["sha256"] == before.data["sha256"]
    first, second = sorted((tmp_path / "test" / "above").iterdir())[:2]
    first.write_bytes(second.read_bytes())
    assert tiny_cifar(tmp_path).data["sha256"] != before.data["sha256"]
