"""What fitted models rely on: columns, feature families, stain, and regions of a patch."""
