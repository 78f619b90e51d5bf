"""The model as pure functions over flat dicts, and the state of a training run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.sharding import Mesh

from agejax.errors import UserError
from agejax.heads import Head, ages
from agejax.logging import console
from agejax.models import layers, pretrained, registry
from agejax.models.backbone import Features, heights
from agejax.models.face_model import FaceModel
from agejax.models.feature_smoothing import SmoothingOptions
from agejax.models.necks import NeckOptions
from agejax.training import optim, sharding
from agejax.training.optim import Flat
from agejax.training.vectors import Vectors

Initialise = Callable[[jax.Array], tuple[Flat, Flat]]  # key -> (params, batch_stats)
Arrays = Mapping[str, jax.typing.ArrayLike]
Start = Callable[[Flat, Flat], tuple[Arrays, Arrays]]  # initialised arrays -> those to train from
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes. No random key: it is folded from the seed and `step`.

    Attributes:
      step: int32 [], steps done.
      params, batch_stats: float32, by flat name. Those that are updated alike share a vector; with
        config.sharding.fsdp > 1 each has its own.
        Beside the network's parameters a run that learns a teacher's features has those of its map
        (agejax/training/feature_map.py).
      opt_state: of the trainable parameters only.
      ema: averaged {"params", "batch_stats"}, or None.
    """

    step: jax.Array
    params: Vectors
    batch_stats: Vectors
    opt_state: Any
    ema: dict[str, Vectors] | None

    def averaged(self) -> tuple[Vectors, Vectors]:
        """The (params, batch_stats) to evaluate with: the averages, if they are kept."""
        if self.ema is None:
            return self.params, self.batch_stats
        return self.ema["params"], self.ema["batch_stats"]


@dataclasses.dataclass(frozen=True)
class Model:
    """A network without its arrays, and its heads.

    It uses only its own of the arrays given to it: a state may hold more, such as the map to a
    teacher's features.
    """

    graphdef: Any
    paths: Mapping[str, tuple[Any, ...]]  # flat name -> NNX path
    parameters: Mapping[str, int]  # flat name -> `backbone.heights`
    shapes: Mapping[str, tuple[int, ...]]  # of parameters and batch statistics, by flat name
    heads: Mapping[str, Head]
    feature_dim: int  # of the backbone's pooled features

    def apply(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        images: jax.Array | Features,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        **labels: Any,
    ) -> tuple[dict[str, jax.Array], Flat]:
        """Images [B, H, W, 3] in 0..1 -> ({head: outputs [B, width]}, new batch statistics).

        Args:
          images: or the backbone's features of them.
          labels: other arguments of `FaceModel`, such as labels in training.
        """
        network = self.network(params, batch_stats)
        rngs = nnx.Rngs(dropout=key) if key is not None else None
        outputs = network(images, train=train, rngs=rngs, **labels)
        return outputs, _flatten(nnx.state(network, nnx.BatchStat))[0]

    def network(
        self, params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array]
    ) -> FaceModel:
        """The module itself, with these arrays; a new one at every call."""
        arrays = (self._nested(params), self._nested(batch_stats))
        network: FaceModel = nnx.merge(self.graphdef, *arrays)
        return network

    def _nested(self, flat: Mapping[str, jax.Array]) -> dict[str, Any]:
        own = {self.paths[k]: v for k, v in flat.items() if k in self.paths}
        nested: dict[str, Any] = traverse_util.unflatten_dict(own)
        return nested


def create_model(config: Any, heads: Mapping[str, Head]) -> tuple[Model, Initialise]:
    """config.model and heads -> (model, initialise(key) -> (params, batch_stats))."""
    c = config.model
    registry.check_options(c.name, c.options)  # before they are passed along with our own
    necks = {
        name: NeckOptions.of(given.neck, f"config.heads.{name}.neck")
        for name, given in config.heads.items()
        if "neck" in given
    }
    smoothing = {
        name: SmoothingOptions.of(given.fds, f"config.heads.{name}.fds")
        for name, given in config.heads.items()
        if "fds" in given
    }
    if wrong := [name for name in smoothing if not isinstance(heads[name], ages.Age)]:
        raise UserError(f"config.heads.{wrong[0]}.fds: features are smoothed over ages only")
    for name in ("mixup", "cutmix"):
        if smoothing and config.augment.get(name):
            raise UserError(
                f"config.augment.{name}: a mixed image has no age whose features to smooth"
            )

    def build(key: jax.Array) -> FaceModel:
        rngs = nnx.Rngs(params=key)
        trunk = registry.create(
            c.name, image_size=c.image_size, rngs=rngs, dtype=DTYPES[c.dtype], **c.options
        )
        trunk.remat = c.get("remat", False)
        return FaceModel(
            trunk,
            {name: head.output for name, head in heads.items()},
            necks,
            smoothing,
            image_size=c.image_size,
            mean=c.mean,
            std=c.std,
            hidden=c.hidden,
            dropout=c.dropout,
            dtype=DTYPES[c.dtype],
            rngs=rngs,
        )

    abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
    _set_batch_norms(abstract, config)
    graphdef, (params, stats) = _split(abstract)
    (params, params_paths), (stats, stats_paths) = _flatten(params), _flatten(stats)
    shapes = {name: array.shape for name, array in (params | stats).items()}

    @jax.jit  # built once, for both shapes and arrays
    def initialise(key: jax.Array) -> tuple[Flat, Flat]:
        _, (params, stats) = _split(build(key))
        return _flatten(params)[0], _flatten(stats)[0]

    paths = params_paths | stats_paths
    parameters = heights(abstract.backbone, tuple(params_paths))
    feature_dim = abstract.backbone.feature_dim
    return Model(graphdef, paths, parameters, shapes, heads, feature_dim), initialise


