"""The default parts. Each module here is an ordinary plugin that imports only autoft's public names."""
