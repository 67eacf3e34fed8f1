"""Images: from a file to the network's input, in training and in the exported graph."""
