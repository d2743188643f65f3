"""What models rely on (columns, feature families, stain, slides, regions of a patch), and what labels bring them."""
