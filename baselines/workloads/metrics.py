"""Say by a metric's name whether higher or lower is better, where it says so."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HIGHER_IS_BETTER = _words("""
    acc accs accuracy accuracies top1 f1 f2 fbeta auc auroc auprc ap map precision recall
    sensitivity specificity dice iou miou jaccard ndcg mrr hits bleu sacrebleu chrf meteor rouge
    cider bertscore r2 r² psnr ssim snr sdr reward rewards return returns elo elbo likelihood kappa
    mcc correlation pearson spearman
""")
# With one of these it is the distance from what is best, or lower is better anyway.
LOWER_IS_BETTER = _words("""
    error errors err loss losses regret cost costs risk gap distance deviation variance std entropy
    perplexity ppl nll nats bits mse rmse mae mape wer cer fid kl divergence
    inaccuracy misses failures
""")
TURNED = _words("negative neg minus inverse")
# "1 - accuracy", "100% - mAP"; "-reward", also in brackets or after "=".
_DASH = r"\s*[-\u2012-\u2015\u2212]\s*"
_TURNED = re.compile(
    rf"(?<![\w.-])(?:1(?:\.0*)?|100 ?%?|one){_DASH}|(?:^|[(=:]){_DASH}[^\W\d]", re.I
)
_TOP = re.compile(r"(?<![^\W_])top[-\s_]?(?:\d+|k)(?![^\W_])", re.I)
_R_SQUARED = re.compile(r"(?<![^\W_])r(?:\s*\^\s*2|[-\s_]squared)(?![^\W_])", re.I)


def direction(metric: str) -> tuple[bool | None, str]:
    """Return whether a metric's name says that higher is better, and the word that does.

    None and no word where it says nothing, or both.
    """
    text = _R_SQUARED.sub("r2", _TOP.sub("top1", metric))
    # "valAcc" is two words, and "mAP" is one; of "mAP50" the number is a threshold.
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", text)
    words = [word.lower() for form in (text, parted) for word in re.findall(r"[^\W_]+", form)]
    is_turned = bool(_TURNED.search(text)) or not TURNED.isdisjoint(words)
    lower = next((word for word in words if word in LOWER_IS_BETTER), "")
    known = (
        word
        for word in words
        for form in (word, word.rstrip("0123456789"))
        if form in HIGHER_IS_BETTER
    )
    higher = next(known, "")
    if lower:
        return (None, "") if higher or is_turned else (False, lower)
    return (not is_turned, higher) if higher else (None, "")
