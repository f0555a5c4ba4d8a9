"""cuDNN's fused attention called from TensorFlow: a StableHLO text handed to XLA, with its gradient.

TensorFlow has no op for it, but the XLA inside TensorFlow compiles the custom calls `__cudnn$fmhaSoftmax` and
`__cudnn$fmhaSoftmaxBackward`; `xla.call_module` takes them as text. No [B, N, S, S] tensor exists in either
direction: the forward pass keeps the softmax statistics, float32 [B, N, S]. Shapes are part of the text, so there is
one module per (batch, length) pair, made when the caller is traced.
Works only inside `tf.function(jit_compile=True)` on an NVIDIA GPU of compute capability 8.0 or newer, float16 and
bfloat16.

Dropout of attention probabilities is not offered. The kernel has it (`__cudnn$fmhaSoftmaxDropout`, `dropout_rate` and
`seed` in its configuration), but TensorFlow 2.21 dies of a segmentation fault in it: seen on an H200 with cuDNN 9.
The cause was not established; XLA's counter of masks per local device, which TensorFlow may not set up, is a guess.
"""

import functools
import json
import math

import tensorflow as tf

_ELEMENT = {tf.float16: ("f16", "F16"), tf.bfloat16: ("bf16", "BF16")}
_HEAD_MULTIPLE = 8  # cuDNN wants head sizes that are multiples of 8, at most 128


