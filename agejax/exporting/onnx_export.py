"""Converts a prediction to an ONNX model: its jaxpr, operation by operation."""

from __future__ import annotations

import dataclasses
import json
import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from agejax.errors import UserError
from agejax.exporting import onnx_resize
from agejax.exporting.prediction import Predict
from agejax.models import lowerings
from agejax.version import __version__

OPSET, IR_VERSION = 18, 9  # ONNX Runtime reads these since 1.15 (2023)

Operation = Callable[..., str]


def to_onnx(predict: Predict, images: jax.ShapeDtypeStruct, info: Mapping[str, Any]) -> bytes:
    """Converts `predict` to an ONNX model, with `info` as its metadata.

    The model takes uint8 images [batch, H, W, 3] of any size and number, and resizes them itself.

    Args:
      images: what `predict` takes, uint8 [batch, S, S, 3] with a symbolic batch.

    Raises:
      UserError: an operation that neither `ELEMENTWISE` nor `OPERATIONS` holds.
    """
    import onnx

    with lowerings.plain():
        closed, shapes = jax.make_jaxpr(predict, return_shape=True)(images)
    graph = Graph(images)
    graph.nodes += onnx_resize.nodes(images.shape[1])
    # JAX flattens a dict sorted by key.
    values = graph.run(closed.jaxpr, closed.consts, [Value(onnx_resize.SQUARE, images.shape)])
    for name, value in zip(sorted(shapes), values, strict=True):
        graph.node("Identity", graph.full(value, shapes[name].shape), name=name)

    def tensor(name: str, dtype: Any, shape: Sequence[Any]) -> Any:
        sizes = [n if isinstance(n, int) else str(n) for n in shape]
        return onnx.helper.make_tensor_value_info(name, onnx_type(dtype), sizes)

    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "agejax",
            [tensor("images", images.dtype, (images.shape[0], "height", "width", 3))],
            [tensor(name, shapes[name].dtype, shapes[name].shape) for name in sorted(shapes)],
            graph.initializers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="agejax",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(
        model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in info.items()}
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def load(data: bytes) -> Predict:
    """Loads what `to_onnx` made, as a function of images."""
    import onnxruntime

    return prediction_of(onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]))


def prediction_of(session: Any) -> Predict:
    """The outputs of an `onnxruntime.InferenceSession` by name, as a function of images."""
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


@dataclasses.dataclass(frozen=True)
class Value:
    """A variable of a jaxpr, as the ONNX graph has it.

    Attributes:
      data: the name of an ONNX tensor, or an array where the value is constant.
      shape: of `data`; a size may be 1 where the variable's is not, since ONNX broadcasts.
    """

    data: str | np.ndarray
    shape: tuple[Any, ...]


class Graph:
    """An ONNX graph being built; `run` appends a jaxpr to it.

    JAX computes at once whatever depends on no image, and ONNX's broadcasting replaces operations
    that only repeat values: a batch norm becomes one multiplication and one addition.
    """

    def __init__(self, images: jax.ShapeDtypeStruct) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: dict[int, tuple[str, np.ndarray]] = {}  # by id; held, so that no id is reused
        self._batch = images.shape[0]

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Appends a jaxpr.

        Returns:
          The values of its outputs.
        """
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
        known |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if hasattr(atom, "val"):
                return constant(np.asarray(atom.val, atom.aval.dtype))
            return known[atom]

        for equation in jaxpr.eqns:
            kind, values = equation.primitive.name, [read(atom) for atom in equation.invars]
            shape = equation.outvars[0].aval.shape
            name = equation.params.get("name")
            if kind == "jit" and name in FUNCTIONS and isinstance(values[0].data, str):
                outputs = [Value(FUNCTIONS[name](self, values[0].data), values[0].shape)]
            elif kind in CALLS:
                inner = equation.params[CALLS[kind]]
                outputs = self.run(inner.jaxpr, inner.consts, values)
            elif kind == "broadcast_in_dim":
                outputs = [self._broadcast(values[0], equation)]
            elif (folded := fold(equation, values)) is not None:
                outputs = folded
            elif kind in ELEMENTWISE:
                name = ELEMENTWISE[kind](self, equation, *map(self.name, values))
                outputs = [Value(name, broadcast_shapes(value.shape for value in values))]
            elif kind in OPERATIONS:
                outputs = [Value(OPERATIONS[kind](self, equation, *values), shape)]
            else:
                raise unknown(kind)
            known |= dict(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def node(self, kind: str, *inputs: str | np.ndarray, name: str = "", **attributes: Any) -> str:
        """Appends an operation; returns its output's name."""
        import onnx

        name = name or f"x{len(self.nodes)}"
        names = [self.name(constant(x)) if isinstance(x, np.ndarray) else x for x in inputs]
        self.nodes.append(onnx.helper.make_node(kind, names, [name], **attributes))
        return name

    def name(self, value: Value) -> str:
        """The tensor of a value, not broadcast: it may have sizes of 1."""
        import onnx

        if isinstance(value.data, str):
            return value.data
        if id(value.data) not in self._names:
            name = f"constant{len(self._names)}"
            self._names[id(value.data)] = name, value.data
            self.initializers.append(onnx.numpy_helper.from_array(value.data, name))
        return self._names[id(value.data)][0]

    def full(self, value: Value, shape: tuple[Any, ...]) -> str:
        """The tensor of a value, broadcast to the variable's shape."""
        name = self.name(value)
        if value.shape == shape:
            return name
        sizes = [
            np.array([n], np.int64)
            if isinstance(n, int)
            else self.node("Shape", "images", start=0, end=1)
            for n in shape
        ]
        if any(not isinstance(n, int) and n != self._batch for n in shape):
            raise unknown(f"broadcast to {shape}")
        return self.node("Expand", name, self.node("Concat", *sizes, axis=0))

    def reshape(self, name: str, shape: Sequence[Any]) -> str:
        if sum(not isinstance(n, int) for n in shape) > 1:
            raise unknown(f"reshape to {shape}")
        return self.node("Reshape", name, integers(n if isinstance(n, int) else -1 for n in shape))

    def transpose(self, name: str, axes: Sequence[int]) -> str:
        return self.node("Transpose", name, perm=list(axes))

    def _broadcast(self, value: Value, equation: Any) -> Value:
        axes = equation.params["broadcast_dimensions"]
        rank = len(equation.outvars[0].aval.shape)
        size = dict(zip(axes, value.shape, strict=True))
        shape = tuple(size.get(axis, 1) for axis in range(rank))
        if shape == value.shape:
            return value
        if isinstance(value.data, np.ndarray):
            return constant(value.data.reshape(shape))
        return Value(self.reshape(value.data, shape), shape)


