"""Pretrained networks: a row each, their weights, and the embeddings that they give."""
