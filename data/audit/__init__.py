"""Data audit: duplicates, blank and blurred patches, and inferred slides."""
