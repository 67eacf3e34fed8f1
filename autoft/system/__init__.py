"""What the operating system offers: files, clocks, signals, memory, caches on disk."""