def abstract(
    config: Any, initialise: Initialise, optimizer: optim.Optimizer, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of a state, without arrays: to restore a checkpoint to."""
    shapes = jax.eval_shape(
        lambda key: _start(config, optimizer, mesh, *initialise(key)), jax.random.key(0)
    )
    placed: TrainState = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        sharding.state_shardings(shapes, mesh),
    )
    return placed


def create(
    config: Any,
    initialise: Initialise,
    optimizer: optim.Optimizer,
    mesh: Mesh,
    start_from: Start | None = None,
) -> TrainState:
    """Creates a new state on the mesh. One jit makes all arrays, each on its own devices.

    Args:
      start_from: replaces initialised arrays by trained ones; default: those of the weights file in
        config.model.pretrained, if it names one.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract(config, initialise, optimizer, mesh))
    start = functools.partial(_start, config, optimizer, mesh)
    key = jax.random.key(config.seed)
    # The draws of all arrays take XLA:CPU as long to compile as a train step, and run once: with
    # fewer of LLVM's passes it takes half as long and draws the same numbers.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    jit = functools.partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 1} if on_cpu else {}
    )
    state: TrainState
    if start_from is not None:
        state = jit(start, out_shardings=shardings)(*start_from(*jit(initialise)(key)))
    elif config.model.pretrained:
        known = from_file(config.model, *jax.eval_shape(initialise, key))
        # Only what the file lacks is drawn.
        drawn = jit(lambda key: tuple(map(_where_abstract, known, initialise(key))))(key)
        arrays = (dict(each) | more for each, more in zip(known, drawn, strict=True))
        state = jit(start, out_shardings=shardings)(*arrays)
    else:
        state = jit(lambda key: start(*initialise(key)), out_shardings=shardings)(key)
    return state


def _where_abstract(known: Arrays, arrays: Flat) -> Flat:
    """Those of `arrays` that are abstract in `known`."""
    return {k: v for k, v in arrays.items() if isinstance(known[k], jax.ShapeDtypeStruct)}


def from_file(config: Any, params: Flat, batch_stats: Flat) -> tuple[Arrays, Arrays]:
    """Replaces the backbone's arrays by those of the weights file that config.model names.

    Arrays that it has not stay as they are, also abstract ones.
    """
    shapes = {name: value.shape for name, value in (params | batch_stats).items()}
    loaded = pretrained.load(config.pretrained, config.name, shapes)
    console.result(f"{loaded}; images normalised with mean {config.mean} and std {config.std}")
    return (
        {name: loaded.arrays.get(name, value) for name, value in params.items()},
        {name: loaded.arrays.get(name, value) for name, value in batch_stats.items()},
    )


def _start(
    config: Any, optimizer: optim.Optimizer, mesh: Mesh, params: Flat, batch_stats: Flat
) -> TrainState:
    # Several devices that share the state split each array along an axis of its own.
    merged = mesh.shape["fsdp"] == 1
    # cuDNN reads kernels by output, and would copy others in every step; XLA:CPU would copy these.
    by_output = mesh.devices.flat[0].platform == "gpu"
    rates = optimizer.rates if merged else {k: k for k in params}
    parameters = Vectors.of(params, rates, by_output)
    statistics = Vectors.of(batch_stats, {k: "" if merged else k for k in batch_stats})
    average = {"params": parameters, "batch_stats": statistics} if config.optim.ema else None
    return TrainState(
        step=jnp.int32(0),
        params=parameters,
        batch_stats=statistics,
        opt_state=optimizer.transform.init(optimizer.split(parameters)[0]),
        # A copy: the state is donated, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, average),
    )


def _split(network: nnx.Module) -> tuple[Any, list[Any]]:
    graphdef, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
    return graphdef, states


def _flatten(state: Any) -> tuple[Flat, dict[str, tuple[Any, ...]]]:
    by_path = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    paths = {"/".join(map(str, path)): path for path in by_path}
    return {name: by_path[path] for name, path in paths.items()}, paths


def _set_batch_norms(network: nnx.Module, config: Any) -> None:
    """Tells batch norms whose statistics to use.

    Those of a frozen batch norm are frozen too: they would drift under frozen weights.
    """
    # The config of an old run lacks the setting.
    per_device = config.sharding.get("batch_norm", "global") == "device"
    for path, norm in layers.batch_norms(network).items():
        name, groups = f"{path}/scale", config.optim.lr_multipliers
        multiplier = optim.match_groups([name], groups, "optim.lr_multipliers")[name]
        norm.frozen, norm.per_device = multiplier is None, per_device
