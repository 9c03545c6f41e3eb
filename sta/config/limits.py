"""Limits that the command line checks before anything heavy is imported, and that the library keeps to."""

SAMPLE_RATE = 16_000  # Hz, of every waveform inside the package
MAX_SECONDS = 30.0  # of one recording
MAX_GUIDANCE = 100.0  # far above what draws well, and far below what overflows
