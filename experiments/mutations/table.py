"""The changes, each with the tests that should catch it.

`old` must occur exactly once in its file, or the run is refused: so the table cannot grow stale
unseen. `survived`: one of the kinds that all tests together once let through.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change of the code.

    Attributes:
      name: what it breaks.
      file: from the root of the repository.
      tests: below tests/, as pytest names them.
      survived: whether all tests passed with such a change before there were tests for it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survived: bool = False


STEP = "agejax/step.py"
STATE = "agejax/state.py"
OPTIM = "agejax/optim.py"
TRAIN = "agejax/train.py"

# ---- what tests once let through ----------------------------------------------------------------

SURVIVORS = (
    Mutation(
        "an unknown label has a loss", STEP,
        "term = share * head.known(labels) * head.loss", "term = share * head.loss",
        ("test_step.py::test_a_half_labelled_batch_teaches_what_its_labelled_rows_alone_would",),
    ),
    Mutation(
        "unknown labels count in the mean of a loss", STEP,
        "jnp.sum(weight * s * head.known(y))", "jnp.sum(weight * s)",
        ("test_step.py::test_a_half_labelled_batch_teaches_what_its_labelled_rows_alone_would",),
    ),
    Mutation(
        "padding counts in the mean of a loss", STEP,
        "jnp.sum(weight * s * head.known(y))", "jnp.sum(s * head.known(y))",
        ("test_step.py::test_a_row_of_weight_0_counts_nowhere",),
    ),
    Mutation(
        "unknown labels count in a training metric", STEP,
        'known = part["weight"] * head.known(part["targets"][0][0])', 'known = part["weight"]',
        ("test_step.py::test_a_half_labelled_batch_teaches_what_its_labelled_rows_alone_would",),
    ),
    Mutation(
        "a mixed row keeps its own label alone", STEP,
        "partner = {k: v[mix.partner] for k, v in labels.items()}", "partner = labels",
        ("test_step.py::test_a_mixed_row_learns_the_labels_of_the_row_it_is_mixed_with",),
    ),
    Mutation(
        "mixup names another partner than the image's", "agejax/data/augment.py",
        "jnp.roll(jnp.arange(len(lam), dtype=jnp.int32), 1)",
        "jnp.roll(jnp.arange(len(lam), dtype=jnp.int32), 2)",
        ("test_step.py::test_a_mixed_row_learns_the_labels_of_the_row_it_is_mixed_with",),
    ),
    Mutation(
        "mixed labels have the wrong shares", STEP,
        "(partner, 1 - mix.lam)", "(partner, mix.lam)",
        ("test_step.py::test_a_mixed_row_learns_the_labels_of_the_row_it_is_mixed_with",),
    ),
    Mutation(
        "every step has the same key", STEP,
        "jax.random.fold_in(jax.random.key(seed), state.step)", "jax.random.key(seed)",
        ("test_step.py::test_every_step_draws_anew_and_the_same_step_the_same",),
    ),
    Mutation(
        "the schedule is one step late", OPTIM,
        "chain.append(optax.scale_by_learning_rate(schedule))",
        "chain.append(optax.scale_by_learning_rate(lambda t: schedule(t + 1)))",
        ("test_step.py::test_the_learning_rate_of_each_step_is_the_one_that_is_applied_and_logged",),
    ),
    Mutation(
        "averages do not warm up", OPTIM,
        "jax.numpy.minimum(decay, (1.0 + step) / (10.0 + step))", "jax.numpy.float32(decay)",
        ("test_step.py::test_averages_warm_up_and_are_of_parameters_and_statistics",),
    ),
    Mutation(
        "averages warm up and never reach their decay", OPTIM,
        "jax.numpy.minimum(decay, (1.0 + step) / (10.0 + step))", "(1.0 + step) / (10.0 + step)",
        ("test_step.py::test_averages_warm_up_and_are_of_parameters_and_statistics",),
    ),
    Mutation(
        "averages lag a step behind", STEP,
        'new = {"params": params,', 'new = {"params": state.params,',
        ("test_step.py::test_averages_warm_up_and_are_of_parameters_and_statistics",),
    ),
    Mutation(
        "averages keep what they should give away", STEP,
        "decay * a + (1 - decay) * n", "(1 - decay) * a + decay * n",
        ("test_step.py::test_averages_warm_up_and_are_of_parameters_and_statistics",),
    ),
    Mutation(
        "updates are clipped, not gradients", OPTIM,
        "    chain.append(direction)\n", "    chain.insert(0, direction)\n",
        ("test_step.py::test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments",),
    ),
    Mutation(
        "a gradient that is not finite goes unseen", "agejax/logging/train_log.py",
        'for name in ("loss", "gradient_norm"):', 'for name in ("loss",):',
        ("test_step.py::test_an_infinite_gradient_beside_a_finite_loss_stops_a_run",),
    ),
    Mutation(
        "a step with a gradient that is not finite is not skipped", STEP,
        'finite = jnp.isfinite(sums["loss"][0]) & jnp.isfinite(sums["gradient_norm"][0])',
        'finite = jnp.isfinite(sums["loss"][0])',
        ("test_step.py::test_an_infinite_gradient_beside_a_finite_loss_is_skipped_and_nothing_moves",),
    ),
)  # fmt: skip

# ---- further wiring ------------------------------------------------------------------------------

OTHERS = (
    Mutation(
        "a head's weight is ignored", STEP,
        "total += head.weight * (1 - share_of_teachers) * mean",
        "total += (1 - share_of_teachers) * mean",
        ("test_step.py::test_a_half_labelled_batch_teaches_what_its_labelled_rows_alone_would",),
    ),
    Mutation(
        "dropout and augmentation share a key", STEP,
        "key_augment, key_dropout = jax.random.split(key)", "key_augment = key_dropout = key",
        ("test_step.py::test_a_mixed_row_learns_the_labels_of_the_row_it_is_mixed_with",),
    ),
    Mutation(
        "micro-batches share a dropout key", STEP,
        "part_key = jax.random.fold_in(key_dropout, i)", "part_key = key_dropout",
        ("test_step.py::test_micro_batches_drop_features_of_their_own",),
    ),
    Mutation(
        "each micro-batch has the whole penalty", STEP,
        "term = penalty(rest | trainable) / micro", "term = penalty(rest | trainable)",
        ("test_step.py::test_micro_batches_with_all_labels_on_one_side_add_up_to_the_whole",),
    ),
    Mutation(
        "micro-batches take the last gradient", STEP,
        "return (jax.tree.map(jnp.add, grads, more), stats), sums", "return (more, stats), sums",
        ("test_step.py::test_micro_batches_with_all_labels_on_one_side_add_up_to_the_whole",),
    ),
    Mutation(
        "example weights always count", STEP,
        "counts_now = step >= after.get(name, 0)", "counts_now = True",
        ("test_step.py::test_example_weights_multiply_the_loss_and_divide_nothing",),
    ),
    Mutation(
        "deferred example weights come one step late", STEP,
        "counts_now = step >= after.get(name, 0)", "counts_now = step > after.get(name, -1)",
        ("test_step.py::test_example_weights_multiply_the_loss_and_divide_nothing",),
    ),
    Mutation(
        "an epoch of feature smoothing is rounded", STEP,
        "jnp.floor(step / steps_per_epoch)", "jnp.round(step / steps_per_epoch)",
        ("test_step.py::test_feature_smoothing_counts_whole_epochs_and_takes_each_heads_ages",),
    ),
    Mutation(
        "a skipped step moves its statistics", STEP,
        "left = dataclasses.replace(state, step=state.step + 1)",
        "left = dataclasses.replace(state, step=state.step + 1, ema=average)",
        ("test_step.py::test_an_infinite_gradient_beside_a_finite_loss_is_skipped_and_nothing_moves",),
    ),
    Mutation(
        "a skipped step's loss counts", STEP,
        "sums = {name: jnp.where(finite, value, 0) for name, value in sums.items()}",
        "sums = {**sums}",
        ("test_step.py::test_an_infinite_gradient_beside_a_finite_loss_is_skipped_and_nothing_moves",),
    ),
    Mutation(
        "the last head of a label speaks for it", STEP,
        "predictions.setdefault(head.label, head.decode(outputs[name]))",
        "predictions[head.label] = head.decode(outputs[name])",
        ("test_step.py::test_predictions_are_in_years_and_the_first_of_two_heads_of_a_label_speaks_for_it",),
    ),
    Mutation(
        "decay is of all parameters", OPTIM,
        "_add_decay({n: config.weight_decay * decay[n] for n in lr})",
        "_add_decay({n: config.weight_decay for n in lr})",
        ("test_step.py::test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments",),
    ),
    Mutation(
        "decay goes through the moments", OPTIM,
        "    chain.append(direction)\n    if config.weight_decay:\n"
        "        chain.append(_add_decay({n: config.weight_decay * decay[n] for n in lr}))",
        "    if config.weight_decay:\n"
        "        chain.append(_add_decay({n: config.weight_decay * decay[n] for n in lr}))\n"
        "    chain.append(direction)",
        ("test_step.py::test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments",),
    ),
    Mutation(
        "adam's second moment has the first one's rate", OPTIM,
        "optax.scale_by_adam(config.b1, config.b2, config.eps)",
        "optax.scale_by_adam(config.b1, config.b1, config.eps)",
        ("test_step.py::test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments",),
    ),
)  # fmt: skip

MUTATIONS = (*(m._replace(survived=True) for m in SURVIVORS), *OTHERS)
