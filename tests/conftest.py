"""What all tests share: shorter ways to a trained network where training is not what is tested."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def unpolished_graphs():
    """Let TensorFlow run its graphs as they are traced, without optimizing them first.

    That takes longer than all the steps of trainings as tiny as these. What is computed stays the
    same.
    """
    if "tensorflow" in sys.modules:  # the test modules have been imported by now
        sys.modules["tensorflow"].config.optimizer.set_experimental_options(
            {"disable_meta_optimizer": True}
        )


@pytest.fixture(scope="module")
def untraced():
    """Train without tracing in the whole module, see `untraced_steps`."""
    from training_cells import untraced_steps  # here, as not every test needs TensorFlow

    with untraced_steps():
        yield
