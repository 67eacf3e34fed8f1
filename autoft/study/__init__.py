"""What was asked, what it means on this machine, and an opened run."""
