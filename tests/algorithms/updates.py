"""One update of an off-policy algorithm by itself, as its learner's loop makes it."""

import jax

from steppe.learning.off_policy import LearnerState
from steppe.learning.optimizer import clipped_adam_form, clipped_adam_init, closed, opened


def begun(layout, params, target):
    """The state before the first update, and its form: all parameters have targets and one optimizer."""
    form = LearnerState(layout, layout, clipped_adam_form(layout), None)
    return LearnerState(params, target, clipped_adam_init(params)), form


def one_update(update, static, form, state, batch, hyper):
    """The new state, the parts and the errors."""

    @jax.jit
    def compiled(state, batch, hyper):
        new, parts, error = update(static, opened(form, state), batch, hyper, jax.random.key(0))
        return closed(form, new), parts, error

    return compiled(state, batch, hyper)
