"""Fuzzing of every reader of files: ``python -m tests.torture.fuzz.images 600`` for ten core minutes of images.

Coverage guides it if atheris is installed (not a requirement, because it has wheels for Linux only). Otherwise it uses
random mutations with a fixed seed. Any exception of a reader except ``InputError`` is a fault; its input is kept.
"""
