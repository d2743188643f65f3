"""What a run needs from its machine: artefacts, locks, signals, disk, memory and the terminal."""
