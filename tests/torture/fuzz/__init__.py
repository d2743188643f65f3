"""Fuzzing of every reader of files: ``python -m tests.torture.fuzz.images 600`` for ten minutes of images.

Guided by coverage where atheris is installed (it is not among the requirements: no wheels outside of Linux), and by
seeded mutations elsewhere. Whatever a reader raises but an ``InputError`` is a fault; its input is kept.
"""
