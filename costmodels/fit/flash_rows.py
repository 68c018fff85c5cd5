"""Published measurements of FlashAttention and its like as rows of the table `attention`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def from_flash(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of a table of FlashAttention measurements (gpu, op, impl, dtype, causal, batch, heads, kv_heads, head_dim, seq_q,
    seq_kv, time_us) as rows of the table `attention`; forward and backward measured together are left out."""
    import pandas as pd

    kept = frame[~frame["op"].str.contains(r"\+")]
    dtypes = {"fp16": "float16", "bf16": "bfloat16", "bf16/fp16": "bfloat16", "fp8": "fp8", "fp32": "float32"}
    dtype = kept["dtype"].map(dtypes)
    return pd.DataFrame(
        {
            "device": kept["gpu"],
            "phase": "prefill",
            "batch": kept["batch"],
            "q_len": kept["seq_q"],
            "kv_len": kept["seq_kv"],
            "heads": kept["heads"],
            "kv_heads": kept["kv_heads"],
            "head_dim": kept["head_dim"],
            "dtype": dtype,
            "kv_dtype": dtype,
            "latency_s": kept["time_us"] * 1e-6,
            "source": kept["impl"],
            "causal": kept["causal"].astype(str) == "True",
            "backward": kept["op"].str.contains("bwd"),
        }
    ).dropna(subset=["dtype", "latency_s"])