def attend(query, key, value, lengths):
    """Fused attention over rows of different lengths.

    Args:
        query, key, value: float16 or bfloat16 [B, S, N, D]; B and S static; D up to 128.
        lengths: int32 [B], real tokens of each row (keys and queries past it are ignored).

    Returns: [B, S, N, D]; rows at padding are zero.
    Source: Dao 2023 (arXiv 2307.08691) as cuDNN's flash attention implements it.
    """
    batch, length, heads, size = query.shape
    if query.dtype not in _ELEMENT:
        raise TypeError(f"fused attention takes float16 or bfloat16, got {query.dtype.name}")
    if batch is None or length is None:
        raise ValueError(f"fused attention needs a static batch and length, got {query.shape}")
    padded = -(-size // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
    if padded != size:  # zeros change neither Q K^T nor the columns of V that are kept; the scale stays that of `size`
        widen = [[0, 0], [0, 0], [0, 0], [0, padded - size]]
        query, key, value = (tf.pad(x, widen) for x in (query, key, value))
    text = functools.partial(_module, batch, length, heads, padded, query.dtype, 1 / math.sqrt(size))
    return _fused(query, key, value, lengths, text)[..., :size]


def _fused(query, key, value, lengths, text):
    shape, dtype = query.shape, query.dtype
    statistics_shape = (shape[0], shape[2], shape[1])  # [B, N, S]

    @tf.custom_gradient
    def compute(query, key, value):
        output, statistics = _call(
            [query, key, value, lengths], text("forward"), [dtype, tf.float32], [shape, statistics_shape]
        )

        def gradient(upstream):
            arguments = [query, key, value, lengths, upstream, output, statistics]
            return _call(arguments, text("backward"), [dtype] * 3, [shape] * 3)

        return output, gradient

    return compute(query, key, value)


def _call(arguments, module, types, shapes):
    from tensorflow.compiler.tf2xla.python import xla  # a private path: imported where it is used, and nowhere else

    return xla.call_module(
        arguments,
        version=9,
        module=module,
        Tout=types,
        Sout=shapes,
        platforms=["CUDA"],
        disabled_checks=[xla.call_module_disable_check_platform()],
    )


def _module(batch, length, heads, size, dtype, scale, direction) -> str:
    """The StableHLO text of one direction. The custom calls' results are [B, N, S, D] in memory order [B, S, N, D]."""
    element, xla_element = _ELEMENT[dtype]
    x = f"tensor<{batch}x{length}x{heads}x{size}x{element}>"  # q, k, v and their gradients
    turned = f"tensor<{batch}x{heads}x{length}x{size}x{element}>"
    statistics, lengths, scratch = f"tensor<{batch}x{heads}x{length}xf32>", f"tensor<{batch}xi32>", "tensor<0xui8>"
    config = _backend_config([batch, heads, length, length], xla_element, scale, direction)
    row4, row3, row1 = "dense<[3, 2, 1, 0]> : tensor<4xindex>", "dense<[2, 1, 0]> : tensor<3xindex>", _ROW1
    turned_layout = "dense<[3, 1, 2, 0]> : tensor<4xindex>"

    def turn_back(name, source):
        return f"  {name} = stablehlo.transpose {source}, dims = [0, 2, 1, 3] : ({turned}) -> {x}"

    def custom_call(target, operands, operand_types, operand_layouts, result_types, result_layouts):
        return (
            f"  %r:{len(result_types)} = stablehlo.custom_call @{target}({', '.join(operands)}) "
            f'{{api_version = 2 : i32, backend_config = "{config}", '
            f"operand_layouts = [{', '.join(operand_layouts)}], result_layouts = [{', '.join(result_layouts)}]}} : "
            f"({', '.join(operand_types)}) -> ({', '.join(result_types)})"
        )

    if direction == "forward":
        inputs, outputs, returned = [x, x, x, lengths], [x, statistics], ["%o", "%r#1"]
        body = [
            custom_call(
                "__cudnn$fmhaSoftmax",
                ["%a0", "%a1", "%a2", "%a3", "%a3"],
                [x, x, x, lengths, lengths],
                [row4, row4, row4, row1, row1],
                [turned, statistics, scratch],
                [turned_layout, row3, row1],
            ),
            turn_back("%o", "%r#0"),
        ]
    else:  # operands: q, k, v, statistics, output gradient, output, query lengths, key lengths
        inputs, outputs, returned = [x, x, x, lengths, x, x, statistics], [x, x, x], ["%dq", "%dk", "%dv"]
        body = [
            custom_call(
                "__cudnn$fmhaSoftmaxBackward",
                ["%a0", "%a1", "%a2", "%a6", "%a4", "%a5", "%a3", "%a3"],
                [x, x, x, statistics, x, x, lengths, lengths],
                [row4, row4, row4, row3, row4, row4, row1, row1],
                [turned, turned, turned, scratch],
                [turned_layout, turned_layout, turned_layout, row1],
            ),
            *(turn_back(name, f"%r#{index}") for index, name in enumerate(returned)),
        ]
    arguments = ", ".join(f"%a{index}: {kind}" for index, kind in enumerate(inputs))
    return "\n".join(
        [
            "module @attention attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 1 : i32} {",
            f" func.func public @main({arguments}) -> ({', '.join(outputs)}) {{",
            *body,
            f"  return {', '.join(returned)} : {', '.join(outputs)}",
            " }",
            "}",
        ]
    )


_ROW1 = "dense<0> : tensor<1xindex>"


def _backend_config(scores_shape, element, scale, direction) -> str:
    """XLA's `GpuBackendConfig` for the call as JSON, quotes escaped for an MLIR string; int64 numbers are strings."""

    def dimensions(lhs_contract, rhs_contract, lhs_batch, rhs_batch):
        return {
            "lhs_contracting_dimensions": [str(lhs_contract)],
            "rhs_contracting_dimensions": [str(rhs_contract)],
            "lhs_batch_dimensions": [str(d) for d in lhs_batch],
            "rhs_batch_dimensions": [str(d) for d in rhs_batch],
        }

    seq_major, head_major = (0, 2), (0, 1)  # where batch and heads stand in [B, S, N, D] and in [B, N, S, S]
    if direction == "forward":
        products = {
            "bmm1_dot_dimension_numbers": dimensions(3, 3, seq_major, seq_major),
            "bmm2_dot_dimension_numbers": dimensions(3, 1, head_major, seq_major),
        }
    else:
        products = {
            "bmm1_grad_gemm1_dot_dimension_numbers": dimensions(2, 1, head_major, seq_major),
            "bmm1_grad_gemm2_dot_dimension_numbers": dimensions(3, 1, head_major, seq_major),
            "bmm2_grad_gemm1_dot_dimension_numbers": dimensions(2, 1, head_major, seq_major),
            "bmm2_grad_gemm2_dot_dimension_numbers": dimensions(3, 3, seq_major, seq_major),
        }
    config = {
        "operation_queue_id": "0",
        "cudnn_fmha_backend_config": {
            "algorithm": {
                "algo_id": "0",
                "math_type": "TENSOR_OP_MATH",
                "tuning_knobs": {"17": "1", "24": "0"},
                "is_cudnn_frontend": True,
                "workspace_size": "0",
            },
            "fmha_scale": scale,
            "intermediate_tensor_shape": {
                "element_type": element,
                "dimensions": [str(d) for d in scores_shape],
                "tuple_shapes": [],
                "layout": {
                    "dim_level_types": [],
                    "dim_unique": [],
                    "dim_ordered": [],
                    "minor_to_major": ["3", "2", "1", "0"],
                    "tiles": [],
                    "element_size_in_bits": "0",
                    "memory_space": "0",
                    "index_primitive_type": "PRIMITIVE_TYPE_INVALID",
                    "pointer_primitive_type": "PRIMITIVE_TYPE_INVALID",
                    "dynamic_shape_metadata_prefix_bytes": "0",
                },
                "is_dynamic_dimension": [False] * 4,
            },
            "is_flash_attention": True,
            "mask_type": "PADDING",
            **products,
            "dropout_rate": 0.0,
            "seed": 0,
            "sliding_window_length": 0,
            "max_seg_per_batch": 1,
            "is_paged_attention": False,
        },
    }
    return json.dumps(config).replace('"', "\\22")