def constant(array: Any) -> Value:
    """A value that depends on no image."""
    array = np.asarray(array)
    return Value(array, array.shape)


def integers(values: Iterable[int]) -> np.ndarray:
    """Shapes, axes and bounds as ONNX takes them, int64 [N]."""
    return np.array(list(values), np.int64)


def unknown(what: str) -> UserError:
    """The error of an operation that has no ONNX form here."""
    return UserError(
        f"--format=onnx: agejax cannot convert the operation {what!r} of this model; "
        "use --format=jax"
    )


def broadcast_shapes(shapes: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Like numpy's, for sizes that may be symbolic."""
    shapes = list(shapes)
    rank = max(map(len, shapes))
    aligned = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in aligned)


def fold(equation: Any, values: Sequence[Value]) -> list[Value] | None:
    """The results of an operation on constants; None where an input or a size is not known."""
    arrays = [value.data for value in values if isinstance(value.data, np.ndarray)]
    if len(arrays) < len(values):
        return None
    if equation.primitive.name in ELEMENTWISE:
        arrays = list(np.broadcast_arrays(*arrays))
    else:
        shapes = [atom.aval.shape for atom in (*equation.invars, *equation.outvars)]
        if not all(isinstance(n, int) for shape in shapes for n in shape):
            return None
        arrays = [np.broadcast_to(a, s) for a, s in zip(arrays, shapes, strict=False)]
    results = equation.primitive.bind(*arrays, **equation.params)
    return list(map(constant, results if equation.primitive.multiple_results else [results]))


def onnx_type(dtype: Any) -> int:
    """ONNX's number of a NumPy type."""
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _simple(kind: str) -> Operation:
    return lambda graph, equation, *names: graph.node(kind, *names)


def _select(graph: Graph, equation: Any, which: str, *cases: str) -> str:
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise unknown("select_n")
    return graph.node("Where", which, cases[1], cases[0])


ONE = np.array(1, np.float32)

