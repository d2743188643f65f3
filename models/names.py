"""What a model's name says: its rung of the ladder and its head."""

from __future__ import annotations

from histoblend.features.handcrafted.families import FAMILIES

RUNGS = ("prevalence", "colour", "handcrafted", "embeddings", "both", "context", "cnn", "ensemble")
#: Rungs that are one model each, whose name is the rung's.
HEADLESS = ("prevalence", "cnn", "ensemble")
#: One family of handcrafted features each, fitted alone: not rungs, but what the handcrafted rung is made of.
ALONE = tuple(family.name for family in FAMILIES if family.name not in RUNGS)
#: A rung that stands beside the ladder, and what it adds to: slide context needs more than the patch at hand.
BESIDE = {"context": "handcrafted"}
_NAMED = ", ".join(map(repr, HEADLESS))


def split_model_name(model: str) -> tuple[str, str | None]:
    """Return the rung (or family) and the head that a model's name stands for; rungs of `HEADLESS` have none.

    Parameters
    ----------
    model : str
        A rung of :data:`HEADLESS`, ``<head>_<rung>`` or ``<head>_<family>``.

    Raises
    ------
    ValueError
        The name has another form or an unknown rung.
    """
    if model in HEADLESS:
        return model, None
    head, _, rung = model.partition("_")
    known = tuple(name for name in RUNGS if name not in HEADLESS) + ALONE
    if not head or rung not in known:
        raise ValueError(f"model must be {_NAMED} or '<head>_<rung>' with a rung of {known}; got {model!r}.")
    return rung, head
