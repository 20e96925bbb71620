"""`with_lawa` over the real Trainer: its own optimizer, the same training, the average read."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lawa_opt import LAWA
from tests.support.no_network import refuse_connections

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="the frameworks extra is not installed", exc_type=ImportError
    )
    safetensors = pytest.importorskip("safetensors.torch")
    from lawa_opt.transformers import with_lawa

pytestmark = pytest.mark.slow

K, STEPS, EVERY = 3, 9, 3


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_connections(monkeypatch, "the Trainer")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Noted(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Writes down the weights after each step, and as evaluated."""

    def __init__(self) -> None:
        self.live: list[dict[str, Tensor]] = []
        self.evaluated: list[dict[str, Tensor]] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.live.append(weights_of(model))

    def on_evaluate(self, *_: Any, model: Any, **__: Any) -> None:
        self.evaluated.append(weights_of(model))


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def data(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 16, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def gpt() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def trained(
    trainer: Any, folder: Path, model: Any = None, resume: Any = None, **options: Any
) -> tuple[Any, Noted]:
    settings: dict[str, Any] = {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 0.01,
        "lr_scheduler_type": "cosine", "weight_decay": 0.1, "eval_strategy": "steps",
        "save_strategy": "steps", "eval_steps": EVERY, "save_steps": EVERY,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 100,
    }  # fmt: skip
    noted = Noted()
    made = trainer(
        model or gpt(),
        transformers.TrainingArguments(str(folder), **(settings | options)),
        train_dataset=data(40),
        eval_dataset=data(4),
        callbacks=[noted],
    )
    made.train(resume_from_checkpoint=resume)
    return made, noted


def with_k() -> Any:
    return with_lawa(transformers.Trainer, k=K, every=1)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_mean(weights: dict[str, Tensor], snapshots: list[dict[str, Tensor]]) -> None:
    for name, tensor in weights.items():
        mean = sum(each[name].double() for each in snapshots[-K:]) / K
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-6)


def saved(folder: Path) -> dict[str, Tensor]:
    held: dict[str, Tensor] = safetensors.load_file(folder / "model.safetensors")
    return held


