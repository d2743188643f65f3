"""What is shown of a whole slide: rasters, outlines and the viewer."""
