"""Explain one patch: each member's probability, the most important columns, and where a network looked."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.patches import CENTRE
from histoblend.data.sources.folder import UnlabelledImages
from histoblend.data.sources.labels import printable
from histoblend.data.storage.atomic import write_atomically
from histoblend.models.blends import Blend
from histoblend.models.calibration import EXPLANATION_LIMIT, log_odds
from histoblend.models.names import needs_slides
from histoblend.models.predictor import CNN, Predictor
from histoblend.pipelines.runtime.artefacts import write_json
from histoblend.pipelines.runtime.screen import Screen

if TYPE_CHECKING:
    from histoblend.pipelines.predict.shards import PredictedPatches

#: Number of columns that are listed, the largest contribution first.
TOP = 10

#: Squares per side of the occlusion grid.
GRID = 8

#: Magnification of the pictures.
_ZOOM = 4
_GAP = 8
_BOX = np.array([255, 220, 0], np.uint8)


def explain_patch(
    predictor: Predictor,
    blends: tuple[Blend, Blend | None],
    source: UnlabelledImages,
    predictions: PredictedPatches,
    row: int,
    out: Path,
    screen: Screen,
) -> None:
    """Write ``explain-<id>.json`` and ``explain-<id>.png`` next to ``out`` and print a summary.

    Parameters
    ----------
    predictor : Predictor
        Holds at least every member that needs no slide.
    blends : pair of Blend
        The blend with slides and the one without.
    source : UnlabelledImages
    predictions : PredictedPatches
        Predictions for the whole source.
    row : int
        Row of the patch in the source's table.
    out : Path
    screen : Screen
    """
    name = source.table["patch_id"].iloc[row]
    if row in predictions.reasons:
        screen.warn(f"{printable(name)} cannot be explained: {predictions.reasons[row]}")
        return
    pixels = source.read(row, row + 1)[0]
    index = int(np.flatnonzero(predictions.rows == row)[0])
    without_context = bool(predictions.without_context[index])
    blend = (blends[1] or blends[0]) if without_context else blends[0]
    members = dict(zip(predictor.members, predictor(pixels).members[0].tolist(), strict=True))
    members |= {str(model): float(value) for model, value in predictions.members.iloc[index].items()}
    columns = {model: shares for model in predictor.members if (shares := column_shares(predictor, model, pixels))}
    saliency_model = _saliency_model(predictor, blend)
    saliency = (
        None if saliency_model is None else occlusion(partial(_member_log_odds, predictor, saliency_model), pixels[0])
    )
    content = {
        "id": name,
        "file": source.table["file"].iloc[row],
        "probability": float(predictions.probability[index]),
        "label": int(predictions.label[index]),
        "flags": predictions.flags[index].split(),
        "predicted_by": blend.name,
        "slide_context": not without_context and blend.needs_slides,
        "blended": list(blend.members),
        "members": {model: _none_if_nan(value) for model, value in members.items()},
        "columns": columns,
        "saliency": None
        if saliency_model is None or saliency is None
        else {"model": saliency_model, "log_odds": saliency.tolist()},
    }
    json_path = out.with_name(f"explain-{file_name(name)}.json")
    write_json(json_path, content)
    _write_picture(json_path.with_suffix(".png"), pixels[0], saliency)
    _print_summary(content, json_path, screen)


def file_name(name: str) -> str:
    """Turn an id, which may be a path or contain special characters, into a file name. No two ids share a name."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return plain if plain == name else f"{plain[:100]}-{hashlib.sha256(printable(name).encode()).hexdigest()[:8]}"