def test_the_training_is_the_trainers_own_and_what_is_read_is_the_average(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, plainly = trained(transformers.Trainer, tmp_path / "plain")
    trainer, noted = trained(with_k(), tmp_path / "lawa")
    assert len(plainly.live) == STEPS
    assert all(map(same, plainly.live, noted.live))
    lawa = trainer.optimizer.optimizer
    assert isinstance(lawa, LAWA)
    assert type(lawa.base) is type(plain.optimizer.optimizer)
    for mine, its in zip(lawa.param_groups, plain.optimizer.param_groups, strict=True):
        assert {**mine, "params": 0} == {**its, "params": 0}
    for number, evaluated in enumerate(noted.evaluated, start=1):
        assert_mean(evaluated, plainly.live[: number * EVERY])
    assert_mean(weights_of(trainer.model), plainly.live)
    assert "LAWA: the model holds the average of the 3 latest snapshots" in capsys.readouterr().out
    trainer.save_model(str(tmp_path / "end"))
    assert_mean(saved(tmp_path / "end"), plainly.live)


@pytest.mark.parametrize("save_steps", [EVERY, 2])
def test_every_checkpoint_has_the_average_and_resumes_as_if_never_stopped(
    save_steps: int, tmp_path: Path
) -> None:
    whole, noted = trained(with_k(), tmp_path / "whole", save_steps=save_steps)
    at = 2 * save_steps
    checkpoint = tmp_path / "whole" / f"checkpoint-{at}"
    assert_mean(saved(checkpoint), noted.live[:at])
    resumed, rest = trained(
        with_k(), tmp_path / "new", resume=str(checkpoint), save_steps=save_steps
    )
    assert all(map(same, noted.live[at:], rest.live))
    assert len(rest.live) == STEPS - at
    assert same(weights_of(whole.model), weights_of(resumed.model))


def test_a_checkpoint_goes_on_without_lawa_once_the_live_weights_are_in_it(tmp_path: Path) -> None:
    trainer, noted = trained(with_k(), tmp_path / "whole")
    checkpoint = tmp_path / "whole" / f"checkpoint-{EVERY}"
    # As docs/frameworks.md says it.
    trainer = with_k()(
        transformers.GPT2LMHeadModel.from_pretrained(checkpoint),
        transformers.TrainingArguments(str(tmp_path), use_cpu=True, weight_decay=0.1),
    )
    optimizer = trainer.create_optimizer()
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt"))
    optimizer.train()
    trainer.model.save_pretrained(checkpoint)
    torch.save(optimizer.base.state_dict(), checkpoint / "optimizer.pt")
    _, rest = trained(transformers.Trainer, tmp_path / "left", resume=str(checkpoint))
    assert len(rest.live) == STEPS - EVERY
    assert all(map(same, noted.live[EVERY:], rest.live))


def test_it_resumes_and_goes_on_in_the_same_process(tmp_path: Path) -> None:
    _, undisturbed = trained(with_k(), tmp_path / "whole")
    trainer, noted = trained(with_k(), tmp_path / "halved")
    shutil.rmtree(tmp_path / "halved" / f"checkpoint-{STEPS}")
    trainer.train(resume_from_checkpoint=True)
    assert all(map(same, undisturbed.live[6:], noted.live[STEPS:]))
    assert_mean(weights_of(trainer.model), undisturbed.live)
    live = noted.live[-1]
    trainer.args.max_steps = 1
    trainer.args.learning_rate = 0.0
    for group in trainer.optimizer.param_groups:
        group["initial_lr"] = 0.0
    trainer.train()
    assert same(noted.live[-1], live), "another training goes on from the live weights"


@pytest.mark.parametrize("steps", [STEPS, STEPS + 1])
def test_the_best_average_is_in_the_model_at_the_end(
    steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, noted = trained(
        with_k(), tmp_path, load_best_model_at_end=True, max_steps=steps,
        metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    best = Path(trainer.state.best_model_checkpoint)
    assert "the weights of the best checkpoint" in capsys.readouterr().out
    at = int(best.name.removeprefix("checkpoint-"))
    assert at < STEPS
    assert_mean(weights_of(trainer.model), noted.live[:at])
    loaded = weights_of(trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)
    assert same(loaded, weights_of(trainer.model))


# peft asks for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_an_adapter_of_peft_is_averaged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        return peft.get_peft_model(gpt(), config)

    _, plainly = trained(transformers.Trainer, tmp_path / "plain", adapted())
    trainer, noted = trained(with_k(), tmp_path / "lawa", adapted())
    assert all(map(same, plainly.live, noted.live))
    assert_mean(weights_of(trainer.model), plainly.live)
    held = safetensors.load_file(tmp_path / "lawa" / "checkpoint-6" / "adapter_model.safetensors")
    for name, tensor in held.items():
        inside = name.replace(".weight", ".default.weight")
        mean = sum(each[inside].double() for each in noted.live[3:6]) / K
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_trls_trainer_is_averaged_too(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", exc_type=ImportError)
    datasets = pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({str(i): i for i in range(16)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), eos_token="0", pad_token="1", unk_token="0"
    )
    rows = datasets.Dataset.from_list(
        [{"input_ids": row["input_ids"].tolist()} for row in data(40)]
    )

    def tuned(trainer: Any, folder: str) -> Noted:
        noted = Noted()
        arguments = trl.SFTConfig(
            str(tmp_path / folder), max_steps=STEPS, per_device_train_batch_size=4, use_cpu=True,
            report_to="none", max_length=8, bf16=False, gradient_checkpointing=False,
            eval_strategy="steps", eval_steps=EVERY, save_strategy="no", learning_rate=0.01,
        )  # fmt: skip
        made = trainer(
            gpt(), arguments, train_dataset=rows, eval_dataset=rows.select(range(4)),
            processing_class=tokenizer, callbacks=[noted],
        )  # fmt: skip
        made.train()
        return noted

    plain = tuned(trl.SFTTrainer, "plain")
    averaged = tuned(with_lawa(trl.SFTTrainer, k=K, every=1), "lawa")
    assert all(map(same, plain.live, averaged.live))
    assert_mean(averaged.evaluated[-1], plain.live)


def test_what_would_be_silent_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="k must be"):
        with_lawa(transformers.Trainer, k=0)
    with pytest.raises(TypeError, match="takes a class"):
        with_lawa(transformers.Trainer(gpt(), transformers.TrainingArguments(str(tmp_path))))
    with pytest.raises(TypeError, match="TrainerWithLAWA has LAWA already"):
        with_lawa(with_k(), k=K + 1)
    model = gpt()
    wrapped = LAWA(torch.optim.AdamW(model.parameters()))
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = with_k()(model, arguments, train_dataset=data(4), optimizers=(wrapped, None))
    with pytest.raises(ValueError, match="would wrap it once more"):
        trainer.train()
    for flag, remedy in (("fsdp", "override create_optimizer"), ("deepspeed", "ModelWindow")):
        trainer = with_k()(gpt(), arguments, train_dataset=data(4))
        setattr(trainer, f"is_{flag}_enabled", True)
        with pytest.raises(ValueError, match=f"(?i){flag}.*{remedy}"):
            trainer.create_optimizer()
    never = with_lawa(transformers.Trainer, k=K, start=1000)
    with pytest.warns(UserWarning, match="the window is empty"):
        trained(never, tmp_path, max_steps=3)
    assert "holds the live weights, for no snapshot was collected" in capsys.readouterr().out
