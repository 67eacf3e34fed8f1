"""A user whose home is empty, on a machine of their own."""

from __future__ import annotations

import os
from pathlib import Path

# By which onnxruntime is told to send nothing, or knows a machine that only tests; and where else a cache would be.
_OTHERS = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME")
_MACHINES_THAT_TEST = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "JENKINS_URL", "CIRCLECI", "TRAVIS")
_MORE_OF_THEM = ("BUILDKITE", "TEAMCITY_VERSION", "CODEBUILD_BUILD_ID")


def fresh_home(folder: Path) -> dict[str, str]:
    """The environment of a process whose home is `folder`, which is made."""
    folder.mkdir()
    without = {*_OTHERS, *_MACHINES_THAT_TEST, *_MORE_OF_THEM}
    return {name: value for name, value in os.environ.items() if name not in without} | {"HOME": str(folder)}
