"""The structures in `xla.h` match the header of XLA, and another version of XLA is refused."""

import subprocess
from pathlib import Path

import pytest
from kernel_calls import needs_kernel

from multirnn.kernel import build, xla

pytestmark = needs_kernel

LAYOUT = {
    "XLA_FFI_Extension_Base": ("xla_extension", "struct_size size, type type, next next"),
    "XLA_FFI_Api_Version": ("xla_version", "struct_size size, major_version major, minor_version minor"),
    "XLA_FFI_Metadata": ("xla_metadata", "struct_size size, api_version version, traits traits"),
    "XLA_FFI_Metadata_Extension": ("xla_metadata_extension", "extension_base base, metadata metadata"),
    "XLA_FFI_Error_Create_Args": ("xla_error_description", "struct_size size, message message, errc code"),
    "XLA_FFI_Api": ("xla_api", "struct_size size, api_version version, XLA_FFI_Error_Create create_error"),
    "XLA_FFI_Buffer": ("xla_buffer", "struct_size size, dtype dtype, data data, rank rank, dims dims"),
    "XLA_FFI_Args": ("xla_buffers", "struct_size size, size count, types types, args buffers"),
    "XLA_FFI_Rets": ("xla_buffers", "struct_size size, size count, types types, rets buffers"),
    "XLA_FFI_Array": ("xla_array", "dtype dtype, size count, data data"),
    "XLA_FFI_Attrs": ("xla_attributes", "struct_size size, size count, types types, names names, attrs arrays"),
    "XLA_FFI_CallFrame": (
        "xla_frame",
        "struct_size size, extension_start extensions, api api, ctx context, stage stage, args arguments, "
        "rets results, attrs attributes",
    ),
}


def header() -> Path:
    jax = pytest.importorskip("jax")
    return Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")


def test_the_structures_of_xla_are_those_of_its_header(tmp_path: Path) -> None:
    lines = ["#include <stddef.h>", f'#include "{header()}"', '#include "xla.h"']
    for theirs, (ours, members) in LAYOUT.items():
        for pair in members.split(", "):
            name, own = pair.split()
            place = f"offsetof({theirs}, {name}) == offsetof({ours}, {own})"
            size = f"sizeof((({theirs} *)0)->{name}) == sizeof((({ours} *)0)->{own})"
            lines += [f'_Static_assert({place}, "{pair}");', f'_Static_assert({size}, "{pair}");']
    for theirs, ours in (
        ("XLA_FFI_API_MAJOR", "XLA_MAJOR"),
        ("XLA_FFI_API_MINOR", "XLA_MINOR"),
        ("XLA_FFI_Extension_Metadata", "XLA_METADATA"),
        ("XLA_FFI_Error_Code_RESOURCE_EXHAUSTED", "XLA_RESOURCE_EXHAUSTED"),
    ):
        lines.append(f'_Static_assert({theirs} == {ours}, "{ours}");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines))
    compiler = build._compiler()
    assert compiler is not None
    command = [*compiler, "-std=gnu11", "-DNAME(x)=x", "-I", str(build.SOURCE), "-include", "recurrence.c"]
    done = subprocess.run([*command, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_xla_that_is_not_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert xla.refuses(header()) is None
    later = tmp_path / "c_api.h"
    later.write_text("#define XLA_FFI_API_MAJOR 1\n#define XLA_FFI_API_MINOR 0\n")
    assert str(xla.refuses(later)).endswith("is supported, not 1.0")
    later.write_text("")
    assert str(xla.refuses(later)).endswith("is supported, not unknown")
    assert "without the header" in str(xla.refuses(tmp_path / "none.h"))
    monkeypatch.setattr(xla, "library_refuses", lambda: "no compiled recurrence")
    assert xla.refuses(header()) == "no compiled recurrence"
