"""The changes, each with the tests that should catch it.

`old` must occur exactly once in its file, or the run is refused, so that the table cannot become
stale unnoticed. `survived`: a kind that all tests together once let through.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change of the code.

    Attributes:
      name: what the change breaks.
      file: relative to the root of the repository.
      tests: relative to tests/, as pytest names them.
      survived: whether all tests passed with such a change before there were tests for it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survived: bool = False


STEP = "agejax/training/step.py"
STATE = "agejax/training/state.py"
OPTIM = "agejax/training/optim.py"
TRAIN = "agejax/train.py"
DATA = "agejax/run_data.py"
RUN = "agejax/runs/run.py"

# ---- changes that tests once let through ---------------------------------------------------------

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
        "mixup names another partner than the image's", "agejax/training/augment.py",
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
        "a teacher's targets are of its own sampler's world", "agejax/distillation/networks.py",
        "priors.between(ratio, ratios[name])", "()",
        ("test_distill.py::test_targets_are_of_the_world_that_the_students_sampler_shows",),
    ),
    Mutation(
        "a file's rows are taken in the order of the images", "agejax/distillation/files.py",
        "        rows = order[place]", "        rows = place",
        ("test_distill.py::test_a_file_teaches_what_its_run_would_of_images_as_they_are",),
    ),
    Mutation(
        "targets of a file are not mixed", "agejax/distillation/teachers.py",
        "if not member.size and mix is not None:", "if False:",
        ("test_distill.py::test_an_image_without_a_row_is_an_error_or_learns_from_its_labels_alone",),
    ),
    Mutation(
        "every step has the same key", STEP,
        "jax.random.fold_in(jax.random.key(seed), step)", "jax.random.key(seed)",
        ("test_step.py::test_every_step_draws_anew_and_the_same_step_the_same",),
    ),
    Mutation(
        "the schedule is one step late", OPTIM,
        "chain.append(_scale_by_schedule(schedule))",
        "chain.append(_scale_by_schedule(lambda t: schedule(t + 1)))",
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
    Mutation(
        "an opened run has the last step's own weights", RUN,
        "params, batch_stats = state.averaged()",
        "params, batch_stats = state.params, state.batch_stats",
        ("test_state.py::test_an_opened_run_has_the_averages",),
    ),
    Mutation(
        "training evaluates the last step's own weights", "agejax/evaluation/validation.py",
        "self.eval_step, *state.averaged(), val",
        "self.eval_step, state.params, state.batch_stats, val",
        ("test_state.py::test_the_evaluation_in_training_is_that_of_the_averages_on_val",),
    ),
    Mutation(
        "averaged() is never of the averages", STATE,
        "if self.ema is None:", "if True:",
        ("test_state.py::test_the_averages_are_what_to_evaluate_with_where_they_are_kept",),
    ),
    Mutation(
        "averages of parameters, statistics of the last step", STATE,
        'return self.ema["params"], self.ema["batch_stats"]',
        'return self.ema["params"], self.batch_stats',
        ("test_state.py::test_the_averages_are_what_to_evaluate_with_where_they_are_kept",),
    ),
    Mutation(
        "training evaluates on its own images", TRAIN,
        'data.heads, data.source, data.rows.get("val")',
        'data.heads, data.source, data.rows["train"][: len(data.rows["val"])]',
        ("test_state.py::test_the_evaluation_in_training_is_that_of_the_averages_on_val",),
    ),
    Mutation(
        "facts are of all images", DATA,
        "{k: v[train_rows] for k, v in source.labels.items()}", "dict(source.labels)",
        ("test_state.py::test_facts_are_of_the_training_images_alone",),
    ),
    Mutation(
        "sampling.keep does nothing", DATA,
        'draws.keep(config.sampling, source, rows["train"])', 'rows["train"]',
        ("test_loop.py::test_only_what_sampling_keep_leaves_is_trained_on_and_counted",),
    ),
    Mutation(
        "an epoch is the training images once", TRAIN,
        "examples=sampler.size", 'examples=len(data.rows["train"])',
        ("test_loop.py::test_an_epoch_is_as_many_draws_as_the_sampler_makes",),
    ),
    Mutation(
        "logged epochs are the training images once", TRAIN,
        "steps_per_epoch = sampler.size / ", 'steps_per_epoch = len(data.rows["train"]) / ',
        ("test_loop.py::test_an_epoch_is_as_many_draws_as_the_sampler_makes",),
    ),
    Mutation(
        "the summary's epochs are the training images once", TRAIN,
        "epoch_size=sampler.size", 'epoch_size=len(data.rows["train"])',
        ("test_loop.py::test_an_epoch_is_as_many_draws_as_the_sampler_makes",),
    ),
    Mutation(
        "no evaluation at a last step that is no multiple", TRAIN,
        "(step % eval_every == 0 or step == total_steps)", "(step % eval_every == 0)",
        ("test_loop.py::test_val_is_looked_at_when_due_and_at_the_last_step",),
    ),
    Mutation(
        "stop_after is not asked", TRAIN,
        "value is not None and stop_after(step, value)", "False",
        ("test_loop.py::test_whoever_is_asked_may_end_the_run_after_an_evaluation",),
    ),
    Mutation(
        "stop_after is asked for the best value", TRAIN,
        "stop_after(step, value)", "stop_after(step, best.value)",
        ("test_loop.py::test_val_is_looked_at_when_due_and_at_the_last_step",),
    ),
    Mutation(
        "the gaussian's sigma is its variance", "agejax/heads/ages.py",
        "jnp.exp(0.5 * self._log_variance(output))", "jnp.exp(self._log_variance(output))",
        ("test_step.py::test_predictions_are_in_years_and_the_first_of_two_heads_of_a_label_speaks_for_it",),
    ),
    Mutation(
        "the gaussian's sigma is in no years", "agejax/heads/ages.py",
        "jnp.exp(0.5 * self._log_variance(output)) * self.scale.std",
        "jnp.exp(0.5 * self._log_variance(output))",
        ("test_step.py::test_predictions_are_in_years_and_the_first_of_two_heads_of_a_label_speaks_for_it",),
    ),
    Mutation(
        "an exported file is compared with itself", "agejax/exporting/files.py",
        "error = difference(loaded(images), expected)", "error = difference(expected, expected)",
        ("test_export.py::test_a_file_that_is_off_in_one_output_is_not_written",),
    ),
    Mutation(
        "an exported file may differ in all outputs but one", "agejax/exporting/prediction.py",
        "        np.max([\n", "        np.min([\n",
        ("test_export.py::test_a_difference_is_the_largest_of_all_in_units_of_each_outputs_largest_value",),
    ),
    Mutation(
        "an exported file may differ in single images", "agejax/exporting/prediction.py",
        "np.abs(given[k] - v).max()", "np.abs(given[k] - v).mean()",
        ("test_export.py::test_a_difference_is_the_largest_of_all_in_units_of_each_outputs_largest_value",),
    ),
    Mutation(
        "an exported file has weights that were never averaged", "agejax/runs/run.py",
        "params, batch_stats = state.averaged()",
        "params, batch_stats = state.params, state.batch_stats",
        ("test_export.py::test_a_file_says_what_layers_by_hand_say_of_the_saved_averages",),
    ),
    Mutation(
        "a crop is wider than its area", "agejax/training/augment.py",
        "across = jnp.minimum(jnp.sqrt(area * ratio), 1)",
        "across = jnp.minimum(jnp.sqrt(area) * ratio, 1)",
        ("test_augment.py::test_a_crop_has_the_width_and_height_of_its_area_and_ratio",),
    ),
    Mutation(
        "a crop is a square", "agejax/training/augment.py",
        "along = jnp.minimum(jnp.sqrt(area / ratio), 1)", "along = across",
        ("test_augment.py::test_a_crop_has_the_width_and_height_of_its_area_and_ratio",),
    ),
    Mutation(
        "a crop keeps the whole width", "agejax/training/augment.py",
        "step_x = across * zoom * width / size", "step_x = zoom * width / size",
        ("test_augment.py::test_a_crop_has_the_width_and_height_of_its_area_and_ratio",),
    ),
    Mutation(
        "a duration is rounded down", "agejax/training/durations.py",
        "return max(1, round(steps)) if value else 0", "return max(1, int(steps)) if value else 0",
        ("test_durations.py::test_every_unit_becomes_steps",),
    ),
    Mutation(
        "a duration is rounded up", "agejax/training/durations.py",
        "return max(1, round(steps)) if value else 0",
        "return max(1, int(steps + 0.999)) if value else 0",
        ("test_durations.py::test_every_unit_becomes_steps",),
    ),
    Mutation(
        "a neck drops before its first layer", "agejax/models/necks.py",
        "x = x if i == 0 else self.dropout(x, train=train, rngs=rngs)",
        "x = self.dropout(x, train=train, rngs=rngs)",
        ("test_necks.py::test_a_neck_drops_before_each_dense_layer_but_the_first_and_before_the_output",),
    ),
    Mutation(
        "a neck drops before its output alone", "agejax/models/necks.py",
        "x = x if i == 0 else self.dropout(x, train=train, rngs=rngs)", "x = x if i == 0 else x",
        ("test_necks.py::test_a_neck_drops_before_each_dense_layer_but_the_first_and_before_the_output",),
    ),
    Mutation(
        "a state that is not finite is saved", TRAIN,
        "log.flush()  # raises", "pass  # raises",
        ("test_train.py::test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint",),
    ),
    Mutation(
        "the best checkpoint is the last", "agejax/runs/run.py",
        "which = checkpoints.best if step is None else step",
        "which = checkpoints.last if step is None else step",
        ("test_checkpoint.py::test_a_run_opens_at_its_best_checkpoint_or_at_the_step_it_is_told",),
    ),
    Mutation(
        "the best of max is the smallest", "agejax/training/checkpoint.py",
        'SIGNS = {"min": 1.0, "max": -1.0}', 'SIGNS = {"min": 1.0, "max": 1.0}',
        ("test_checkpoint.py::test_the_last_two_and_the_best_are_kept",),
    ),
    Mutation(
        "the best of min is the largest", "agejax/training/checkpoint.py",
        'SIGNS = {"min": 1.0, "max": -1.0}', 'SIGNS = {"min": -1.0, "max": -1.0}',
        ("test_checkpoint.py::test_the_last_two_and_the_best_are_kept",),
    ),
    Mutation(
        "readers take another mode than the run's", "agejax/runs/run.py",
        'Checkpoints(workdir / "checkpoints", config.eval.best_mode)',
        'Checkpoints(workdir / "checkpoints")',
        ("test_checkpoint.py::test_a_run_opens_at_its_best_checkpoint_or_at_the_step_it_is_told",),
    ),
    Mutation(
        "the best evaluation is the first", "agejax/training/best.py",
        "sign * value < sign * self.value", "False",
        ("test_loop.py::test_the_best_of_three_evaluations",),
    ),
    Mutation(
        "the best evaluation is the smallest in any mode", "agejax/training/best.py",
        'sign = 1 if mode == "min" else -1', "sign = 1",
        ("test_loop.py::test_the_best_of_three_evaluations",),
    ),
    Mutation(
        "a tie is better", "agejax/training/best.py",
        "sign * value < sign * self.value", "sign * value <= sign * self.value",
        ("test_loop.py::test_the_best_of_three_evaluations",),
    ),
    Mutation(
        "DenseWeight is of years, not of the loss's scale", "agejax/heads/weights.py",
        "values = np.asarray(head.scale.encode(jnp.asarray(values)))", "pass",
        ("test_heads.py::test_dense_weight_is_that_of_the_scale_that_the_loss_lives_on",),
    ),
    Mutation(
        "the conformal rank forgets the image to come", "agejax/evaluation/uncertainty.py",
        "math.ceil(round((n + 1) * (1 - alpha), 9))", "math.ceil(round(n * (1 - alpha), 9))",
        ("test_uncertainty.py::test_the_rank_is_right_for_every_number_of_images",),
    ),
    Mutation(
        "the conformal rank is rounded", "agejax/evaluation/uncertainty.py",
        "math.ceil(round((n + 1) * (1 - alpha), 9))", "round((n + 1) * (1 - alpha))",
        ("test_uncertainty.py::test_the_rank_is_right_for_every_number_of_images",),
    ),
    Mutation(
        "the conformal rank trusts a rounded product", "agejax/evaluation/uncertainty.py",
        "math.ceil(round((n + 1) * (1 - alpha), 9))", "math.ceil((n + 1) * (1 - alpha))",
        ("test_uncertainty.py::test_the_rank_is_right_for_every_number_of_images",),
    ),
    Mutation(
        "integrated gradients go by the left end of each step",
        "agejax/explanations/integrated_gradients.py",
        "along = ((rows + 0.5) / steps)", "along = (rows / steps)",
        ("test_explain.py::test_integrated_gradients_go_by_the_midpoint_rule",),
    ),
    Mutation(
        "a neck does not drop before its output", "agejax/models/face_model.py",
        "elif neck is not None:\n                x = dropout(x, train=train, rngs=rngs)",
        "elif neck is not None:\n                pass",
        ("test_necks.py::test_a_neck_drops_before_each_dense_layer_but_the_first_and_before_the_output",),
    ),
    Mutation(
        "features are smoothed after dropout", "agejax/models/face_model.py",
        "                x = self.smoothing[name](x, ages[name], epoch)\n"
        "                x = dropout(x, train=train, rngs=rngs)",
        "                x = dropout(x, train=train, rngs=rngs)\n"
        "                x = self.smoothing[name](x, ages[name], epoch)",
        ("test_necks.py::test_features_are_smoothed_before_dropout",),
    ),
    Mutation(
        "the watchdog waits from its last look, not from the last step",
        "agejax/logging/watchdog.py",
        "max(self._fed + self._seconds - time.monotonic(), 0)", "self._seconds",
        ("test_logging.py::test_the_watchdog_waits_as_long_as_it_says_since_it_was_fed",),
    ),
    Mutation(
        "the watchdog speaks though it was fed meanwhile", "agejax/logging/watchdog.py",
        "if waited >= self._seconds:", "if True:",
        ("test_logging.py::test_the_watchdog_waits_as_long_as_it_says_since_it_was_fed",),
    ),
    Mutation(
        "feeding the watchdog does nothing", "agejax/logging/watchdog.py",
        "self._fed = time.monotonic()  #", 'self._fed = getattr(self, "_fed", time.monotonic())  #',
        ("test_logging.py::test_the_watchdog_waits_as_long_as_it_says_since_it_was_fed",),
    ),
    Mutation(
        "the watchdog believes the wall clock", "agejax/logging/watchdog.py",
        "self._fed = time.monotonic()  #", "self._fed = time.time()  #",
        ("test_logging.py::test_the_watchdog_waits_as_long_as_it_says_since_it_was_fed",),
    ),
    Mutation(
        "a flipped bit of the cache goes unseen", "agejax/data/cache.py",
        "if found[name] != values:", "if False:",
        ("test_cache.py::test_one_flipped_bit_is_found_and_made_good",),
    ),
    Mutation(
        "a flipped bit of images.u8 goes unseen", "agejax/data/cache.py",
        "if found[name] != values:", 'if found[name] != values and name != "images.u8":',
        ("test_cache.py::test_one_flipped_bit_is_found_and_made_good",),
    ),
    Mutation(
        "a flipped bit of labels.npz goes unseen", "agejax/data/cache.py",
        "if found[name] != values:", 'if found[name] != values and name != "labels.npz":',
        ("test_cache.py::test_every_byte_of_every_chunk_counts",),
    ),
    Mutation(
        "the first chunk of a file of the cache alone is checked", "agejax/data/cache.py",
        "range(0, (folder / name).stat().st_size, chunk)", "range(0, 1, chunk)",
        ("test_cache.py::test_every_byte_of_every_chunk_counts",),
    ),
    Mutation(
        "the first piece of a chunk alone is checked", "agejax/data/cache.py",
        "            size -= count\n", "            size = 0\n",
        ("test_cache.py::test_every_byte_of_every_chunk_counts",),
    ),
    Mutation(
        "the title of a page is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "html.escape(title)", "title",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a heading is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "<h2>{html.escape(text)}</h2>", "<h2>{text}</h2>",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a link to a section is HTML of whoever wrote the data", "agejax/reporting/page.py",
        '">{html.escape(text)}</a>', '">{text}</a>',
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "the name of a fact is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "<dt>{html.escape(name)}</dt>", "<dt>{name}</dt>",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a paragraph is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "<p>{html.escape(text)}</p>", "<p>{text}</p>",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "the name of a figure is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "</b>{html.escape(name)}</li>", "</b>{name}</li>",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a figure or cell is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "else html.escape(str(value))", "else str(value)",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a table's head is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "{_kind(number=count)}>{html.escape(name)}</th>", "{_kind(number=count)}>{name}</th>",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a table's name is HTML of whoever wrote the data", "agejax/reporting/page.py",
        'aria-label="table of {html.escape(heads[-1])}"', 'aria-label="table of {heads[-1]}"',
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a list's name is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "{html.escape(what + most)}", "{what + most}",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a chart's words is HTML of whoever wrote the data", "agejax/reporting/page.py",
        'alt="{html.escape(chart.alt)}"', 'alt="{chart.alt}"',
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a subheading is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "<h3>{html.escape(text)}</h3>", "<h3>{text}</h3>",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
    Mutation(
        "a chart's caption is HTML of whoever wrote the data", "agejax/reporting/page.py",
        "{html.escape(chart.caption)}", "{chart.caption}",
        ("test_page.py::test_text_in_every_element_stays_text",),
    ),
)  # fmt: skip

# ---- further wiring ------------------------------------------------------------------------------

OTHERS = (
    Mutation(
        "a TensorFlow.js manifest may name one file many times",
        "agejax/models/pretrained/tensorflow_js.py",
        "if len(set(files)) < len(files) or not parts.isdisjoint(files):", "if False:",
        ("test_mobilenet_v1.py::test_arrays_of_one_name_and_groups_of_one_file_are_refused",),
    ),
    Mutation(
        "weights may hold NaN", "agejax/models/pretrained/layout.py",
        "elif not np.isfinite(value).all():", "elif False:",
        ("test_mobilenet_v1.py::test_values_that_are_not_finite_are_refused",),
    ),
    Mutation(
        "any key without a module is a ViT's", "agejax/models/pretrained/layout.py",
        "if not module and leaf not in OUTSIDE:", "if False:",
        ("test_mobilenet_v1.py::test_keys_without_modules_look_like_no_model",),
    ),
    Mutation(
        "the scale of a depthwise convolution is lost", "agejax/models/pretrained/faceres.py",
        "np.moveaxis(tensor, 2, 3) * scale", "np.moveaxis(tensor, 2, 3)",
        ("test_mobilenet_v1.py::"
         "test_features_of_the_tensorflow_js_files_are_those_of_their_graph",),
    ),
    Mutation(
        "the face network sees red for blue", "agejax/models/pretrained/faceres.py",
        'rgb(_short_names(tensors), "conv1.kernel")', "_short_names(tensors)",
        ("test_mobilenet_v1.py::"
         "test_features_of_the_tensorflow_js_files_are_those_of_their_graph",),
    ),
    Mutation(
        "a head's weight is ignored", STEP,
        "total += head.weight * labels_share * mean",
        "total += labels_share * mean",
        ("test_step.py::test_a_half_labelled_batch_teaches_what_its_labelled_rows_alone_would",),
    ),
    Mutation(
        "dropout and augmentation share a key", STEP,
        "of_augmentation, of_dropout = jax.random.split(key)", "of_augmentation = of_dropout = key",
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
        "{name: config.weight_decay * value for", "{name: config.weight_decay for",
        ("test_step.py::test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments",),
    ),
    Mutation(
        "decay goes through the moments", OPTIM,
        "    chain.append(direction)\n    if config.weight_decay:\n"
        "        chain.append(_add_decay(decay))",
        "    if config.weight_decay:\n        chain.append(_add_decay(decay))\n"
        "    chain.append(direction)",
        ("test_step.py::test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments",),
    ),
    Mutation(
        "adam's second moment has the first one's rate", OPTIM,
        "optax.scale_by_adam(config.b1, config.b2, config.eps)",
        "optax.scale_by_adam(config.b1, config.b1, config.eps)",
        ("test_step.py::test_two_steps_of_adamw_by_hand_clip_the_gradient_before_its_moments",),
    ),
    Mutation(
        "the schedule takes another epoch", TRAIN,
        "total_steps, to_steps, scale)",
        "total_steps, lambda *of: 1 + to_steps(*of), scale)",
        ("test_loop.py::test_the_schedule_counts_in_the_same_epochs",),
    ),
    Mutation(
        "copies are augmented like the original", DATA,
        "config.sampling.copy_strength, bool(", "1.0, bool(",
        ("test_loop.py::test_later_draws_of_a_row_reach_the_step_with_their_strength",),
    ),
    Mutation(
        "the loop goes on though it is told to end", TRAIN,
        "or stopping or enough or", "or stopping or",
        ("test_loop.py::test_whoever_is_asked_may_end_the_run_after_an_evaluation",),
    ),
    Mutation(
        "the floor is the mean age", TRAIN,
        'data.facts.medians.get("age")', 'data.facts.means.get("age")',
        ("test_state.py::test_the_evaluation_in_training_is_that_of_the_averages_on_val",),
    ),
    Mutation(
        "parameters are not drawn from the seed", STATE,
        "key = jax.random.key(config.seed)", "key = jax.random.key(0)",
        ("test_state.py::test_parameters_are_drawn_from_the_seed",),
    ),
    Mutation(
        "averages start at 0", STATE,
        "ema=jax.tree.map(jnp.copy, average)", "ema=jax.tree.map(jnp.zeros_like, average)",
        ("test_state.py::test_a_fresh_state_has_done_no_step_and_its_averages_begin_where_it_does",),
    ),
    Mutation(
        "evaluate scores the training images", "agejax/evaluation/scored.py",
        "rows = by_name[split]", 'rows = by_name["train"]',
        ("test_state.py::test_evaluate_on_val_gives_the_figures_that_training_gave",),
    ),
    Mutation(
        "evaluate takes another floor", "agejax/evaluation/findings.py",
        'floor_age=scored.run.facts.medians.get("age")',
        'floor_age=scored.run.facts.means.get("age")',
        ("test_state.py::test_evaluate_on_val_gives_the_figures_that_training_gave",),
    ),
    Mutation(
        "evaluation forgets the last, padded batch's weights", "agejax/training/prediction.py",
        "v[weight > 0] for k, v in out.items()", "v for k, v in out.items()",
        ("test_state.py::test_evaluate_and_predict_give_what_the_averages_give",),
    ),
    Mutation(
        "evaluation batches arrive in another order", "agejax/training/prediction.py",
        "out, weight = multihost_utils.process_allgather(running.popleft(), tiled=True)",
        "out, weight = multihost_utils.process_allgather(running.pop(), tiled=True)",
        ("test_state.py::test_evaluate_and_predict_give_what_the_averages_give",),
    ),
    Mutation(
        "predict gives the classes of another order", "agejax/predicting/predictions.py",
        "zip(model.classes[name], values[i], strict=True)",
        "zip(model.classes[name][::-1], values[i], strict=True)",
        ("test_evaluate.py::test_predict_says_what_evaluate_says",),
    ),
    Mutation(
        "the learning rate does not follow the batch size", TRAIN,
        "scale = optim.lr_scale(config)", "scale = 1.0",
        ("test_loop.py::test_the_schedule_counts_in_the_same_epochs",),
    ),
    Mutation(
        "every run draws in one order", DATA,
        "sampling.Sampler(*drawn, config.seed)", "sampling.Sampler(*drawn, 0)",
        ("test_loop.py::test_rows_are_drawn_in_the_order_of_the_runs_seed",),
    ),
    Mutation(
        "patience is one evaluation longer", TRAIN,
        "0 < config.eval.patience <= best.stale", "0 < config.eval.patience < best.stale",
        ("test_train.py::test_early_stopping_counts_evaluations_without_a_better_value",),
    ),
    Mutation(
        "rollback passes over a step too many", "agejax/runs/run_folder.py",
        "skipped = skipped_steps(workdir) | {error.step}",
        "skipped = skipped_steps(workdir) | {error.step, error.step + 1}",
        ("test_train.py::test_a_step_that_is_not_finite_is_skipped_or_rolled_back_from",),
    ),
    Mutation(
        "config.model.hidden does nothing", STATE,
        "hidden=c.hidden,", "hidden=0,",
        ("test_state.py::test_the_network_is_as_wide_and_as_exact_as_config_model_says",),
    ),
    Mutation(
        "config.model.dtype does nothing", STATE,
        "rngs=rngs, dtype=DTYPES[c.dtype], **c.options",
        "rngs=rngs, dtype=jnp.float32, **c.options",
        ("test_state.py::test_the_network_is_as_wide_and_as_exact_as_config_model_says",),
    ),
    Mutation(
        "config.model.dropout does nothing", STATE,
        "dropout=c.dropout,", "dropout=0.0,",
        ("test_step.py::test_every_step_draws_anew_and_the_same_step_the_same",),
    ),
    Mutation(
        "a frozen batch norm goes on", STATE,
        "_set_batch_norms(abstract, config)", "pass",
        ("test_train.py::test_frozen_parameters_and_their_statistics_do_not_move",),
    ),
    Mutation(
        "config.sharding.batch_norm does nothing", STATE,
        "multiplier is None, per_device", "multiplier is None, False",
        ("test_batch_norms.py::test_running_statistics_follow_the_average_over_devices",),
    ),
    Mutation(
        "config.deterministic does nothing", STEP,
        'repeatable = on_gpu and config.get("deterministic", False)', "repeatable = False",
        ("test_step.py::test_only_on_gpus_are_steps_compiled_with_repeatable_algorithms",),
    ),
    Mutation(
        "teachers see images as they were", STEP,
        "lambda s: seen[s][0]", 'lambda s: inputs.eval_images(batch["image"], s)',
        ("test_step.py::test_teachers_have_their_share_and_see_the_images_as_they_are_augmented",),
    ),
    Mutation(
        "labels keep their whole share beside teachers", STEP,
        "head.weight * labels_share * mean", "head.weight * mean",
        ("test_step.py::test_teachers_have_their_share_and_see_the_images_as_they_are_augmented",),
    ),
    Mutation(
        "teachers teach of labelled rows' number", STEP,
        'mean /= part["counts"]["taught"][name]', 'mean /= part["counts"]["labels"][name]',
        ("test_step.py::test_teachers_have_their_share_and_see_the_images_as_they_are_augmented",),
    ),
    Mutation(
        "teachers teach with rows of weight 0", STEP,
        'jnp.sum(part["weight"] * taught[name].known * loss)', "jnp.sum(taught[name].known * loss)",
        ("test_step.py::test_teachers_have_their_share_and_see_the_images_as_they_are_augmented",),
    ),
    Mutation(
        "a logged line is of its last step", "agejax/logging/train_log.py",
        "sum(sums[k] for sums in steps.values()) for k in steps[last]",
        "steps[last][k] for k in steps[last]",
        ("test_logging.py::test_a_line_has_the_means_over_the_rows_of_its_steps",),
    ),
    Mutation(
        "calibrated probabilities are not what predict gives", "agejax/predicting/predictions.py",
        "said = said | (calibration.probabilities(said) if calibration else {})",
        "said = dict(said)",
        ("test_evaluate.py::test_after_calibration_predict_says_the_intervals_of_evaluate",),
    ),
    Mutation(
        "predictions.csv has no groups of copies", "agejax/reporting/results.py",
        '"group": source.groups[rows]}', '"group": np.arange(len(rows))}',
        ("test_evaluate.py::test_every_image_of_the_split_is_scored_once",),
    ),
    Mutation(
        "evaluate takes val by default", "agejax/evaluation/scored.py",
        'split = split or (usual if same_data else "all")',
        'split = split or ("val" if same_data else "all")',
        ("test_evaluate.py::test_every_image_of_the_split_is_scored_once",),
    ),
    Mutation(
        "evaluate does not ask which data it is", "agejax/evaluation/scored.py",
        'split = split or (usual if same_data else "all")', "split = split or usual",
        ("test_evaluate.py::test_other_data_is_scored_whole_and_has_no_split",),
    ),
    Mutation(
        "calibration is fitted to test", "agejax/evaluation/fitting.py",
        'if splits.CALIBRATION in by_name else "val"',
        'if splits.CALIBRATION in by_name else "test"',
        ("test_report.py::test_calibration_is_fitted_on_val_and_kept",),
    ),
    Mutation(
        "calibration of another checkpoint is used", "agejax/evaluation/calibration.py",
        'if stored["step"] != step:', 'if False:',
        ("test_calibration.py::test_it_is_read_back_and_only_for_its_own_checkpoint",),
    ),
    Mutation(
        "copies count in calibration", "agejax/evaluation/calibration.py",
        "_, first = np.unique(duplicates, return_index=True)", "first = np.arange(len(duplicates))",
        ("test_calibration.py::test_copies_are_no_evidence",),
    ),
    Mutation(
        "the worst faces are the best", "agejax/reporting/report.py",
        '"worst": order[::-1][:FACES],', '"worst": order[:FACES],',
        ("test_report.py::test_the_faces_shown_are_the_best_and_the_worst_each_under_its_own_caption",),
    ),
    Mutation(
        "the faces shown are others than the captions'", "agejax/reporting/report.py",
        "scored.source.take(scored.rows[some]),", "scored.source.take(some),",
        ("test_report.py::test_the_faces_shown_are_the_best_and_the_worst_each_under_its_own_caption",),
    ),
    Mutation(
        "the maps shown are of other faces than the captions'", "agejax/reporting/report.py",
        "images = scored.source.take(scored.rows[explained])",
        "images = scored.source.take(explained)",
        ("test_report.py::test_the_faces_shown_are_the_best_and_the_worst_each_under_its_own_caption",),
    ),
    Mutation(
        "a process takes the slice of another", "agejax/data/pipeline.py",
        "* self.batch_size + self.process_index * share", "* self.batch_size",
        ("test_pipeline.py::test_the_slices_of_all_processes_make_the_batch_of_one",),
    ),
    Mutation(
        "padding of the last batch counts", "agejax/data/pipeline.py",
        "real = np.arange(batch_size) < len(mine)", "real = np.arange(batch_size) >= 0",
        ("test_pipeline.py::test_an_evaluation_counts_every_row_once_and_in_order",),
    ),
    Mutation(
        "originals are augmented as copies", "agejax/data/pipeline.py",
        "later = self.sampler.occurrence(positions) > 0",
        "later = self.sampler.occurrence(positions) >= 0",
        ("test_pipeline.py::test_later_draws_of_a_row_in_an_epoch_are_augmented_harder",),
    ),
    Mutation(
        "sampling.alpha does nothing", "agejax/data/draws.py",
        'density.dense_weight(source.labels["age"][rows], config.alpha)',
        'density.dense_weight(source.labels["age"][rows], 0.5)',
        ("test_draws.py::test_every_row_is_drawn_within_one_of_its_expectation_in_every_epoch",
         "test_draws.py::test_settings_of_the_sampler_reach_the_weights"),
    ),
    Mutation(
        "sampling.power does nothing", "agejax/data/draws.py",
        "density.crossing(labels), power=config.power", "density.crossing(labels), power=1.0",
        ("test_draws.py::test_settings_of_the_sampler_reach_the_weights",),
    ),
    Mutation(
        "sampling.lds_sigma does nothing", "agejax/data/draws.py",
        "sigma=config.lds_sigma,", "sigma=2.0,",
        ("test_draws.py::test_settings_of_the_sampler_reach_the_weights",),
    ),
    Mutation(
        "sampling.reweight does nothing", "agejax/data/draws.py",
        "reweight=config.reweight,", 'reweight="sqrt",',
        ("test_draws.py::test_settings_of_the_sampler_reach_the_weights",),
    ),
    Mutation(
        "the likelihood's beta does nothing", "agejax/heads/ages.py",
        "self._log_variance(output), target, self.beta)",
        "self._log_variance(output), target, 0.5)",
        ("test_heads.py::test_settings_of_heads_reach_their_losses",),
    ),
    Mutation(
        "corn asks each question alone", "agejax/heads/ages.py",
        "p = jnp.cumprod(p, axis=1)", "p = p * 1.0",
        ("test_heads.py::test_ranks_are_decoded_by_hand",),
    ),
    Mutation(
        "a distribution's sigma is about its median", "agejax/heads/ages.py",
        "error = ages - expectation(p, ages)[:, None]", "error = ages - median(p, ages)[:, None]",
        ("test_heads.py::test_a_distributions_sigma_is_about_its_mean",),
    ),
    Mutation(
        "a baseline has the options that are worst on val", "agejax/evaluation/baselines.py",
        "loss < best[0]", "loss > best[0]",
        ("test_baselines.py::test_the_options_are_those_with_the_least_error_on_val",),
    ),
    Mutation(
        "a baseline is fitted to val", "agejax/evaluation/baselines.py",
        'made.fit(x["train"][known["train"]], y["train"][known["train"]])',
        'made.fit(x["val"][known["val"]], y["val"][known["val"]])',
        ("test_baselines.py::test_the_options_are_those_with_the_least_error_on_val",),
    ),
    Mutation(
        "pseudo_label names classes it is not sure of", "agejax/distillation/pseudo_labels.py",
        "sure = values.max(axis=1) >= probability", "sure = values.max(axis=1) >= 0",
        ("test_pseudo_label.py::test_the_surest_half_is_kept_with_what_the_run_says",),
    ),
    Mutation(
        "pseudo_label keeps the least sure", "agejax/distillation/pseudo_labels.py",
        'np.argsort(unsure, kind="stable")', 'np.argsort(-unsure, kind="stable")',
        ("test_pseudo_label.py::test_the_surest_half_is_kept_with_what_the_run_says",),
    ),
    Mutation(
        "pseudo_label does not ask of the mirror image", "agejax/distillation/pseudo_labels.py",
        '["plain", "flip"]', '["plain"]',
        ("test_pseudo_label.py::test_every_image_is_asked_about_together_with_its_mirror_image",),
    ),
    Mutation(
        "a sweep minimises whatever the mode", "agejax/sweeps/study.py",
        'directions.MINIMIZE if mode == "min" else directions.MAXIMIZE', "directions.MINIMIZE",
        ("test_sweep.py::test_the_best_of_three_trials",),
    ),
    Mutation(
        "a pruned trial counts as complete", "agejax/sweeps/search.py",
        "            raise optuna.TrialPruned\n", "            pass\n",
        ("test_sweep.py::test_a_trial_ends_where_the_pruner_says",),
    ),
    Mutation(
        "intervals take copies for evidence", "agejax/evaluation/findings.py",
        "duplicates=scored.duplicates,", "duplicates=None,",
        ("test_evaluate.py::test_copies_of_one_photo_are_resampled_together",),
    ),
    Mutation(
        "an ensemble ignores its weights", "agejax/runs/ensembles.py",
        "share[label][i] / len(seen), one", "1 / len(members) / len(seen), one",
        ("test_ensemble.py::test_predictions_are_weighted_means_label_by_label",),
    ),
    Mutation(
        "an ensemble's spread forgets how far its members are apart", "agejax/runs/ensembles.py",
        "+ jnp.square(said[label] - means[label])", "+ 0 * jnp.square(said[label])",
        ("test_pseudo_label.py::test_every_image_is_asked_about_together_with_its_mirror_image",),
    ),
    Mutation(
        "a comparison has its sides swapped", "agejax/evaluation/comparison.py",
        "ours, *theirs = recipes", "*theirs, ours = recipes",
        ("test_report.py::test_a_run_is_compared_image_by_image_and_below_0_it_is_the_better_one",),
    ),
    Mutation(
        "a comparison is of other images", "agejax/evaluation/comparison.py",
        "rows = np.array([row[name] for name in ids])",
        "rows = np.sort(np.array([row[name] for name in ids]))",
        ("test_report.py::test_a_run_is_compared_image_by_image_and_below_0_it_is_the_better_one",),
    ),
    Mutation(
        "the command scores another split at the end", "agejax/main.py",
        "results.evaluate(workdir, split=config.eval.final_split)", "results.evaluate(workdir)",
        ("test_loop.py::test_the_command_scores_the_final_split",),
    ),
    Mutation(
        "the worst group has the smallest error", "agejax/evaluation/metrics.py",
        'sign = -1 if rank == "accuracy" else 1', 'sign = 1 if rank == "accuracy" else -1',
        ("test_metrics.py::test_the_worst_group_has_thirty_images",),
    ),
    Mutation(
        "every decade counts by its images", "agejax/evaluation/metrics.py",
        '"macro_mae": float(np.mean(by_decade))', '"macro_mae": float(size.mean())',
        ("test_metrics.py::test_figures_equal_scikit_learn",),
    ),
    Mutation(
        "unknown labels count in metrics", "agejax/evaluation/metrics.py",
        "(part & known for by in parts.values() for _, part in by)]\n        rank",
        "(part for by in parts.values() for _, part in by)]\n        rank",
        ("test_metrics.py::test_an_image_that_lacks_one_label_counts_for_the_others_alone",),
    ),
    Mutation(
        "example weights have mean 1 over rows, not over draws", "agejax/heads/weights.py",
        "np.average(of_rows[known], weights=drawn[known])", "np.average(of_rows[known])",
        ("test_heads.py::test_example_weights_have_mean_one_over_what_is_drawn",),
    ),
    Mutation(
        "a run forgets the prior of its draws", DATA,
        "for each in (drawn, draws.even(source, train_rows))", "for each in (drawn, drawn)",
        ("test_priors.py::test_a_run_keeps_the_prior_of_its_draws_and_is_decoded_with_it",),
    ),
    Mutation(
        "the prior is applied the other way round", "agejax/heads/priors.py",
        "ratios[i] = rows / draws", "ratios[i] = draws / rows",
        ("test_priors.py::test_a_known_posterior_under_a_known_sampling_becomes_the_natural_one",),
    ),
    Mutation(
        "ranks are decoded as they were sampled", "agejax/heads/ages.py",
        "        if not self.prior:\n            return p\n",
        "        if True:\n            return p\n",
        ("test_priors.py::test_a_known_posterior_under_a_known_sampling_becomes_the_natural_one",),
    ),
    Mutation(
        "the one-cycle peaks a step late", OPTIM,
        "{warmup(): config.div, total_steps: end}", "{warmup() + 1: config.div, total_steps: end}",
        ("test_optim.py::test_one_cycle_peaks_at_exactly_the_step_where_the_warm_up_ends",),
    ),
    Mutation(
        "sord's scale does nothing", "agejax/heads/ages.py",
        "losses.sord_targets(years, ages, int(power), scale)",
        "losses.sord_targets(years, ages, int(power), 1.0)",
        ("test_heads.py::test_settings_of_heads_reach_their_losses",),
    ),
    Mutation(
        "the cache is read without being checked", "agejax/data/cache.py",
        "    def opened() -> T:\n        check(folder)\n",
        "    def opened() -> T:\n        _sizes(folder)\n",
        ("test_cache.py::test_one_flipped_bit_is_found_and_made_good",),
    ),
    Mutation(
        "a file cut short goes unseen while it is read", "agejax/data/mapped.py",
        "if self.cut_short():", "if False:",
        ("test_cache.py::test_a_file_cut_short_while_batches_are_read_is_one_line",
         "test_cache.py::test_a_file_that_loses_less_than_a_page_gives_no_zeros"),
    ),
    Mutation(
        "cutmix shares labels by the area that was drawn", "agejax/training/augment.py",
        "return 1 - pasted, 1 - along", "return 1 - jnp.minimum(area, 1), 1 - along",
        ("test_augment.py::test_cutmix_pastes_a_box_of_the_partner_and_shares_the_labels_by_its_"
         "pixels", "test_step.py::test_a_mixed_row_learns_the_labels_of_the_row_it_is_mixed_with"),
    ),
    Mutation(
        "randaugment solarizes one value too few", "agejax/training/augment.py",
        "images >= _shaped(threshold)", "images > _shaped(threshold) + 1",
        ("test_augment.py::test_each_operation_of_randaugment_is_that_of_pil",),
    ),
    Mutation(
        "randaugment's operations go one way only", "agejax/training/augment.py",
        'share * jnp.sign(u[f"rand_sign_{name}"] - 0.5)', "share",
        ("test_augment.py::test_each_operation_of_randaugment_is_that_of_pil",),
    ),
    Mutation(
        "the image size changes a step late", "agejax/training/image_sizes.py",
        "if step < end)", "if step <= end)",
        ("test_image_sizes.py::test_the_first_steps_are_those_of_a_run_of_small_images",),
    ),
    Mutation(
        "a run is scored at the size it was trained at", "agejax/training/image_sizes.py",
        'int(config.eval.get("image_size", 0) or config.model.image_size)',
        "int(config.model.image_size)",
        ("test_image_sizes.py::test_a_run_is_scored_at_the_size_that_its_config_says",),
    ),
    Mutation(
        "a calibration of another image size is taken", "agejax/evaluation/calibration.py",
        'if image_size not in (None, stored.get("image_size", 0)):', "if False:",
        ("test_image_sizes.py::test_a_finished_run_is_scored_and_calibrated_at_a_size_that_is_set_"
         "later",),
    ),
    Mutation(
        "a changed file of a released model is used", "agejax/runs/box.py",
        "if found != expected:", "if False:",
        ("test_box.py::test_a_damaged_file_is_one_line",),
    ),
    Mutation(
        "what ancestors of a model have seen does not count", "agejax/runs/lineage.py",
        "in runs(lineage):\n        if (seen", "in [lineage]:\n        if (seen",
        ("test_box.py::test_images_that_only_an_ancestor_has_seen_count",),
    ),
    Mutation(
        "half precision takes biases and scales too", "agejax/exporting/release.py",
        'storage == "float16" and arrays[name].ndim > 1', 'storage == "float16"',
        ("test_box.py::test_half_precision_is_for_kernels_and_moves_predictions_little",),
    ),
    Mutation(
        "cached features do not depend on the weights", "agejax/training/frozen.py",
        "found.update(np.ascontiguousarray(array, np.float32).data)", "pass",
        ("test_frozen.py::test_other_weights_of_the_backbone_have_other_features_and_those_of_heads"
         "_have_not",),
    ),
    Mutation(
        "an epoch takes one view of all images", "agejax/data/pipeline.py",
        "turn = rows + epoch +", "turn = 0 * rows + epoch +",
        ("test_frozen.py::test_a_row_goes_through_its_views_from_epoch_to_epoch",),
    ),
    Mutation(
        "augmented views depend on the batch", "agejax/training/frozen.py",
        "jax.random.fold_in(of_view, row), image[None]", "of_view, image[None]",
        ("test_frozen.py::test_each_view_is_a_function_of_the_seed_and_the_image",),
    ),
    Mutation(
        "the average of a frozen parameter is a rounded sum", STEP,
        'mean["params"] | optimizer.split(average["params"])[1]', 'mean["params"]',
        ("test_frozen.py::test_a_frozen_parameter_is_its_own_average",),
    ),
    Mutation(
        "nothing is dropped before the dense layers", "agejax/models/necks.py",
        "x = self.input_dropout(x, train=train, rngs=rngs)", "pass",
        ("test_necks.py::test_input_dropout_drops_what_enters_the_dense_layers",),
    ),
    Mutation(
        "int8 is judged on the images that calibrated it", "agejax/exporting/quantize.py",
        "calibrating, rows = source.take(rows[:few]), rows[few:]",
        "calibrating = source.take(rows[:few])",
        ("test_quantize.py::test_the_change_is_that_on_val_images_that_did_not_calibrate",),
    ),
    Mutation(
        "int8 weights are scaled by the wrong axis", "agejax/exporting/quantize.py",
        "others = tuple(i for i in range(values.ndim) if i != axis)",
        "others = tuple(range(values.ndim))[:1]",
        ("test_quantize.py::test_int8_weights_alone_change_what_the_model_says_little",),
    ),
    Mutation(
        "any package from npm is taken", "agejax/exporting/web/runtime.py",
        "if hashlib.sha256(data).hexdigest() != FILES[name]:", "if not data:",
        ("test_web.py::test_a_package_that_is_another_is_refused_and_not_kept",),
    ),
    Mutation(
        "the page may open connections", "agejax/exporting/web/page.py",
        "default-src 'none'; connect-src 'none'", "default-src 'none'; connect-src *",
        ("test_web.py::test_the_policy_of_the_page_forbids_connections_and_other_scripts",),
    ),
    Mutation(
        "the page has one interval for all ages", "agejax/exporting/web/page.js",
        "decade < 0 ? widths.all : widths.decades[decade]", "widths.all",
        ("test_web.py::test_crops_get_the_ages_intervals_and_probabilities_of_predict",),
    ),
    Mutation(
        "the page's probabilities are not calibrated", "agejax/exporting/web/page.js",
        "info.temperatures[label] ?? 1", "1",
        ("test_web.py::test_crops_get_the_ages_intervals_and_probabilities_of_predict",),
    ),
    Mutation(
        "layer decay counts layers from the image", "agejax/models/backbone.py",
        "enumerate(reversed(backbone.layer_paths()), 1)", "enumerate(backbone.layer_paths(), 1)",
        ("test_models.py::test_layers_are_in_the_order_of_the_forward_pass[cnn]",
         "test_step.py::test_layer_decay_and_recomputing_reach_the_step_of_a_run"),
    ),
    Mutation(
        "layer decay forgets the multipliers", OPTIM,
        "v * layer_decay ** parameters[k]", "layer_decay ** parameters[k]",
        ("test_optim.py::test_layer_decay_lowers_the_rate_with_every_layer_below_the_heads_and_leaves_what_is_frozen",),
    ),
    Mutation(
        "drop path drops parts of examples", "agejax/models/layers.py",
        "return (x.shape[0],) + (1,) * (x.ndim - 1)", "return x.shape",
        ("test_layers.py::test_drop_path_drops_whole_examples_and_keeps_the_mean",),
    ),
    Mutation(
        "nothing is recomputed", "agejax/models/backbone.py",
        "if not (train and self.remat):", "if not (train and self.remat) or True:",
        ("test_models.py::test_every_block_of_every_family_is_recomputed_where_that_is_asked_for[cnn]",),
    ),
    Mutation(
        "statistics made anew lag behind", "agejax/runs/batch_statistics.py",
        "norm.momentum, norm.observing = 1.0, observe", "norm.observing = observe",
        ("test_batch_norms.py::test_statistics_made_anew_are_means_over_batches_of_what_goes_into_each_norm",),
    ),
    Mutation(
        "norms given back normalise by each batch", "agejax/runs/batch_statistics.py",
        "batch_stats, batches, observe=True)", "batch_stats, batches)",
        ("test_batch_norms.py::test_calibrated_norms_have_other_statistics_and_the_network_predicts_the_same",),
    ),
    Mutation(
        "norms given back keep their bias", "agejax/runs/batch_statistics.py",
        "np.float32(bias + slope * (new_mean - mean))", "np.float32(bias)",
        ("test_batch_norms.py::test_calibrated_norms_have_other_statistics_and_the_network_predicts_the_same",),
    ),
    Mutation(
        "copies of a minor are evidence for a challenge age", "agejax/evaluation/gates.py",
        "people = len(np.unique(duplicates[minors]))", "people = int(minors.sum())",
        ("test_gates.py::test_copies_of_a_minor_are_no_new_evidence",),
    ),
    Mutation(
        "a challenge age has no upper bound that it needs", "agejax/evaluation/gates.py",
        "enough = high <= limit", "enough = low <= limit",
        ("test_gates.py::test_the_interval_is_that_of_a_quantile_in_scipy",),
    ),
    Mutation(
        "a gap is that of the two extremes alone", "agejax/evaluation/gaps.py",
        "np.quantile(scaled.max(axis=1), 0.95)", "np.quantile(scaled[:, 0], 0.95)",
        ("test_headlines.py::test_the_interval_holds_the_true_gap_95_times_in_100",),
    ),
    Mutation(
        "cells count by their images", "agejax/evaluation/headlines.py",
        '"mae": float(np.mean([size[cell].mean() for cell in cells])),',
        '"mae": float(size[np.any(cells, axis=0)].mean()),',
        ("test_headlines.py::test_headline_figures_by_hand",),
    ),
    Mutation(
        "seeds of two recipes have no spread", "agejax/evaluation/replicates.py",
        "variance = scale * sum(map(_squares, (ours, theirs))) / freedom", "variance = 0.0",
        ("test_replicates.py::test_recipes_with_other_seeds_are_compared_by_a_t_test_of_two_samples",),
    ),
    Mutation(
        "another start is the same recipe", "agejax/runs/run_folder.py",
        "return first == second and not (", "return not (",
        ("test_report.py::test_runs_of_one_config_count_as_its_seeds",),
    ),
    Mutation(
        "degraded images are compared with themselves", "agejax/evaluation/robustness.py",
        "change = losses - metrics.losses(clean[target], label)", "change = losses - losses",
        ("test_robustness.py::test_a_run_is_judged_on_the_same_images_made_worse",),
    ),
    Mutation(
        "a call goes past the step at which something is due", "agejax/training/calls.py",
        "* period >= end for period", "* period >= end - 1 for period",
        ("test_resident.py::test_a_call_holds_no_step_at_which_something_is_due",),
    ),
    Mutation(
        "the next batch is put when the call before is done", "agejax/training/calls.py",
        "IN_FLIGHT = 2", "IN_FLIGHT = 0",
        ("test_resident.py::test_the_next_batch_is_put_before_a_call_is_waited_for",),
    ),
    Mutation(
        "the last rows on the device are those before them", "agejax/training/resident.py",
        "yield total - count", "yield total - count - 1",
        ("test_resident.py::test_rows_on_the_devices_give_the_batch_of_the_host",),
    ),
    Mutation(
        "a quarter of a device's memory is all of it", "agejax/training/resident.py",
        "SHARE * size <= memory", "size <= memory",
        ("test_resident.py::test_auto_takes_an_accelerator_with_four_times_the_memory",),
    ),
    Mutation(
        "a step of a call has the number of the one before", "agejax/logging/train_log.py",
        "steps[last - len(each) + 1 + i]", "steps[last - len(each) + i]",
        ("test_resident.py::test_a_step_that_is_not_finite_keeps_its_number_within_a_call",),
    ),
    Mutation(
        "in a call of several steps a process takes the others' rows", "agejax/data/pipeline.py",
        "np.arange(step, step + count) * self.batch_size",
        "step * self.batch_size + np.arange(count) * share",
        ("test_resident.py::test_several_steps_have_the_batches_of_each",),
    ),
)  # fmt: skip

MUTATIONS = (*(m._replace(survived=True) for m in SURVIVORS), *OTHERS)
