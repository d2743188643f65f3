"""What ``audit`` shows: which flags patches have, what was done about them, and how the split came out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from histoblend.pipelines.prepare import AUDIT, EXAMPLES, PICTURES, SET_ASIDE, SLIDES, SUMMARY, balance
from histoblend.reports.sections.data import consequence

if TYPE_CHECKING:
    from histoblend.pipelines.baseline import Run


def show_audit(run: Run) -> None:
    """Show the audit's summary, the balance of the split and where everything lies."""
    folder, manifest = run.prepared
    summary = pd.read_csv(folder / SUMMARY)
    shown = pd.DataFrame(
        {
            "flag": summary["flag"],
            "a patch with it …": summary["meaning"],
            "patches": summary["patches"].map("{:,}".format),
            "share": summary["share"].map("{:.2%}".format),
            "positive": summary["positive"].map(lambda share: "" if pd.isna(share) else f"{share:.0%}"),
            "policy": summary["policy"],
            "what was done": [consequence(row) for row in summary.to_dict("records")],
        }
    )
    rows = manifest["rows"]
    run.screen.table(shown, f"audit: {rows:,} patches kept, {manifest['notes']['set_aside']:,} set aside")
    parts = balance(run.patches.table)
    total = run.patches.table
    parts["share of patches"] = (parts["patches"] / len(total)).map("{:.1%}".format)
    parts["prevalence"] = parts["prevalence"].map("{:.1%}".format)
    run.screen.table(parts, f"split: prevalence {total['label'].mean():.1%} over all")
    counts = pd.read_csv(folder / SLIDES)
    run.screen.say(
        f"slides: {len(counts)}, {counts['patches'].min():,} to {counts['patches'].max():,} patches each, "
        f"prevalence {counts['positive'].min():.0%} to {counts['positive'].max():.0%}"
    )
    run.screen.say(f"every patch, measure and flag: {folder / AUDIT}; a row a slide: {folder / SLIDES}")
    run.screen.say(f"examples: {folder / PICTURES} and {folder / EXAMPLES}; what was set aside: {folder / SET_ASIDE}")
    run.screen.say("policies are settings: --set audit.blurred=drop; `settings` lists them")
