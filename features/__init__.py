"""Features of a patch: handcrafted columns and pretrained embeddings."""
