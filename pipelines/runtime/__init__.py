"""What a run needs from its machine: artefacts, locks, signals, room, the terminal."""
