"""Builds the compiled twin of broker/domain/frames.py where there is a C compiler; without one, nothing is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "broker/_frames.c"


class CustomBuildHook(BuildHookInterface):
    """Compiles beside the source, so that an editable installation finds it as well."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the outcome into the wheel."""
        target = Path(self.root, f"broker/_frames{sysconfig.get_config_var('EXT_SUFFIX')}")
        target.unlink(missing_ok=True)
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None or sys.platform == "win32":
            self.app.display_warning("no C compiler: frames will be looked at in Python, which costs more per frame")
            return
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        include = f"-I{sysconfig.get_paths()['include']}"
        command = [compiler, "-O2", "-fPIC", *shared, include, str(Path(self.root, SOURCE)), "-o", str(target)]
        if (said := _compile(command)) is not None:
            self.app.display_warning(f"the C compiler failed, frames will be looked at in Python:\n{said}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(str(target.relative_to(self.root)))


def _compile(command: list[str]) -> str | None:
    """What went wrong, if anything did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr[-2000:] if done.returncode else None
