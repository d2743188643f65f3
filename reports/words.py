"""Text that sections share: names of models, signed numbers and intervals."""

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


def signed(value: float) -> str:
    """Return a difference with three digits and a sign. It uses the minus character; zero has no sign."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "−")


def span(low: float, high: float) -> str:
    """Return an interval with three digits."""
    return f"{low:.3f} to {high:.3f}"
