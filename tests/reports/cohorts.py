"""Synthetic predictions shaped like real ones: slides differ in prevalence and in how well models score."""

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from histoblend.data.patches import rows_of_patches
from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.slide_context import in_slide_name
from histoblend.models.inspection.embedding_columns import explain_columns
from histoblend.models.inspection.importance import GROUPS, STABILITY, GroupView, fitted_importance
from histoblend.models.inspection.importance_evidence import evidence
from histoblend.models.inspection.partial_dependence import positive_shares
from histoblend.models.inspection.shapley import ShapleyValues, choose_cases
from histoblend.models.inspection.stain import StainGroups, StainView, group_slides, group_table, shift_curves
from histoblend.models.names import LINEAR_ONLY, RUNGS, RUNGS_WITHOUT_HEAD, SINGLE_FAMILIES, split_model_name
from histoblend.models.resampling import slide_groups
from histoblend.reports.evaluation.explorer import LEVELS, ExplorerView, leading_features, share_examples
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.report import ReportInputs
from histoblend.reports.sections.generalise import LearningView

HEADS = ("logistic", "xgboost")
SKILL = {"colour": 1.3, "handcrafted": 1.9, "embeddings": 2.0, "both": 2.3, "context": 2.2}
SKILL |= {"in-slide": 2.3, "embeddings-context": 2.3, "both-context": 2.4}
SKILL |= {"context-normalised": 2.3, "embeddings-normalised": 2.3, "both-normalised": 2.4}
SKILL |= {"cnn": 2.2, "cnn-context": 2.3, "ensemble": 2.6, "nuclei": 1.6, "lbp": 1.1}


