"""Runners: where slices are executed, in this process or by Ray Tune."""
