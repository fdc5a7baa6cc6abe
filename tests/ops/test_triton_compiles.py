"""Triton's own compiler takes every kernel there is, for every kind of GPU, and needs none for it.

The interpreter, which runs the kernels elsewhere, minds less than the compiler.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs in the interpreter's process", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from alignbeam.ops.triton_kernels import VARIANTS, Variant

_MOST_PTX = 300_000  # bytes; what the first call takes grows with it


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.kernel.__name__}{v.constants}")
def test_triton_compiles_every_variant_without_a_gpu(
    variant: Variant, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile(
        ASTSource(variant.kernel, variant.signature, variant.constants),
        target=GPUTarget("cuda", capability, 32), options=variant.options,
    )  # fmt: skip
    assert len(compiled.asm["ptx"]) < _MOST_PTX
    assert len(compiled.asm["cubin"]) > 0


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.kernel.__name__}{v.constants}")
def test_triton_compiles_no_second_version_for_other_arguments(variant: Variant) -> None:
    for parameter in variant.kernel.params:
        assert parameter.is_constexpr or parameter.do_not_specialize, parameter.name
        assert parameter.is_constexpr or parameter.annotation_type, parameter.name
    assert {p.name for p in variant.kernel.params if p.is_constexpr} == set(variant.constants)
