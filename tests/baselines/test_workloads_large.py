"""What the large workloads read, make and refuse."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from baselines.workloads import Workload, WorkloadError, cifar10, gpt, imagenet, load, roberta
from baselines.workloads.data import corpus, tokens
from baselines.workloads.data.images import list_images
from tests.support.workload_data import (
    make_cifar,
    make_imagenet,
    make_images,
    tiny_gpt,
    tiny_imagenet,
    tiny_roberta,
    write_words,
)

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("words") / "words.txt")


@pytest.fixture(scope="module")
def roberta_of_words(words: Path) -> Workload:
    return tiny_roberta(words)


def write_folder(folder: Path, words: Path, names: tuple[str, str, str]) -> list[bytes]:
    """The words as three files, a third each."""
    text = words.read_bytes()
    third = len(text) // 3
    parts = [text[i * third : (i + 1) * third] for i in range(3)]
    for name, part in zip(names, parts, strict=True):
        (folder / name).write_bytes(part)
    return parts


def test_a_folder_in_three_parts_is_read_as_it_is(tmp_path: Path, words: Path) -> None:
    parts = write_folder(
        tmp_path, words, ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
    )
    (tmp_path / "README.md").write_text("train")
    found = corpus.read(tmp_path)
    assert [getattr(found, name) for name in PARTS] == parts
    assert found.data["bytes"] == sum(map(len, parts))


def test_the_digest_of_a_folder_knows_where_a_part_ends(tmp_path: Path, words: Path) -> None:
    names = ("train.txt", "valid.txt", "test.txt")
    train, valid, _ = write_folder(tmp_path, words, names)
    before = corpus.read(tmp_path).data["sha256"]
    (tmp_path / "train.txt").write_bytes(train + valid[:1])
    (tmp_path / "valid.txt").write_bytes(valid[1:])
    assert corpus.read(tmp_path).data["sha256"] != before


@pytest.mark.slow
def test_what_datasets_saved_is_read(tmp_path: Path, words: Path) -> None:
    datasets = pytest.importorskip("datasets")
    lines = words.read_text().splitlines()
    third = len(lines) // 3
    rows = [lines[i * third : (i + 1) * third] for i in range(3)]
    saved = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"text": [f"{line}\n" for line in part]})
            for name, part in zip(PARTS, rows, strict=True)
        }
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    found = corpus.read(tmp_path / "saved")
    assert [getattr(found, name).decode().split("\n") for name in PARTS] == rows


def test_a_missing_part_of_a_text_is_named(tmp_path: Path, words: Path) -> None:
    write_folder(tmp_path, words, ("train.txt", "dev.txt", "test.txt"))
    with pytest.raises(WorkloadError, match=r"'valid' in its name, .* holds dev.txt, test.txt"):
        corpus.read(tmp_path)
    with pytest.raises(WorkloadError, match="nowhere: No such file or directory"):
        corpus.read(tmp_path / "nowhere")
    (tmp_path / "dev.txt").rename(tmp_path / "valid.txt")
    (tmp_path / "test.txt").write_text("short")
    with pytest.raises(WorkloadError, match=r"the test part of .* has 5 bytes"):
        corpus.read(tmp_path)


def test_tokens_are_the_text(words: Path) -> None:
    text = words.read_bytes()
    pieces = tokens.tokenizer(text, 400, None)
    assert pieces.decode(tokens.encode(pieces, text).tolist()) == text.decode()


def test_only_the_training_part_is_learned_from(words: Path) -> None:
    train, test = words.read_bytes()[:60_000], b"\xc3\x9e\xc3\xa6r \xc3\x9e\xc3\xa6r " * 4000
    pieces = tokens.tokenizer(train, 400, None)
    assert len(tokens.encode(pieces, test)) > 4 * 4000


def test_a_tokenizer_beside_the_text_is_used(tmp_path: Path, words: Path) -> None:
    write_folder(tmp_path, words, ("train.txt", "valid.txt", "test.txt"))
    tokens.tokenizer(words.read_bytes(), 333, None).save(str(tmp_path / "tokenizer.json"))
    size = gpt.Size(layers=1, width=16, heads=2, context=16, vocabulary=400)
    workload = gpt.workload(corpus.read(tmp_path), size, "own", tmp_path)
    assert workload.signature["vocabulary"] == 333
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WorkloadError, match=r"tokenizer.json is no tokenizer: "):
        gpt.workload(corpus.read(tmp_path), size, "own", tmp_path)


def test_gpt_small_is_gpt_2() -> None:
    """124 million parameters, as published, embeddings tied; counted without making them."""
    with torch.device("meta"):
        model = gpt.make_model(gpt.SIZES["small"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_gpt_begins_with_the_weights_of_gpt_2() -> None:
    torch.manual_seed(0)
    model = gpt.make_model(gpt.Size(layers=8, width=64, heads=2, context=64, vocabulary=100))
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() == 2}
    for name, found in spread.items():
        into_residual = name.endswith(("out.weight", "mlp.2.weight"))
        assert found == pytest.approx(0.02 / 4 if into_residual else 0.02, rel=0.06), name
    assert sum(found < 0.01 for found in spread.values()) == 16


def test_gpt_begins_at_the_entropy_of_its_vocabulary(words: Path) -> None:
    workload = tiny_gpt(words)
    torch.manual_seed(0)
    uniform = torch.tensor(float(workload.signature["vocabulary"])).log()
    assert workload.evaluate(workload.make_model()) == pytest.approx(float(uniform), abs=0.1)


@pytest.mark.slow
def test_roberta_base_is_the_published_one() -> None:
    size = roberta.SIZES["base"]
    vocabulary = roberta.Vocabulary(size.vocabulary, begin=0, padding=1, end=2, mask=50264)
    with torch.device("meta"):
        model = roberta.make_model(size, vocabulary)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_697_433


def test_masks_are_those_of_bert() -> None:
    vocabulary = roberta.Vocabulary(size=1000, begin=0, padding=1, end=2, mask=4)
    rows = torch.randint(5, 1000, (400, 500), generator=torch.Generator().manual_seed(0))
    inputs, targets = roberta.masked(rows, vocabulary, torch.Generator().manual_seed(1))
    assert inputs.shape == targets.shape == (400, 502)
    assert (inputs[:, 0] == 0).all()
    assert (inputs[:, -1] == 2).all()
    assert (targets[:, [0, -1]] == roberta.IGNORED).all()
    inputs, targets = inputs[:, 1:-1], targets[:, 1:-1]
    predicted = targets != roberta.IGNORED
    assert torch.equal(targets[predicted], rows[predicted])
    assert torch.equal(inputs[~predicted], rows[~predicted])
    # 200,000 tokens, 30,000 of them targets: five standard deviations are 0.4% and 1.2%.
    assert predicted.float().mean() == pytest.approx(0.15, abs=0.004)
    seen, meant = inputs[predicted], rows[predicted]
    assert (seen == 4).float().mean() == pytest.approx(0.8, abs=0.012)
    assert (seen == meant).float().mean() == pytest.approx(0.1, abs=0.012)
    assert ((seen != 4) & (seen != meant)).float().mean() == pytest.approx(0.1, abs=0.012)


@pytest.mark.slow
def test_masks_are_drawn_anew_for_each_batch(roberta_of_words: Workload) -> None:
    batches = itertools.islice(roberta_of_words.batches(0), 2)
    masks = [targets != roberta.IGNORED for _, targets in batches]
    assert not torch.equal(*masks)


@pytest.mark.slow
def test_roberta_is_measured_per_masked_token(roberta_of_words: Workload) -> None:
    workload = roberta_of_words
    torch.manual_seed(0)
    model = workload.make_model()
    inputs, targets = next(workload.batches(0))
    model.eval()
    naive = []
    for row, target in zip(inputs, targets, strict=True):
        scores = model(input_ids=row[None]).logits[0].detach().double().log_softmax(-1)
        naive += [-float(scores[i, t]) for i, t in enumerate(target.tolist()) if t >= 0]
    mean = pytest.approx(sum(naive) / len(naive), rel=1e-4)
    assert roberta.evaluate(model, (inputs, targets), rows=3) == mean
    assert workload.loss(model, (inputs, targets)).item() == mean


@pytest.mark.slow
def test_roberta_on_wikitext(wikitext: Path) -> None:
    workload = tiny_roberta(wikitext)
    assert workload.data["source"] == "valid.txt"
    assert workload.data["tokens"] > 100_000
    torch.manual_seed(0)
    assert 5.5 < workload.evaluate(workload.make_model()) < 6.5


@pytest.mark.parametrize(
    ("name", "missing", "said"),
    [
        ("imagenet", "torchvision", r"torchvision is needed .*: install the build that goes with"),
        ("roberta", "transformers", r"transformers is needed .*: pip install 'lawa-opt\["),
        ("gpt-mini", "tokenizers", r"`tokenizers` is needed .*: pip install 'lawa-opt\["),
        ("cifar10", "PIL", r"Pillow is needed to read images .*: pip install pillow"),
    ],
)
def test_a_missing_library_is_named(
    name: str,
    missing: str,
    said: str,
    tmp_path: Path,
    words: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_cifar(tmp_path) if name in ("cifar10", "imagenet") else words
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(WorkloadError, match=said) as raised:
        load(name, data)
    assert "\n" not in str(raised.value)


def test_wikitext_103_without_datasets_or_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(WorkloadError, match=r"`datasets` is needed .* or give --data PATH"):
        load("roberta")


@pytest.mark.slow
def test_a_hub_out_of_reach_is_said(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    script = "from baselines.workloads import load; load('roberta-mini')"
    # Its cache is elsewhere, and it may not go online: what a cluster's nodes are like.
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "could not be had from the hub" in done.stderr.splitlines()[-1]
    assert "--data PATH" in done.stderr.splitlines()[-1]


def test_images_are_divided_class_by_class(tmp_path: Path) -> None:
    make_images(tmp_path, 25, "png", 0)
    found = list_images(tmp_path)
    train, held_out = found.split(10)
    assert found.classes == ("above", "below", "even")
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(75))
    names = [(found.paths[i].parent.name, found.paths[i].name) for i in held_out.tolist()]
    assert names == [(c, f"{n:04}.png") for c in found.classes for n in (9, 19)]


@pytest.mark.slow
def test_reading_in_other_processes_changes_nothing(tmp_path: Path) -> None:
    here = tiny_imagenet(make_imagenet(tmp_path))
    there = tiny_imagenet(tmp_path, readers=2)
    for one, other in zip(
        itertools.islice(here.batches(3, 2), 3), there.batches(3, 2), strict=False
    ):
        assert all(map(torch.equal, one, other))


@pytest.mark.slow
def test_the_same_image_is_augmented_otherwise_in_each_epoch(tmp_path: Path) -> None:
    """An epoch is 19 batches of 16 of 306 images: the same images again, not the same pixels."""
    workload = tiny_imagenet(make_imagenet(tmp_path))
    batches = list(itertools.islice(workload.batches(0), 38))
    first, second = (
        {tuple(image.flatten().tolist()) for inputs, _ in epoch for image in inputs}
        for epoch in (batches[:19], batches[19:])
    )
    assert len(first) == len(second) == 19 * 16
    assert not first & second


@pytest.mark.slow
def test_statistics_batches_of_imagenet_are_read_anew(tmp_path: Path) -> None:
    workload = tiny_imagenet(make_imagenet(tmp_path))
    naive = [
        inputs for inputs, _ in itertools.islice(workload.batches(0), imagenet.STATISTICS_BATCHES)
    ]
    assert len(workload.bn_batches) == len(naive)
    assert all(map(torch.equal, workload.bn_batches, naive))
    assert torch.equal(workload.bn_batches[3], naive[3])


def test_resnet_20_is_the_published_one() -> None:
    """0.27 million parameters; the 1x1 ways around add 2,752 to He et al.'s 269,722."""
    model = cifar10.resnet(10, cifar10.BLOCKS)
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722 + 2_752
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_augmented_images_are_moved_and_mirrored_ones() -> None:
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).float() + 1
    augmented = cifar10._augmented(images, torch.Generator().manual_seed(0))
    for image, result in zip(images, augmented, strict=True):
        padded = torch.zeros(3, 16, 16)
        padded[:, 4:12, 4:12] = image
        naive = [
            crop
            for down in range(9)
            for right in range(9)
            for crop in (
                padded[:, down : down + 8, right : right + 8],
                padded[:, down : down + 8, right : right + 8].flip(2),
            )
        ]
        assert any(torch.equal(result, crop) for crop in naive)


