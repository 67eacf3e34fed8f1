"""What a deployed model answers, by form: one of the names, any of them, or a number for each."""
