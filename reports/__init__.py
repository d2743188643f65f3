"""Content of the report: metrics with intervals, the ladder, importances and the page."""