def test_images_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="train: No such file or directory"):
        cifar10.load(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(
        WorkloadError, match=r"a folder of images .* for each class: cat holds none"
    ):
        cifar10.load(tmp_path)
    (tmp_path / "train" / "cat").rmdir()
    make_images(tmp_path / "train", 60, "png", 0)
    make_images(tmp_path / "test", 2, "png", 0)
    (tmp_path / "test" / "even").rename(tmp_path / "test" / "odd")
    with pytest.raises(WorkloadError, match="in one of them alone: even, odd"):
        cifar10.load(tmp_path)
    (tmp_path / "test" / "odd").rename(tmp_path / "test" / "even")
    victim = tmp_path / "test" / "even" / "0001.png"
    victim.write_bytes(b"no image")
    with pytest.raises(WorkloadError, match=r"0001.png cannot be read as an image"):
        cifar10.load(tmp_path)
    Image.new("RGB", (9, 9)).save(victim)
    with pytest.raises(
        WorkloadError, match=r"0001.png: .* this one is \(9, 9\) and not \(16, 16\)"
    ):
        cifar10.load(tmp_path)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "train", 5, "png", 0)
    make_images(tmp_path / "test", 5, "png", 0)
    with pytest.raises(WorkloadError, match="train has 15 images; 128 for training"):
        cifar10.load(tmp_path)


def test_imagenet_with_torchvision(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", exc_type=Exception)
    workload = imagenet.load(make_imagenet(tmp_path))
    torch.manual_seed(0)
    model = workload.make_model()
    # As published, but for the last layer: three classes instead of a thousand.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == 25_557_032 - 997 * 2049
    inputs, _ = next(workload.batches(0))
    assert inputs.shape == (imagenet.BATCH, 3, 224, 224)
