"""Files that every bundle takes along as they are: they run where autoft is not installed."""
