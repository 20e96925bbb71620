"""Transformers' Trainer on CPython's documentation: `python examples/transformers_trainer.py`.

It evaluates the average, saves it in every checkpoint, and ends with it. With
load_best_model_at_end=True the best average is in the model at the end.
"""

from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lawa_opt.transformers import with_lawa

CONTEXT = 64


def main(folder="transformers_docs", steps=300, every=50, resume=False, **options):
    torch.manual_seed(0)
    text = torch.tensor(list("".join(topics.values()).encode()))
    chunks = text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    data = [{"input_ids": chunk, "labels": chunk} for chunk in chunks]
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=128,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        learning_rate=3e-3,
        report_to="none",
        use_cpu=True,
        **options,
    )
    trainer = with_lawa(Trainer, k=5)(
        model, arguments, train_dataset=data[256:], eval_dataset=data[:256]
    )
    trainer.train(resume_from_checkpoint=resume)
    print(f"average {trainer.evaluate()['eval_loss']:.4f} nats per byte")
    return trainer


if __name__ == "__main__":
    main()
