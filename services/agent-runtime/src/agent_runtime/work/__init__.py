"""The work on runs: the loop, the calls it makes, the streams it reads and writes, and those who watch it."""
