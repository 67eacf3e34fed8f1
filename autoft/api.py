"""`search` and `resume` as Python calls them."""
