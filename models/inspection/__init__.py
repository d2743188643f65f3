"""What fitted models rely on: columns, families, stain, and where a network looks."""
