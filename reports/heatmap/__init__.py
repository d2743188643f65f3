"""Files of a slide's heat map: rasters, outlines and the viewer."""
