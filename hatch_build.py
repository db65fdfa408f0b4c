"""Build hook of Hatchling: compiles the recurrence, and adds the peers to the wheel."""

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface[Any]):
    """Builds the compiled recurrence where there is a C compiler, in place for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the peers and the library; with the library the wheel's tag names a platform, though no one Python."""
        if self.target_name != "wheel":
            return
        if version != "editable":  # which has the peers beside multirnn_bench, where it looks next
            build_data["force_include"]["benchmarks/peers"] = "multirnn_bench/peers"
        build = runpy.run_path(str(Path(self.root, "multirnn", "kernel", "build.py")))
        if (reason := build["build"]()) is not None:
            self.app.display_warning(f"multirnn is installed without its compiled recurrence: {reason}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(f"/multirnn/kernel/{build['LIBRARY'].name}")