# Elementwise primitives: (graph, equation, *names) -> name.
ELEMENTWISE: dict[str, Operation] = {
    "abs": _simple("Abs"),
    "add": _simple("Add"),
    "and": _simple("And"),
    "ceil": _simple("Ceil"),
    "clamp": lambda g, _, low, x, high: g.node("Min", g.node("Max", x, low), high),
    "convert_element_type": lambda g, eqn, x: g.node(
        "Cast", x, to=onnx_type(eqn.params["new_dtype"])
    ),
    "copy": lambda g, _, x: x,
    "div": _simple("Div"),
    "eq": _simple("Equal"),
    "erf": _simple("Erf"),
    "erfc": lambda g, _, x: g.node("Sub", ONE, g.node("Erf", x)),
    "exp": _simple("Exp"),
    "expm1": lambda g, _, x: g.node("Sub", g.node("Exp", x), ONE),
    "floor": _simple("Floor"),
    "ge": _simple("GreaterOrEqual"),
    "gt": _simple("Greater"),
    "integer_pow": lambda g, eqn, x: g.node("Pow", x, np.array(eqn.params["y"], np.float32)),
    "le": _simple("LessOrEqual"),
    "log": _simple("Log"),
    "log1p": lambda g, _, x: g.node("Log", g.node("Add", x, ONE)),
    "logistic": _simple("Sigmoid"),
    "lt": _simple("Less"),
    "max": _simple("Max"),
    "min": _simple("Min"),
    "mul": _simple("Mul"),
    "neg": _simple("Neg"),
    "not": _simple("Not"),
    "or": _simple("Or"),
    "pow": _simple("Pow"),
    "rsqrt": lambda g, _, x: g.node("Reciprocal", g.node("Sqrt", x)),
    "select_n": _select,
    "sign": _simple("Sign"),
    "sqrt": _simple("Sqrt"),
    "square": lambda g, _, x: g.node("Mul", x, x),
    "stop_gradient": lambda g, _, x: x,
    "sub": _simple("Sub"),
    "tanh": _simple("Tanh"),
}


def _inputs(graph: Graph, equation: Any, values: Sequence[Value]) -> list[str]:
    """The inputs of an operation, each in its own shape."""
    pairs = zip(values, equation.invars, strict=True)
    return [graph.full(value, atom.aval.shape) for value, atom in pairs]


def _reshape(graph: Graph, equation: Any, *values: Value) -> str:
    (name,) = _inputs(graph, equation, values)
    return graph.reshape(name, equation.outvars[0].aval.shape)


def _transpose(graph: Graph, equation: Any, *values: Value) -> str:
    (name,) = _inputs(graph, equation, values)
    return graph.transpose(name, equation.params["permutation"])


def _concatenate(graph: Graph, equation: Any, *values: Value) -> str:
    names = _inputs(graph, equation, values)
    return graph.node("Concat", *names, axis=equation.params["dimension"])


def _stack(graph: Graph, equation: Any, *values: Value) -> str:
    axis = equation.params["axis"]
    names = _inputs(graph, equation, values)
    parts = [graph.node("Unsqueeze", name, integers([axis])) for name in names]
    return graph.node("Concat", *parts, axis=axis)


def _slice(graph: Graph, equation: Any, *values: Value) -> str:
    (name,), p = _inputs(graph, equation, values), equation.params
    shape = equation.invars[0].aval.shape
    return _cut(graph, name, shape, p["start_indices"], p["limit_indices"], p["strides"])


def _cut(
    graph: Graph,
    name: str,
    shape: Sequence[Any],
    starts: Sequence[int],
    ends: Sequence[Any],
    strides: Sequence[int] | None = None,
) -> str:
    strides = strides or (1,) * len(shape)
    # An axis that stays whole may be the batch, whose size is unknown.
    axes = [i for i, n in enumerate(shape) if ends[i] != n or starts[i] or strides[i] != 1]
    bounds = ([each[i] for i in axes] for each in (starts, ends))
    steps = integers(strides[i] for i in axes)
    return graph.node("Slice", name, *map(integers, bounds), integers(axes), steps)


def _pad(graph: Graph, equation: Any, *values: Value) -> str:
    before, after, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise unknown("pad between elements")
    name, value = _inputs(graph, equation, values)
    return graph.node("Pad", name, integers((*before, *after)), value)


def _reduce(kind: str) -> Operation:
    def operation(graph: Graph, equation: Any, *values: Value) -> str:
        (name,) = _inputs(graph, equation, values)
        return graph.node(kind, name, integers(equation.params["axes"]), keepdims=0)

    return operation


def _argmax(graph: Graph, equation: Any, *values: Value) -> str:
    (name,), (axis,) = _inputs(graph, equation, values), equation.params["axes"]
    index = graph.node("ArgMax", name, axis=axis, keepdims=0)
    return graph.node("Cast", index, to=onnx_type(equation.params["index_dtype"]))


def _cumsum(graph: Graph, equation: Any, *values: Value) -> str:
    (name,), p = _inputs(graph, equation, values), equation.params
    return graph.node("CumSum", name, np.array(p["axis"], np.int64), reverse=int(p["reverse"]))


def _dot_general(graph: Graph, equation: Any, *values: Value) -> str:
    names = _inputs(graph, equation, values)
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    if not left_batch and ranks[1] == 2 and (left_sum, right_sum) == ((ranks[0] - 1,), (0,)):
        return graph.node("MatMul", *names)
    letters = iter(string.ascii_lowercase)
    left = [next(letters) for _ in range(ranks[0])]
    right = [next(letters) for _ in range(ranks[1])]
    for i, j in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
        right[j] = left[i]
    batch = [left[i] for i in left_batch]
    summed = [left[i] for i in left_sum]
    free = [c for c in (*left, *right) if c not in (*batch, *summed)]
    result = "".join((*batch, *free))
    return graph.node("Einsum", *names, equation=f"{''.join(left)},{''.join(right)}->{result}")


