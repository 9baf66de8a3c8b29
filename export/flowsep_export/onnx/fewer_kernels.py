"""Identities that spell the velocity network in fewer kernels, for GPUs, where a step is bound by launches.

Each pass changes a half-precision graph in place and says how often it found its pattern. They are equal in
exact arithmetic and within rounding in half precision; docs/rewrites.md has the algebra.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from flowsep_export.onnx.editing import Editor, at_every


def join_projections(model: onnx.ModelProto, folder: Path) -> int:
    """One product for queries, keys and values of a self-attention: x [Wq | Wk | Wv], then a split in three.

    Args:
        model: The graph.
        folder: Where its external weights lie.

    Returns:
        How many attentions were changed.
    """
    editor = Editor(model, folder)
    changed = 0
    for name, users in list(editor.users.items()):
        products = [node for node in users if node.op_type == "MatMul" and node.input[0] == name]
        shapes = {editor.shape(node.input[1]) for node in products}
        if len(products) != 3 or len(shapes) != 1 or None in shapes:
            continue
        weights = [editor.constant(node.input[1]) for node in products]
        outputs = [node.output[0] for node in products]
        joined = editor.store(f"{outputs[0]}.joined_weights", np.concatenate(weights, axis=1))
        editor.put("MatMul", [name, joined], [f"{outputs[0]}.joined"])
        editor.put("Split", [f"{outputs[0]}.joined"], outputs, axis=-1, num_outputs=3)
        changed += 1
    editor.finish()
    return changed


@at_every("Softmax")
def fold_projections_into_text(editor: Editor, softmax: onnx.NodeProto) -> bool:
    """Folds queries' and outputs' projections of an attention to the text into its keys and values.

    These are the same in every step, and a head's scores are (x Wq) kᵀ = x (Wq kᵀ), its result (p v) Wo =
    p (v Wo). All heads side by side, an attention is a product, a softmax and a product, in which no heads
    are told apart but around the softmax.
    """
    biased = editor.source(softmax.input[0], "Add")
    scores = editor.source(biased.input[0], "MatMul") if biased is not None else None
    if biased is not None and scores is None:  # the mask may stand on either side
        scores = editor.source(biased.input[1], "MatMul")
    weighted = editor.only_user(softmax.output[0], "MatMul")
    if biased is None or scores is None or weighted is None:
        return False
    bias = next(name for name in biased.input if name != scores.output[0])
    queries = editor.chain(scores.input[0], "Mul", "Transpose", "Reshape", "MatMul")
    joined = editor.only_user(weighted.output[0], "Transpose")
    flat = editor.only_user(joined.output[0], "Reshape") if joined is not None else None
    output = editor.only_user(flat.output[0], "MatMul") if flat is not None else None
    if not queries or output is None:
        return False
    scaled, query = queries[0], queries[-1]
    if editor.shape(scaled.input[1]) != () or editor.shape(query.input[1]) is None:
        return False
    if editor.shape(output.input[1]) is None or editor.source(scores.input[1], "Transpose") is None:
        return False
    tokens, heads, width = _heads_of(editor, scores.input[1])
    name = output.output[0]
    # float64: the scale is a power of two only for some widths
    stored = editor.constant(query.input[1])
    weights = stored.astype(np.float64) * float(editor.constant(scaled.input[1]))
    of_query = weights.reshape(1, len(weights), heads, width).transpose(0, 2, 1, 3)
    of_output = editor.constant(output.input[1]).reshape(1, heads, width, -1)
    editor.store(f"{name}.query", of_query.astype(stored.dtype))
    editor.store(f"{name}.output", of_output)
    editor.store("heads_joined", np.array([0, 0, -1]))
    apart = editor.store(f"heads_apart_{heads}_{tokens}", np.array([0, 0, heads, tokens]))
    # of the text alone
    editor.put("MatMul", [f"{name}.query", scores.input[1]], [f"{name}.keys_of_heads"])
    editor.put("Transpose", [f"{name}.keys_of_heads"], [f"{name}.keys_in_rows"], perm=[0, 2, 1, 3])
    editor.put("Reshape", [f"{name}.keys_in_rows", "heads_joined"], [f"{name}.keys"])
    editor.put("MatMul", [weighted.input[1], f"{name}.output"], [f"{name}.values_of_heads"])
    rows = f"rows_joined_{heads}_{tokens}_{of_output.shape[-1]}"
    editor.store(rows, np.array([0, heads * tokens, of_output.shape[-1]]))
    editor.put("Reshape", [f"{name}.values_of_heads", rows], [f"{name}.values"])
    # of the state
    editor.put("MatMul", [query.input[0], f"{name}.keys"], [f"{name}.scores"])
    editor.put("Reshape", [f"{name}.scores", apart], [f"{name}.scores_of_heads"])
    editor.put("Add", [bias, f"{name}.scores_of_heads"], [f"{name}.biased"])
    editor.put("Softmax", [f"{name}.biased"], [f"{name}.soft"], axis=-1)
    editor.put("Reshape", [f"{name}.soft", "heads_joined"], [f"{name}.weights"])
    editor.put("MatMul", [f"{name}.weights", f"{name}.values"], [name])
    return True


def _heads_of(editor: Editor, keys: str) -> tuple[int, int, int]:
    """Tokens, heads and their width, of keys [B, H, D, M]."""
    view = editor.maker[editor.maker[keys].input[0]]
    _, tokens, heads, width = (int(size) for size in editor.constant(view.input[1]))
    return tokens, heads, width
