"""Files that survive a crash: whole writes, memory-mapped arrays, stores, spreadsheets."""