def _conv(graph: Graph, equation: Any, x: Value, kernel: Value) -> str:
    p = equation.params
    if p["batch_group_count"] != 1 or any(n != 1 for n in p["lhs_dilation"]):
        raise unknown("transposed convolution")
    spec = p["dimension_numbers"]  # positions of batch, channels and space, in ONNX's order
    before, after = zip(*p["padding"], strict=True)
    if isinstance(kernel.data, np.ndarray):
        weights: str | np.ndarray = np.ascontiguousarray(kernel.data.transpose(spec.rhs_spec))
    else:
        weights = graph.transpose(kernel.data, spec.rhs_spec)
    y = graph.node(
        "Conv",
        graph.transpose(graph.full(x, equation.invars[0].aval.shape), spec.lhs_spec),
        weights,
        strides=p["window_strides"],
        pads=[*before, *after],
        dilations=p["rhs_dilation"],
        group=p["feature_group_count"],
    )
    return graph.transpose(y, np.argsort(spec.out_spec).tolist())


def _pool(graph: Graph, equation: Any, values: Sequence[Value], kind: str, **extra: Any) -> str:
    p, (name,) = equation.params, _inputs(graph, equation, values)
    window, dilated = p["window_dimensions"], (*p["base_dilation"], *p["window_dilation"])
    if len(window) != 4 or window[0] != 1 or window[3] != 1 or any(n != 1 for n in dilated):
        raise unknown(f"{equation.primitive.name} but over height and width")
    before, after = zip(*p["padding"][1:3], strict=True)
    y = graph.node(
        kind,
        graph.transpose(name, (0, 3, 1, 2)),
        kernel_shape=window[1:3],
        strides=p["window_strides"][1:3],
        pads=[*before, *after],
        **extra,
    )
    return graph.transpose(y, (0, 2, 3, 1))


def _max_pool(graph: Graph, equation: Any, *values: Value) -> str:
    return _pool(graph, equation, values, "MaxPool")


def _sum_pool(graph: Graph, equation: Any, *values: Value) -> str:
    mean = _pool(graph, equation, values, "AveragePool", count_include_pad=1)
    window = math.prod(equation.params["window_dimensions"])
    return graph.node("Mul", mean, np.array(window, equation.outvars[0].aval.dtype))


def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> str:
    """Converts three kinds of gather: a constant slice, rows of one axis, an element of each row.

    Assumes that indices are in bounds: JAX has wrapped negative ones, and a prediction has no
    others.
    """
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    name, mapped = graph.full(x, shape), numbers.start_index_map
    if isinstance(indices.data, np.ndarray) and indices.data.ndim == 1:
        start = dict(zip(mapped, indices.data.tolist(), strict=True))
        starts = [start.get(axis, 0) for axis in range(len(shape))]
        ends = [
            a + n if i in start else n for i, (a, n) in enumerate(zip(starts, sizes, strict=True))
        ]
        return graph.reshape(_cut(graph, name, shape, starts, ends), out)
    batch = len(numbers.operand_batching_dims)
    if numbers.collapsed_slice_dims != mapped or numbers.start_indices_batching_dims != tuple(
        range(batch)
    ):
        raise unknown("gather")
    index_shape = equation.invars[1].aval.shape
    index = graph.node("Cast", graph.full(indices, index_shape), to=onnx_type(np.int64))
    trailing = tuple(range(len(out) - len(numbers.offset_dims), len(out)))
    if numbers.offset_dims == trailing and mapped == tuple(range(batch, batch + len(mapped))):
        return graph.node("GatherND", name, index, batch_dims=batch)
    raise unknown("gather")


# Other primitives: (graph, equation, *values) -> name.
OPERATIONS: dict[str, Operation] = {
    "argmax": _argmax,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "expand_dims": _reshape,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}

# Functions of jax.nn with an ONNX operation of their own: (graph, name) -> name. ONNX Runtime fuses
# them into the convolution before them: int8's 256 values then cover only the function's outputs.
FUNCTIONS: dict[str, Callable[[Graph, str], str]] = {
    "hard_sigmoid": lambda g, x: g.node("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    "hard_silu": lambda g, x: g.node("HardSwish", x),
    "relu": lambda g, x: g.node("Relu", x),
    "relu6": lambda g, x: g.node("Clip", x, np.array(0, np.float32), np.array(6, np.float32)),
}

# Calls of functions -> the parameter that holds their jaxpr.
CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
