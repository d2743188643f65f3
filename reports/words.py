"""Text that sections share: names of models, numbers, intervals, and what an interval shows."""

from __future__ import annotations

from histoblend.models.heads.registry import HEADS, head_class
from histoblend.models.names import split_model_name

RUNG_WORDS = {
    "prevalence": "prevalence",
    "colour": "colour",
    "handcrafted": "all handcrafted features",
    "embeddings": "embeddings",
    "both": "handcrafted features and embeddings together",
    "context": "handcrafted features with slide context",
    "in-slide": "handcrafted features relative to the slide",
    "embeddings-context": "embeddings with slide context",
    "both-context": "handcrafted features and embeddings with slide context",
    "context-normalised": "handcrafted features of stain-normalised patches with slide context",
    "embeddings-normalised": "embeddings of stain-normalised patches with slide context",
    "both-normalised": "handcrafted features and embeddings of stain-normalised patches with slide context",
    "cnn": "the fine-tuned network",
    "cnn-context": "the fine-tuned network's features with slide context",
    "ensemble": "the ensemble",
}
#: Rungs in few words, for table cells, legends and axes.
SHORT_RUNG_WORDS = {
    "prevalence": "prevalence",
    "colour": "colour",
    "handcrafted": "handcrafted",
    "embeddings": "embeddings",
    "both": "all features",
    "context": "handcrafted + context",
    "in-slide": "relative to slide",
    "embeddings-context": "embeddings + context",
    "both-context": "all features + context",
    "context-normalised": "normalised handcrafted + context",
    "embeddings-normalised": "normalised embeddings + context",
    "both-normalised": "all normalised features + context",
    "cnn": "fine-tuned network",
    "cnn-context": "network + context",
    "ensemble": "ensemble",
}
#: Families of features, as tables and legends show them.
FAMILY_WORDS = {
    "colour": "colour",
    "stain": "stain",
    "cooccurrence": "co-occurrence texture",
    "runs": "run-length texture",
    "lbp": "local binary patterns",
    "gradient": "edges and blobs",
    "gabor": "Gabor texture",
    "multiscale": "wavelets and entropy",
    "nuclei": "nuclei",
    "embedding": "embeddings",
    "cnn": "fine-tuned network",
}
#: With fewer slides than this, an interval from resampling slides is only rough.
FEW_SLIDES = 10


def model_words(model: str) -> str:
    """Return a model's name in words, such as ``XGBoost on all handcrafted features``."""
    rung, head = split_model_name(model)
    words = RUNG_WORDS[rung] if rung in RUNG_WORDS else FAMILY_WORDS[rung]
    return words if head is None else f"{head_words(head)} on {words}"


def short_model_words(model: str) -> str:
    """Return a model's name in few words, such as ``all features + context · logistic``.

    Context means slide context, and normalised means of stain-normalised patches.
    """
    rung, head = split_model_name(model)
    words = SHORT_RUNG_WORDS[rung] if rung in SHORT_RUNG_WORDS else FAMILY_WORDS[rung]
    return words if head is None else f"{words} · {head_words(head).removesuffix(' regression')}"


def head_words(head: str) -> str:
    """Return a head's name in words, such as ``logistic regression``. Unknown heads keep their name."""
    return head_class(head).display_name if head in HEADS else head


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with `digits` digits. It uses the minus character; a number that rounds to zero has no sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign, which is left out if the difference rounds to zero."""
    text = decimal(value, digits)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def span(low: float, high: float, digits: int = 3) -> str:
    """Return an interval."""
    return f"{decimal(low, digits)} to {decimal(high, digits)}"


def signed_span(low: float, high: float, digits: int = 3) -> str:
    """Return the interval of a difference, with signs."""
    return f"{signed(low, digits)} to {signed(high, digits)}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share in per cent."""
    return f"{decimal(100 * share, digits)} %"


def percent_span(low: float, high: float, digits: int = 0) -> str:
    """Return the interval of a share in per cent."""
    return f"{decimal(100 * low, digits)} to {percent(high, digits)}"


#: What an interval of a difference shows if it includes 0. Such a difference is never called a gain or a loss.
INCONCLUSIVE = "inconclusive (95 % CI includes 0)"


def direction(low: float, high: float, *, null: float = 0.0, digits: int = 3) -> int | None:
    """Judge an interval as it is printed, so that words and numbers cannot contradict each other.

    Parameters
    ----------
    low, high : float
        Ends of the interval; NaN if it is unknown.
    null : float
        Value without an effect: 0 for a difference.
    digits : int
        Digits with which the interval is printed. An end that rounds to `null` counts as `null`.

    Returns
    -------
    int or None
        1 if the interval is above `null`, −1 if it is below, 0 if it includes `null`, None if it is unknown.
    """
    if low != low or high != high:  # NaN
        return None
    if round(low, digits) > null:
        return 1
    return -1 if round(high, digits) < null else 0


def difference(value: float, low: float, high: float, *, digits: int = 3) -> str:
    """Return a difference with its interval, and say so if it is inconclusive.

    This is the only way in which the report words a difference: ``+0.011 (95 % CI +0.004 to +0.022)``, or ``+0.003
    (−0.010 to +0.010), inconclusive (95 % CI includes 0)``, or ``+0.011`` without an interval.
    """
    side = direction(low, high, digits=digits)
    if side is None:
        return signed(value, digits)
    interval = signed_span(low, high, digits)
    if side == 0:
        return f"{signed(value, digits)} ({interval}), {INCONCLUSIVE}"
    return f"{signed(value, digits)} (95 % CI {interval})"
