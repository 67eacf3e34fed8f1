"""One package a medium."""
