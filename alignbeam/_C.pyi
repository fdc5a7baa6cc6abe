from torch import Tensor

# As MixResult has them; it is one of them.
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

source_key: str
cuda_archs: str

def cpu_isa() -> str: ...
def cpu_reads() -> str: ...
def use_tensor_type(tensor_type: type) -> None: ...
def mix_topk_cpu(
    anchor_logits: object,
    target_logits: object,
    table: object,
    alpha: object,
    top_b: object,
    top_k: object,
    mix: object,
    support: object,
    threads: int,
    out: Outputs | None = None,
) -> Outputs | None: ...
def mix_topk_host(
    anchor_logits: object,
    target_logits: object,
    table: object,
    alpha: object,
    top_b: object,
    top_k: object,
    mix: object,
    support: object,
) -> Outputs | None: ...

# Only where cuda_archs is not empty.
def mix_topk_cuda(
    anchor_logits: object,
    target_logits: object,
    table: object,
    alpha: object,
    top_b: object,
    top_k: object,
    mix: object,
    support: object,
    out: Outputs,
    workspace: Tensor,
    stream: int,
) -> bool | None: ...
def mix_topk_cuda_workspace(rows: int, anchor_cols: int, target_cols: int) -> int: ...