def make_predictions(
    seed=0, *, slides=20, test_slides=5, per_slide=40, rungs=RUNGS, heads=HEADS, slide_map=True
) -> pd.DataFrame:
    """Predictions of `rungs` × `heads` on `slides` training and `test_slides` test slides of about `per_slide` patches.

    A slide has its own prevalence, its own size and, per model, its own shift of scores (stain).
    """
    rng = np.random.default_rng(seed)
    total = slides + test_slides
    slide = np.repeat(np.arange(total), rng.integers(per_slide // 2, 2 * per_slide, total))
    prevalence = rng.beta(0.8, 0.9, total)
    labels = (rng.random(len(slide)) < prevalence[slide]).astype(int)
    folds = np.where(np.arange(total) < slides, np.arange(total) % 5, -1)[slide]
    names = np.array([f"S{i:02d}" for i in range(total)], dtype=object)
    table = pd.DataFrame(
        {
            "patch_id": [f"{value:040x}" for value in rng.integers(1, 2**62, len(slide))],
            "slide": names[slide] if slide_map else np.full(len(slide), None),
            "split": np.where(folds < 0, "test", "train"),
            "fold": folds,
            "label": labels,
        }
    )
    shared = 0.8 * rng.normal(size=len(slide))  # hard patches are hard for all models
    others = {fold: labels[(folds != fold) & (folds >= 0)].mean() for fold in np.unique(folds)}
    for rung in rungs:
        if rung == "prevalence":
            table["prob_prevalence"] = [others[fold] for fold in folds]
            continue
        shift = rng.normal(0, 0.7, total)[slide]
        fitted = heads[:1] if rung in LINEAR_ONLY else heads
        for name in (rung,) if rung in RUNGS_WITHOUT_HEAD else [f"{head}_{rung}" for head in fitted]:
            noise = shared + rng.normal(0, 0.8, len(slide))
            table[f"prob_{name}"] = 1 / (1 + np.exp(-(SKILL[rung] * (labels - 0.5) + shift + noise)))
    return table


def model_names(predictions):
    """Names of the models in a table of predictions."""
    return [name.removeprefix("prob_") for name in predictions if name.startswith("prob_")]


@dataclass(frozen=True)
class Patches:
    """The fields of a PatchSet that the report uses."""

    pixels: np.ndarray
    table: pd.DataFrame


def make_patches(predictions, seed=0, size=96) -> Patches:
    """Pink squares with dark discs, more in positive patches, in another order than `predictions`."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(predictions))
    table = predictions.iloc[order][["patch_id", "label", "slide", "split", "fold"]].reset_index(drop=True)
    rows, columns = np.mgrid[:size, :size]
    pixels = np.empty((len(table), size, size, 3), np.uint8)
    for i, label in enumerate(table.label):
        pixels[i] = np.array([226, 170, 200]) + rng.integers(-8, 8, (size, size, 1))
        for _ in range(6 + 8 * label):
            y, x = rng.integers(0, size, 2)
            pixels[i][(rows - y) ** 2 + (columns - x) ** 2 < rng.integers(9, 40)] = 100, 60, 140
    return Patches(pixels, table)


def make_importances(predictions, seed=0) -> pd.DataFrame:
    """Every measure for every head and rung with features, in tidy form."""
    rng = np.random.default_rng(seed)
    columns = [column.name for column in families.columns()][::9]
    embeddings = [f"embedding_net-{i:04d}_rgb_whole" for i in range(20)]
    names = {"colour": [name for name in columns if name.startswith("colour")], "handcrafted": columns}
    names |= {"embeddings": embeddings, "both": columns + embeddings}
    names["context"] = names["in-slide"] = columns + [in_slide_name(name) for name in columns]
    names["embeddings-context"] = embeddings + [in_slide_name(name) for name in embeddings]
    names["both-context"] = names["context"] + names["embeddings-context"]
    parts = []
    for model in model_names(predictions):
        rung, head = split_model_name(model)
        if head is None or rung in (*SINGLE_FAMILIES, *LINEAR_ONLY):
            continue
        used = names[rung]
        size = rng.exponential(1, len(used)) ** 2
        measure = "gain" if head == "xgboost" else "coefficient"
        values = size / size.sum() if head == "xgboost" else size * rng.choice([-1, 1], len(used))
        parts.append(fitted_importance(values, used, measure=measure, model=model))
        drop = 0.002 * size * rng.uniform(0.3, 1.2, len(used)) - 0.001
        single = parts[-1].assign(measure="permutation", value=drop, spread=0.001, low=drop - 0.004, high=drop + 0.005)
        single = single[single.family != "embedding"]
        joint = single.groupby("family", as_index=False).agg(value=("value", "max"))
        joint.value *= 3
        joint = joint.assign(
            model=model, measure="permutation", spread=0.002, low=joint.value / 2, high=joint.value * 2
        )
        parts += [single, joint]
    return pd.concat(parts, ignore_index=True)[list(parts[0].columns)]


def make_view(predictions, importances, patches, seed=0) -> ExplorerView:
    """A feature explorer with made-up values and shares for the leading features."""
    rng = np.random.default_rng(seed)
    features = leading_features(importances, ["xgboost_handcrafted"], 6)
    test = predictions[predictions.split == "test"].reset_index(drop=True)
    names = [*features, "embedding"]
    shares = {model: rng.normal(size=(len(test), 7)) for model in ("xgboost_handcrafted", "logistic_both")}
    values = rng.normal(size=(len(predictions), 6)).astype(np.float32)
    inside = np.column_stack([values[-len(test) :], np.full(len(test), np.nan, np.float32)])
    bins = positive_shares(values, predictions.label.to_numpy(), slide_groups(predictions.slide), draws=50)
    at = np.linspace(-2, 2, 5)
    curve = pd.DataFrame({"value": at, "probability": 1 / (1 + np.exp(-at))})
    examples = [
        (feature, level, predictions.patch_id[row], float(values[row, i]))
        for i, (feature, rows) in enumerate(zip(features, share_examples(values), strict=True))
        for level, row in zip(LEVELS.values(), rows, strict=True)
    ]
    examples = pd.DataFrame(examples, columns=["feature", "level", "patch_id", "value"])
    scores = test.prob_xgboost_handcrafted.to_numpy()
    cases = [
        (case, "xgboost_handcrafted", test.patch_id[row], row, scores[row], 0.5)
        for case, row in choose_cases(test.label.to_numpy(), scores, 0.5).items()
    ]
    cases = pd.DataFrame(cases, columns=["case", "model", "patch_id", "place", "score", "threshold"])
    shown = list(dict.fromkeys([*examples.patch_id, *cases.patch_id]))
    attributions = {model: ShapleyValues(names, share, inside, -0.3) for model, share in shares.items()}
    clusters = [features[:2]]
    folds = pd.DataFrame(rng.exponential(size=(6, 3)), features, range(3))
    tables = [
        evidence(each, test.label.to_numpy(), slide_groups(test.slide), clusters, folds, draws=50, model=model)
        for model, each in attributions.items()
    ]
    first_fold = predictions[predictions.fold == 0].patch_id.iloc[:3]
    return ExplorerView(
        attributions=attributions,
        best="xgboost_handcrafted",
        blend=None,
        evidence=pd.concat(tables, ignore_index=True),
        clusters=pd.DataFrame(
            [(model, each[0], " ".join(each)) for model in attributions for each in clusters],
            columns=["model", "unit", "members"],
        ),
        explained=test[["patch_id", "slide", "label"]],
        folds={"0": ShapleyValues(names, rng.normal(size=(3, 7)), inside[:3], 0.2)},
        traced=pd.DataFrame({"patch_id": first_fold, "fold": "0", "place": range(3)}),
        cases=cases,
        quantiles=pd.DataFrame(np.quantile(values, list(LEVELS), axis=0).T, features, list(LEVELS.values())),
        examples=examples,
        curves=pd.concat([curve.assign(feature=feature, model="xgboost_handcrafted") for feature in features]),
        bins=pd.concat([table.assign(feature=feature) for feature, table in zip(features, bins, strict=True)]),
        embeddings=explain_columns(values[:, :2], ["a", "b"], values[:, 2:], features[2:], predictions.slide),
        patches=predictions.set_index("patch_id").loc[shown, ["slide", "label", "split"]].reset_index(),
        pixels=patches.pixels[rows_of_patches(patches, shown)],
        sampled=len(predictions),
        averaged=100,
    )


def make_groups(importances, seed=0) -> GroupView:
    """Groups of the columns of `importances`: drops of all kinds, and stability."""
    rng = np.random.default_rng(seed)
    single = importances[importances.feature.notna()]
    parts, stability, clusters = [], [], []
    for model, rows in single.groupby("model", sort=False):
        rung = split_model_name(model)[0]
        shown = rows.drop_duplicates("feature")
        names = shown.feature.tolist()
        kinds = {kind: families.group_columns(names, kind) for kind in ("theme", "region", "family")}
        if rung == "handcrafted":
            kinds["cluster"] = {names[index]: [index, index + 1, index + 2] for index in range(0, 30, 3)}
            clusters = [
                (name, 3, " ".join(names[index] for index in indices), 0.85)
                for name, indices in kinds["cluster"].items()
            ]
        fitted = dict.fromkeys(rows.measure[rows.measure != "permutation"])
        for kind, units in kinds.items():
            for measure in ("permutation", "dropped", *fitted):
                if kind == "cluster" and measure != "permutation":
                    continue
                value = rng.exponential(0.03, len(units)) - 0.005
                value = value if measure in ("permutation", "dropped") else np.abs(value) / np.abs(value).sum()
                sizes = [len(indices) for indices in units.values()]
                part = pd.DataFrame({"group": list(units), "columns": sizes, "value": value, "spread": 0.004})
                drop = measure in ("permutation", "dropped")
                low, high = (value - 0.02, value + 0.03) if drop else (np.nan, np.nan)
                parts.append(part.assign(model=model, measure=measure, kind=kind, low=low, high=high)[GROUPS])
        stability += [(model, measure, "feature", "folds", 5, len(names), 0.8) for measure in fitted]
        stability.append((model, "permutation", "family", "draws of slides", 200, 9, 0.3))
    return GroupView(
        groups=pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=GROUPS),
        clusters=pd.DataFrame(clusters, columns=["group", "columns", "members", "closeness"]),
        stability=pd.DataFrame(stability, columns=STABILITY),
        rho=0.8,
        clustered_on=1234,
    )


def make_stain(predictions, seed=0) -> StainView:
    """Two groups of slides unrelated to the label, families that distinguish them, and shifted stains."""
    slides = predictions.groupby("slide").label.agg(["mean", "size"])
    letters = np.where(np.arange(len(slides)) % 2, "A", "B")
    table = pd.DataFrame(
        {"slide": slides.index, "group": letters, "prevalence": slides["mean"], "patches": slides["size"]}
    )
    groups = StainGroups(table.reset_index(drop=True), 0.05, 0.6)
    models = [name for name in model_names(predictions) if name != "prevalence"]
    rungs = [name for name in models if split_model_name(name)[0] not in SINGLE_FAMILIES]
    by_family = pd.DataFrame({"family": ["stain", "colour", "nuclei", "embedding"], "columns": [23, 132, 110, 1400]})
    by_family = by_family.assign(auc=[0.97, 0.93, 0.61, 0.9], low=[0.9, 0.88, 0.49, 0.85], high=[1, 0.97, 0.7, 0.94])
    shifted = shift_curves(
        make_shifted(predictions[predictions.split == "test"], models, seed),
        models,
        dict.fromkeys(models, 0.5),
        draws=200,
    )
    return StainView(
        groups,
        group_table(groups, predictions, rungs, draws=200),
        group_slides(groups, predictions, rungs),
        by_family.assign(patches=480, slides=len(slides)),
        shifted,
        trained=0.1,
    )


def make_shifted(test, models, seed=0) -> pd.DataFrame:
    """Predictions of shifted patches: log odds of the colour rung shift by slide, those of others hardly."""
    names = test.slide.to_numpy()
    directions = {
        name: np.random.default_rng([seed, number]).normal() for number, name in enumerate(sorted(set(names)))
    }
    direction = np.array([directions[name] for name in names])
    parts = []
    alterations = [("shift", 0.0, 0), *(("shift", strength, draw) for strength in (0.05, 0.1, 0.2) for draw in (0, 1))]
    for alteration, strength, draw in [*alterations, ("restain", 1.0, 0)]:
        part = test[["patch_id", "slide", "label"]].assign(alteration=alteration, strength=strength, draw=draw)
        for model in models:
            size = 20.0 if "colour" in model else 0.5
            odds = (
                np.log(test[f"prob_{model}"] / (1 - test[f"prob_{model}"]))
                + (1 - 2 * draw) * strength * size * direction
            )
            part[f"prob_{model}"] = 1 / (1 + np.exp(-odds))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def make_shortcuts() -> pd.DataFrame:
    """A shortcut meter: colour follows slides and has a shortcut, nuclei follow the label."""
    rows = [("nuclei", "family", 0.7, 0.0, 0.2), ("colour", "family", 0.3, 0.8, 0.7), ("both", "set", 0.5, 0.1, 0.5)]
    parts = []
    for name, source, robustness, shortcut, recognised in rows:
        values = {"robustness": robustness, "margin": 2 * robustness - 1, "recognised": recognised, "auc": 0.85}
        spreads = {"robustness": 0.1, "margin": 0.1, "recognised": 0.1, "auc": 0.05, "shortcut": 0.2}
        row = {"set": name, "source": source, "kind": "slide", "groups": 29, "patches": 2000, "slides": 29}
        row |= {"columns": 100, "chance": 0.03}
        for measure, value in (values | {"shortcut": shortcut}).items():
            row |= {measure: value, f"{measure}_low": value - spreads[measure]}
            row |= {f"{measure}_high": value + spreads[measure]}
        parts.append(row)
    return pd.DataFrame(parts)


def make_learning() -> LearningView:
    """Learning curves of two sets, embeddings better, and calibration of one model."""
    points, gains = [], []
    for name, top in (("colour", 0.8), ("embeddings", 0.9)):
        for axis, sizes in (("slides", (5, 10, 20)), ("patches", (10, 20, 40))):
            for size in sizes:
                slides, patches = (size, 40) if axis == "slides" else (20, size)
                auc, seconds = top - 0.3 / size, 0.1 * size
                row = {"set": name, "axis": axis, "slides": slides, "patches_per_slide": patches, "seconds": seconds}
                row |= {"patches": slides * patches, "worst": auc - 0.1, "calibration_error": 0.1, "fitted": auc}
                for metric in ("auc", "auc_within", "log_loss"):
                    value = auc if metric != "log_loss" else 1 - auc
                    row |= {metric: value, f"{metric}_low": value - 0.05, f"{metric}_high": value + 0.05}
                points.append(row)
            gain = (0.02, 0.01, 0.03) if axis == "slides" else (0.001, -0.001, 0.003)
            gains.append((name, axis, "auc", 400, *gain, 0.5))
    calibration = [
        ("logistic_both", f"S{number}", 100, share, 0.1, 0.15, 0.06) for number, share in enumerate((0.0, 0.3, 0.9))
    ]
    recalibration = [
        ("logistic_both", judged, labelled, way, slides, 0.3, *change)
        for judged, slides, change in (("all", 15, (-0.1, -0.2, -0.01)), ("mixed", 12, (-0.05, -0.1, 0.01)))
        for labelled in (20, 50)
        for way in ("shift", "platt")
    ]
    names = ["model", "judged", "labelled", "way", "slides", "before", "change", "low", "high"]
    return LearningView(
        pd.DataFrame(points),
        pd.DataFrame(gains, columns=["set", "axis", "metric", "patches", "gain", "low", "high", "exponent"]),
        pd.DataFrame(calibration, columns=["model", "slide", "patches", "positives", "bias", "error", "chance"]),
        pd.DataFrame(recalibration, columns=names),
    )


def make_inputs(seed=0, **changes) -> ReportInputs:
    """Everything that a report shows. `changes` replace its fields or are passed to :func:`make_predictions`."""
    names = {item.name for item in fields(ReportInputs)}
    predictions = make_predictions(seed, **{key: value for key, value in changes.items() if key not in names})
    costs = {model: (12.0 + i, 700.0 + 10 * i) for i, model in enumerate(model_names(predictions))}
    importances = make_importances(predictions, seed)
    defaults = {
        "title": "Made-up cohort",
        "predictions": predictions,
        "ladder": ladder(predictions, model_names(predictions), draws=200, seed=seed, costs=costs),
        "importances": importances,
        "groups": make_groups(importances, seed),
        "patches": make_patches(predictions, seed),
        "warnings": ("Three patches could not be read and were set aside.",),
        "facts": {
            "commit": "0123abc",
            "config": {"data": {"source": "made-up", "folder": "nowhere"}, "seed": 0},
            "versions": {"numpy": np.__version__, "pandas": pd.__version__},
            "seconds": {"prepare": 3.1, "features": 41.0},
        },
        "sentences": {column.name: column.sentence for column in families.columns()},
        "shortcuts": make_shortcuts(),
        "learning": make_learning(),
    }
    held_out = predictions[predictions.split == "test"]
    if held_out.slide.nunique() > 1 and held_out.label.nunique() == 2:
        defaults["stain"] = make_stain(predictions, seed)
    return ReportInputs(**(defaults | {key: value for key, value in changes.items() if key in names}))
