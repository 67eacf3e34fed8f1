"""One module a task, and what tasks compute with."""
