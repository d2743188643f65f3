"""File names in the folder of a run."""

from __future__ import annotations

COLUMNS = "columns.json"
VALUES = "values.npy"
#: Folder of the 8-bit networks that made a table, and their description.
NETWORKS, NETWORK_LIST = "networks", "networks.json"

SET_ASIDE = "set_aside.csv"
UNLABELLED = "unlabelled"
AUDIT = "audit.parquet"
SUMMARY = "audit.csv"
SLIDES = "slides.csv"
EXAMPLES = "examples.csv"
PICTURES = "examples.npy"

PREDICTIONS = "predictions.parquet"
COSTS = "costs.csv"
SETS = "sets.json"
FITTED = "fitted.parquet"
DROPPED = "dropped.parquet"
#: Folder of tables that are joined for the fits of a step, and removed after them.
JOINED = "tables"
#: The set of columns that is refitted without each theme and each region.
LEFT_OUT_OF = "handcrafted"

ENSEMBLE = "ensemble.json"
THRESHOLDS = "thresholds.parquet"
MEMBERS = "members.csv"
COMBINED = "combiners.csv"
CALIBRATORS = "calibrators.csv"
ERRORS = "errors.csv"
CHOICES = "choices.csv"
GAINS = "gains.csv"
#: Out-of-fold AUC of each ensemble.
ENSEMBLE_SCORES = "ensembles.csv"

HISTORY = "history.csv"
MODEL = "model"
#: The same network fitted to all labelled patches, including held-out slides.
REFITTED = "refitted"
#: Heads on the features of these networks, in slide context.
CONTEXT, REFITTED_CONTEXT = "context", "refitted-context"

LADDER = "ladder.csv"
#: The ladder's scores, the time and memory of its rungs, and the outcomes of decisions at several thresholds.
SCORES = "scores.parquet"
TIMES = "times.parquet"
DECISIONS = "decisions"
LEAKAGE = "leakage.csv"
SHORTCUTS = "shortcuts.csv"
CURVE, LABEL_GAINS, CURVE_COSTS = "learning-curve.csv", "label-gains.csv", "learning-costs.csv"
SLIDE_CALIBRATION, RECALIBRATION = "slide-calibration.csv", "recalibration.csv"
#: Scores of each left-out centre.
CENTRES = "centres.csv"

#: Content of the report page, and the files next to it.
CONTENT = "content"
TABLES = "tables"
FACTS = "facts.json"

BUNDLE = "bundle"
#: Folder inside the step's folder with the models as a bundle. A bundle must not contain any other file.
MODEL_SET = "set"

FINAL = "predictions.csv"
SUBMISSION = "submission.csv"
