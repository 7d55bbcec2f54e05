"""The loss against its formula in NumPy, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from eqxunet import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32) * 3
MASK, VALID = RNG.random((6, 5)) < 0.5, RNG.random((6, 5)) < 0.7


@pytest.mark.parametrize("valid", [VALID, np.ones_like(VALID)])
def test_loss(valid):
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    bce = -np.where(MASK, np.log(p), np.log(1 - p))[valid].mean()
    p, target = p[valid], MASK[valid]
    dice = 1 - (2 * p[target].sum() + 1e-6) / (p.sum() + target.sum() + 1e-6)
    got = losses.segmentation_loss(jnp.array(LOGITS), jnp.array(MASK), jnp.array(valid))
    assert got == pytest.approx(bce + dice, rel=1e-5)


def test_perfect_and_worst():
    mask, valid = jnp.array(MASK), jnp.ones((6, 5), bool)
    sure = jnp.where(mask, 50.0, -50.0)
    assert losses.segmentation_loss(sure, mask, valid) == pytest.approx(0, abs=1e-5)
    assert losses.segmentation_loss(-sure, mask, valid) == pytest.approx(51, rel=1e-3)


def test_extreme_logits_and_nothing_valid_stay_finite():
    mask = jnp.array(MASK)
    assert jnp.isfinite(losses.segmentation_loss(jnp.full((6, 5), 1e30), mask, mask | True))
    assert jnp.isfinite(losses.segmentation_loss(jnp.zeros((6, 5)), mask, mask & False))


def test_gradient():
    mask, valid = jnp.array(MASK), jnp.array(VALID)
    check_grads(
        lambda logits: losses.segmentation_loss(jnp.asarray(logits), mask, valid),
        (jnp.array(LOGITS),),
        order=1,
        modes=["rev"],
        atol=1e-2,
        rtol=1e-2,
    )
