"""What is shown: metrics with intervals, the ladder, importances and the page."""
