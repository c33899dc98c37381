"""What all tests share: shorter ways to a trained network where training is not what is tested."""

import gc
import sys

import pytest

# What TensorFlow does to a graph before it runs it. Two more parts stay on: an untidied graph needs
# more than twice the memory, which a process never gets back.
POLISHING = (
    "arithmetic_optimization",
    "constant_folding",
    "dependency_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
    "remapping",
    "scoped_allocator_optimization",
    "shape_optimization",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Mark what is a cell of a notebook."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("notebook")


@pytest.fixture(scope="session", autouse=True)
def unpolished_graphs():
    """Let TensorFlow run its graphs nearly as they are traced.

    Optimizing them takes longer than all the steps of trainings as tiny as these. What is computed
    stays the same.
    """
    if "tensorflow" in sys.modules:  # the test modules have been imported by now
        sys.modules["tensorflow"].config.optimizer.set_experimental_options(
            dict.fromkeys(POLISHING, False)
        )


@pytest.fixture(scope="module", autouse=True)
def freed_networks():
    """Give back the networks of a module before the next one builds its own."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()
    gc.collect()


@pytest.fixture(scope="module")
def untraced():
    """Train without tracing in the whole module, see `untraced_steps`."""
    from training_cells import untraced_steps  # here, as not every test needs TensorFlow

    with untraced_steps():
        yield
