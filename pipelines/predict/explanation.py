"""One patch explained: every member's probability, the columns that decided, and where a network looked."""

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
from histoblend.data.storage.atomic import write_whole
from histoblend.models.calibration import CLOSEST, log_odds
from histoblend.models.names import needs_slides
from histoblend.models.predictor import CNN, Blend, Predictor
from histoblend.pipelines.runtime.artefacts import write_json
from histoblend.pipelines.runtime.screen import Screen

if TYPE_CHECKING:
    from histoblend.pipelines.predict.shards import Found

#: Columns that are named, those that decided most first.
TOP = 10

#: Squares a side that are hidden one by one.
GRID = 8

#: Enlargement of pictures.
_ZOOM = 4
_GAP = 8
_BOX = np.array([255, 220, 0], np.uint8)


def explain_patch(
    predictor: Predictor,
    blends: tuple[Blend, Blend | None],
    source: UnlabelledImages,
    found: Found,
    row: int,
    out: Path,
    screen: Screen,
) -> None:
    """Write ``explain-<id>.json`` and ``explain-<id>.png`` beside ``out`` and show the gist.

    Parameters
    ----------
    predictor : Predictor
        Of every member that needs no slide, and more.
    blends : pair of Blend
    source : UnlabelledImages
    found : Found
        What was predicted for the whole source.
    row : int
        Row of the source's table.
    out : Path
    screen : Screen
    """
    name = source.table["patch_id"].iloc[row]
    if row in found.reasons:
        screen.warn(f"{printable(name)} cannot be explained: {found.reasons[row]}")
        return
    pixels = source.read(row, row + 1)[0]
    place = int(np.flatnonzero(found.rows == row)[0])
    alone = bool(found.alone[place])
    blend = (blends[1] or blends[0]) if alone else blends[0]
    members = dict(zip(predictor.members, predictor(pixels).members[0].tolist(), strict=True))
    members |= {str(model): float(value) for model, value in found.members.iloc[place].items()}
    columns = {model: shares for model in predictor.members if (shares := column_shares(predictor, model, pixels))}
    seen = _seeing(predictor, blend)
    saliency = None if seen is None else occlusion(partial(_score, predictor, seen), pixels[0])
    content = {
        "id": name,
        "file": source.table["file"].iloc[row],
        "probability": float(found.probability[place]),
        "label": int(found.label[place]),
        "flags": found.flags[place].split(),
        "predicted_by": blend.name,
        "slide_context": not alone and blend.needs_slides,
        "blended": list(blend.members),
        "members": {model: _plain(value) for model, value in members.items()},
        "columns": columns,
        "saliency": None if seen is None or saliency is None else {"model": seen, "log_odds": saliency.tolist()},
    }
    beside = out.with_name(f"explain-{file_name(name)}.json")
    write_json(beside, content)
    _write_picture(beside.with_suffix(".png"), pixels[0], saliency)
    _show(content, beside, screen)


