"""What Hatchling runs when multirnn is built or installed: the C compiler, where there is one."""

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["CompileHook"]


class CompileHook(BuildHookInterface[Any]):
    """Compiles the library into the wheel, or in place for an editable install; without it the wheel is pure."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and say in the wheel's tag that it holds machine code, though none of one Python alone."""
        if self.target_name != "wheel":
            return
        build = runpy.run_path(str(Path(self.root, "multirnn", "kernel", "build.py")))
        if (reason := build["build"]()) is not None:
            self.app.display_warning(f"multirnn is installed without its compiled recurrence: {reason}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(f"/multirnn/kernel/{build['LIBRARY'].name}")
