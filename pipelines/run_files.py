"""Every file name in the folder of a run."""

from __future__ import annotations

COLUMNS = "columns.json"
VALUES = "values.npy"

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
#: The set of columns whose themes and regions are left out, one at a time.
LEFT_OUT_OF = "handcrafted"

ENSEMBLE = "ensemble.json"
THRESHOLDS = "thresholds.parquet"
MEMBERS = "members.csv"
COMBINED = "combiners.csv"
CALIBRATORS = "calibrators.csv"
ERRORS = "errors.csv"
CHOICES = "choices.csv"
GAINS = "gains.csv"

HISTORY = "history.csv"
MODEL = "model"
#: The same fitted to all labelled patches, held-out slides included.
REFITTED = "refitted"
#: Heads on the channels of these networks, in slide context.
CONTEXT, REFITTED_CONTEXT = "context", "refitted-context"

LADDER = "ladder.csv"
#: The ladder without and with what its rungs cost, and what decisions come to.
SCORES = "scores.parquet"
TIMES = "times.parquet"
DECISIONS = "decisions"
LEAKAGE = "leakage.csv"

#: What the page shows, and the files beside it.
CONTENT = "content"
TABLES = "tables"
FACTS = "facts.json"

BUNDLE = "bundle"
#: In the step's folder: models in the form of a bundle, which holds no file but its own.
MODEL_SET = "set"

FINAL = "predictions.csv"
SUBMISSION = "submission.csv"