def file_name(name: str) -> str:
    """Make a file's name of an id, which may be a path or hold what no file name should; two ids never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return plain if plain == name else f"{plain[:100]}-{hashlib.sha256(printable(name).encode()).hexdigest()[:8]}"


def column_shares(predictor: Predictor, model: str, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Columns that decided most, of a member that looks at handcrafted features of the patch alone.

    Parameters
    ----------
    predictor : Predictor
    model : str
    pixels : ndarray of shape (1, height, width, 3), dtype uint8

    Returns
    -------
    list of dict
        ``column, value, log_odds, what``; empty for other members, whose columns mean nothing one by one or compare
        with a slide.
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
            "column": names[place],
            "value": float(row[place]),
            "log_odds": float(shares[place]),
            "what": sentences.get(names[place], ""),
        }
        for place in np.argsort(-np.abs(shares), kind="stable")[:TOP]
    ]


def _seeing(predictor: Predictor, blend: Blend) -> str | None:
    """Member whose look at the patch is drawn: the CNN, or the nearest to one, those of the blend first."""
    for columns in (CNN, "embeddings", "both", "handcrafted", "colour"):
        for model in (*blend.members, *predictor.members):
            if model in predictor.members and columns in (model, model.partition("_")[2]):
                return model
    return None


def _score(predictor: Predictor, model: str, pixels: np.ndarray) -> np.ndarray:
    """Log odds by one member, ndarray of shape (n,)."""
    if model == CNN and predictor.cnn is not None:
        return np.asarray(predictor.cnn(pixels)[:, 0], dtype=np.float64)
    return log_odds(predictor(pixels).members[:, predictor.members.index(model)], CLOSEST)


def occlusion(score: Callable[[np.ndarray], np.ndarray], patch: np.ndarray) -> np.ndarray:
    """Log odds that a patch loses when a square of it is hidden.

    Each square of a grid of 8 × 8 gives way to the patch's blurred self, so that no edge and no colour is made up.

    Parameters
    ----------
    score : callable
        (n, height, width, 3) uint8 to log odds (n,).
    patch : ndarray of shape (height, width, 3), dtype uint8

    Returns
    -------
    ndarray of shape (8, 8), dtype float64
        Above 0 where what is hidden spoke for tumour.

    References
    ----------
    Zeiler & Fergus (2014), ECCV, LNCS 8689:818-833.
    """
    from scipy.ndimage import gaussian_filter

    height, width = patch.shape[:2]
    blurred = np.rint(gaussian_filter(patch.astype(np.float64), (height / GRID, width / GRID, 0))).astype(np.uint8)
    rows, columns = (np.linspace(0, length, GRID + 1).round().astype(int) for length in (height, width))
    hidden = np.repeat(patch[None], GRID * GRID, axis=0)
    for square, one in enumerate(hidden):
        top, left = divmod(square, GRID)
        inside = np.s_[rows[top] : rows[top + 1], columns[left] : columns[left + 1]]
        one[inside] = blurred[inside]
    scores = score(np.concatenate([patch[None], hidden]))
    return np.asarray(scores[0] - scores[1:], dtype=np.float64).reshape(GRID, GRID)


def _write_picture(path: Path, patch: np.ndarray, saliency: np.ndarray | None) -> None:
    """The patch with a box around its centre and, beside it, what hiding a square changes: red for, blue against."""
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
    write_whole(path, lambda file: Image.fromarray(whole).save(file, format="PNG"))


def _boxed(patch: np.ndarray) -> np.ndarray:
    """Enlarge a patch and bound its centre."""
    large = np.repeat(np.repeat(patch, _ZOOM, axis=0), _ZOOM, axis=1)
    top, left = ((length - CENTRE) // 2 * _ZOOM for length in patch.shape[:2])
    bottom, right = top + CENTRE * _ZOOM, left + CENTRE * _ZOOM
    for edge in (np.s_[top - 2 : top, left - 2 : right + 2], np.s_[bottom : bottom + 2, left - 2 : right + 2]):
        large[edge] = _BOX
    for edge in (np.s_[top:bottom, left - 2 : left], np.s_[top:bottom, right : right + 2]):
        large[edge] = _BOX
    return large


def _show(content: dict[str, Any], path: Path, screen: Screen) -> None:
    screen.say(f"{printable(content['id'])}: probability {content['probability']:.3f}, label {content['label']}")
    for model, probability in content["members"].items():
        screen.say(f"  {model}: {'needs slides' if probability is None else f'{probability:.3f}'}")
    for model, shares in content["columns"].items():
        # All columns together say more than colour alone; the file holds both.
        for share in shares[:3] if model.endswith("_handcrafted") else []:
            screen.say(f"  {model}: {share['log_odds']:+.2f} log odds by {share['column']}: {share['what']}")
    if content["saliency"]:
        screen.say(
            f"  right half of the picture: {content['saliency']['model']}, red where it saw tumour, blue against"
        )
    screen.say(f"  {path} and {path.with_suffix('.png').name}")


def _plain(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
