"""The bundle: the exported folder that a stranger deploys, checks and believes."""