def column_shares(predictor: Predictor, model: str, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Columns that contributed most, for a member that uses only handcrafted features of the patch itself.

    Parameters
    ----------
    predictor : Predictor
    model : str
    pixels : ndarray of shape (1, height, width, 3), dtype uint8

    Returns
    -------
    list of dict
        ``column, value, log_odds, what``. Empty for other members: their single columns have no meaning or compare the
        patch with its slide.
    """
    if model == CNN or needs_slides(model) or model.partition("_")[2] not in ("colour", "handcrafted"):
        return []
    from histoblend.features.handcrafted.families import columns

    values = predictor(pixels)
    row = predictor.row_values(model, values.table)[0]
    shares = predictor.heads[model].contributions(row[None])[0][0]
    sentences = {column.name: column.sentence for column in columns()}
    names = predictor.bundle.index["columns"][model.partition("_")[2]]
    return [
        {
            "column": names[index],
            "value": float(row[index]),
            "log_odds": float(shares[index]),
            "what": sentences.get(names[index], ""),
        }
        for index in np.argsort(-np.abs(shares), kind="stable")[:TOP]
    ]


def _saliency_model(predictor: Predictor, blend: Blend) -> str | None:
    """Member whose saliency map is drawn: the CNN or else the most similar member, with the blend's members first."""
    for columns in (CNN, "embeddings", "both", "handcrafted", "colour"):
        for model in (*blend.members, *predictor.members):
            if model in predictor.members and columns in (model, model.partition("_")[2]):
                return model
    return None


def _member_log_odds(predictor: Predictor, model: str, pixels: np.ndarray) -> np.ndarray:
    """Log odds of each patch by one member, ndarray of shape (n,)."""
    if model == CNN and predictor.cnn is not None:
        return np.asarray(predictor.cnn(pixels)[:, 0], dtype=np.float64)
    return log_odds(predictor(pixels).members[:, predictor.members.index(model)], EXPLANATION_LIMIT)


def occlusion(score: Callable[[np.ndarray], np.ndarray], patch: np.ndarray) -> np.ndarray:
    """Log odds that a patch loses when one of its squares is hidden.

    Each square of an 8 × 8 grid is replaced by a blurred copy of the patch, which adds no artificial edge or colour.

    Parameters
    ----------
    score : callable
        Maps uint8 patches (n, height, width, 3) to log odds (n,).
    patch : ndarray of shape (height, width, 3), dtype uint8

    Returns
    -------
    ndarray of shape (8, 8), dtype float64
        Positive where the hidden square supported tumour.

    References
    ----------
    Zeiler & Fergus (2014), ECCV, LNCS 8689:818-833.
    """
    from scipy.ndimage import gaussian_filter

    height, width = patch.shape[:2]
    blurred = np.rint(gaussian_filter(patch.astype(np.float64), (height / GRID, width / GRID, 0))).astype(np.uint8)
    rows, columns = (np.linspace(0, length, GRID + 1).round().astype(int) for length in (height, width))
    hidden = np.repeat(patch[None], GRID * GRID, axis=0)
    for square, altered in enumerate(hidden):
        top, left = divmod(square, GRID)
        inside = np.s_[rows[top] : rows[top + 1], columns[left] : columns[left + 1]]
        altered[inside] = blurred[inside]
    scores = score(np.concatenate([patch[None], hidden]))
    return np.asarray(scores[0] - scores[1:], dtype=np.float64).reshape(GRID, GRID)


def _write_picture(path: Path, patch: np.ndarray, saliency: np.ndarray | None) -> None:
    """Draw the patch with a box around its centre, and next to it the occlusion map: red for tumour, blue against."""
    from PIL import Image

    panels = [_boxed(patch)]
    if saliency is not None:
        strength = max(float(np.abs(saliency).max()), 1e-9)
        scaled = Image.fromarray((saliency / strength).astype(np.float32))
        smooth = np.asarray(scaled.resize((patch.shape[1], patch.shape[0]), Image.Resampling.BICUBIC)).clip(-1, 1)
        grey = np.repeat(patch.mean(axis=2, keepdims=True), 3, axis=2)
        colour = np.where(smooth[..., None] > 0, np.array([214.0, 40, 40]), np.array([40.0, 80, 214]))
        weight = 0.75 * np.abs(smooth)[..., None]
        panels.append(_boxed((grey * (1 - weight) + colour * weight).astype(np.uint8)))
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    whole = panels[0] if len(panels) == 1 else np.concatenate([panels[0], gap, panels[1]], axis=1)
    write_atomically(path, lambda file: Image.fromarray(whole).save(file, format="PNG"))


def _boxed(patch: np.ndarray) -> np.ndarray:
    """Magnify a patch and draw a box around its centre."""
    large = np.repeat(np.repeat(patch, _ZOOM, axis=0), _ZOOM, axis=1)
    top, left = ((length - CENTRE) // 2 * _ZOOM for length in patch.shape[:2])
    bottom, right = top + CENTRE * _ZOOM, left + CENTRE * _ZOOM
    for edge in (np.s_[top - 2 : top, left - 2 : right + 2], np.s_[bottom : bottom + 2, left - 2 : right + 2]):
        large[edge] = _BOX
    for edge in (np.s_[top:bottom, left - 2 : left], np.s_[top:bottom, right : right + 2]):
        large[edge] = _BOX
    return large


def _print_summary(content: dict[str, Any], path: Path, screen: Screen) -> None:
    screen.say(f"{printable(content['id'])}: probability {content['probability']:.3f}, label {content['label']}")
    for model, probability in content["members"].items():
        screen.say(f"  {model}: {'needs slides' if probability is None else f'{probability:.3f}'}")
    for model, shares in content["columns"].items():
        # The model on all columns tells more than the one on colour alone. The file holds both.
        for share in shares[:3] if model.endswith("_handcrafted") else []:
            screen.say(f"  {model}: {share['log_odds']:+.2f} log odds by {share['column']}: {share['what']}")
    if content["saliency"]:
        screen.say(f"  right half of the picture: {content['saliency']['model']}, red supports tumour, blue opposes it")
    screen.say(f"  {path} and {path.with_suffix('.png').name}")


def _none_if_nan(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
