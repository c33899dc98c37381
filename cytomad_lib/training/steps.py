"""Gradient steps, and computing without them: the file that knows TensorFlow from PyTorch.

Everything else in the kit is written with `keras` and `keras.ops` and runs on both.

Example
-------
>>> w = keras.Variable(3.0)
>>> optimizer = keras.optimizers.SGD(0.1)
>>> optimizer.build([w])
>>> loss = minimise(lambda: {"loss": w * w}, [w], optimizer)["loss"]   # 9.0; w is now 2.4
"""

import warnings
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import keras

BACKENDS = ("tensorflow", "torch")
# Steps of a recording before it becomes a CUDA graph: cuDNN chooses its algorithms in them.
WARM_UP = 3
_COMPILED = weakref.WeakKeyDictionary()  # by network


def adam(rate, beta_1=0.9, precision="float32", longest=None):
    """Make an Adam optimizer whose update is one pass over the weights, where there is such a one.

    Keras writes Adam as a dozen operations, each of which goes through memory; with the 42 million
    weights of the published generator that is an eighth of a training step on a CPU. TensorFlow has
    the same formula as one operation; on PyTorch, Keras takes PyTorch's own.

    Parameters
    ----------
    rate : float
        Learning rate.
    beta_1 : float
        Decay of the first moment.
    precision : str
        Of the networks, see `Preset`. Gradients in float16 vanish below 6e-8: with
        "mixed_float16" the loss is scaled up before they are computed, and they are scaled back.
    longest : float, optional
        Norm of the gradient, of all weights together, to which a longer one is shortened.

    Returns
    -------
    keras.optimizers.Optimizer
    """
    one_pass = keras.backend.backend() == "tensorflow"
    kind = _OnePassAdam if one_pass else keras.optimizers.Adam
    optimizer = kind(rate, beta_1=beta_1, global_clipnorm=longest, name="adam")
    if precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


class _OnePassAdam(keras.optimizers.Adam):
    """Adam on TensorFlow, each weight array updated by one operation."""

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable; Keras calls this."""
        import tensorflow as tf

        place = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=_resource(variable),
            m=_resource(self._momentums[place]),
            v=_resource(self._velocities[place]),
            grad=gradient,
            **self.__dict__["_settings"],
        )

    def _backend_update_step(self, gradients, variables, learning_rate):
        """Compute once per step what is the same for all variables, then update them."""
        known = {
            "lr": learning_rate,
            "beta1": self.beta_1,
            "beta2": self.beta_2,
            "epsilon": self.epsilon,
            "step": self.iterations + 1,
        }
        dtype = variables[0].dtype
        known = {name: keras.ops.cast(value, dtype) for name, value in known.items()}
        step = known.pop("step")
        known["beta1_power"] = keras.ops.power(known["beta1"], step)
        known["beta2_power"] = keras.ops.power(known["beta2"], step)
        self.__dict__["_settings"] = known  # past Keras, which would track it
        super()._backend_update_step(gradients, variables, learning_rate)


def _resource(variable):
    # Between several devices, TensorFlow hands out its own variables instead of Keras's.
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


@dataclass(frozen=True)
class Step:
    """Whose weights one gradient step moves, and by which of several losses.

    Parameters
    ----------
    loss : str
        Name of the loss.
    variables : list of keras.Variable
        What the step may change.
    optimizer : keras.optimizers.Optimizer
        Already built for `variables`.
    """

    loss: str
    variables: list
    optimizer: keras.optimizers.Optimizer


def minimise(compute_losses, variables, optimizer):
    """Take one gradient step.

    Parameters
    ----------
    compute_losses : callable
        Takes nothing and returns a dict of scalar tensors; its `"loss"` is minimised.
    variables : list of keras.Variable
        What the step may change. Nothing else moves, whatever the loss depends on.
    optimizer : keras.optimizers.Optimizer
        Already built for `variables`.

    Returns
    -------
    dict
        What `compute_losses` returned, from before the step.

    Raises
    ------
    RuntimeError
        If Keras runs on another backend than TensorFlow or PyTorch.
    """
    return minimise_together(compute_losses, [Step("loss", variables, optimizer)])


def minimise_together(compute_losses, steps):
    """Take several gradient steps from one computation of their losses.

    All gradients belong to the weights before the first step, and what the losses share is computed
    once.

    Parameters
    ----------
    compute_losses : callable
        Takes nothing and returns a dict of scalar tensors.
    steps : list of Step
        They must not share a variable.

    Returns and raises as `minimise`.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _minimise_tensorflow(compute_losses, steps)
    if backend == "torch":
        return _minimise_torch(compute_losses, steps)
    raise RuntimeError(
        f"Keras runs on the backend {backend!r}; this kit trains on {' or '.join(BACKENDS)}. "
        "Set the environment variable KERAS_BACKEND to one of them before importing keras."
    )


@contextmanager
def without_gradients():
    """Compute without keeping, for gradients, what was computed on the way; also a decorator.

    PyTorch keeps it at every call of a network, which takes many times the memory of the result.
    TensorFlow keeps it in `minimise` only.
    """
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


def compiled(network):
    """Return a function that runs a network in inference mode, for calling it many times.

    Called by itself, a network's layers run one by one, and TensorFlow keeps all that they return.
    As one graph they take less memory and time: a generator of the `demo` preset, on 100 cells at a
    time, 0.45 s instead of 1.2 s per 1,000 cells. To make that graph takes a third of a second to a
    second, once per network.

    Parameters
    ----------
    network : keras.Model
        Its weights may change between the calls.

    Returns
    -------
    callable
        Takes what the network takes, as long as the network is there.
    """
    if keras.backend.backend() != "tensorflow":
        return partial(network, training=False)
    import tensorflow as tf

    if network not in _COMPILED:
        # The graph must not be what keeps the network in memory.
        own = weakref.ref(network)
        # With relaxed shapes the last slice, mostly a smaller one, needs one more graph at most.
        # A partial of its own for each network: TensorFlow warns of one function that is traced for
        # several.
        _COMPILED[network] = tf.function(partial(_infer, own), reduce_retracing=True)
    return _COMPILED[network]


def _infer(network, inputs):
    """Call the network that a weak reference holds."""
    return network()(inputs, training=False)


def _minimise_tensorflow(compute_losses, steps):
    import tensorflow as tf

    # Watching only what the steps may change saves the work for all other gradients.
    several = len(steps) > 1
    with tf.GradientTape(persistent=several, watch_accessed_variables=False) as tape:
        for step in steps:
            tape.watch(_values(step))
        losses = compute_losses()
        scaled = [step.optimizer.scale_loss(losses[step.loss]) for step in steps]
    gradients = [
        tape.gradient(loss, _values(step)) for loss, step in zip(scaled, steps, strict=True)
    ]
    for step, own in zip(steps, gradients, strict=True):
        step.optimizer.apply(own, step.variables)
    return losses


def _minimise_torch(compute_losses, steps):
    import torch

    losses = compute_losses()
    # `grad` returns the gradients and leaves no sums behind on the variables, which a
    # `backward` would: the generator's loss also reaches the discriminator's weights.
    gradients = [
        torch.autograd.grad(
            step.optimizer.scale_loss(losses[step.loss]),
            _values(step),
            retain_graph=step is not steps[-1],
            allow_unused=True,  # as TensorFlow: a weight without influence stays as it is
        )
        for step in steps
    ]
    with torch.no_grad():
        for step, own in zip(steps, gradients, strict=True):
            step.optimizer.apply(list(own), step.variables)
    return {name: value.detach() for name, value in losses.items()}


def _values(step):
    return [variable.value for variable in step.variables]


def records(model):
    """Return whether the training steps of a model are recorded: on PyTorch, on an NVIDIA GPU.

    Scaling the loss of float16 needs a decision in Python at every step, so such steps are not.

    Parameters
    ----------
    model : keras.Model
        With a `generator`.
    """
    if keras.backend.backend() != "torch" or model.run_eagerly:
        return False
    import torch

    return torch.cuda.is_available() and model.generator.compute_dtype != "float16"


class Recording:
    """A training step as one list of PyTorch's operations, repeated without Keras.

    PyTorch gets its operations from Keras one by one, and that takes longer than a GPU needs to
    compute them. The first call with inputs of some shape is an ordinary step; what PyTorch
    computes in it is written down: both passes, and the updates of weights, optimizers and metrics.
    The calls after it repeat that list. After a few of them, a GPU gets it as one CUDA graph.

    A recording holds for as long as the variables are assigned to, as Keras does, and not replaced.
    Dropout is drawn from PyTorch's own generator; see `seed_engine`.

    Parameters
    ----------
    step : callable
        Takes a minibatch of tensors, nested in tuples and dictionaries; returns a dict of tensors.
    compile : bool
        Let PyTorch's compiler fuse the operations. That takes minutes.
    """

    def __init__(self, step, compile=False):
        self.step = step
        self.compile = compile
        self._recorded = {}  # by the shapes of the inputs: operations, names of losses, calls

    def __call__(self, data):
        """Take a step on `data`, a list with one minibatch, as Keras' `fit` calls it.

        The tensors that are returned may change at the next call.
        """
        import torch

        inputs = keras.tree.flatten(data[0])
        shapes = tuple(tuple(values.shape) for values in inputs)
        if shapes not in self._recorded:
            logs, run = self._record(data[0], inputs)
            self._recorded[shapes] = run, tuple(logs), 0
            return logs
        run, names, calls = self._recorded[shapes]
        with torch.no_grad():
            if calls == WARM_UP and inputs[0].is_cuda:
                run = _cuda_graph(run, inputs)
            self._recorded[shapes] = run, names, calls + 1
            return dict(zip(names, run(*inputs), strict=True))

    def _record(self, minibatch, inputs):
        """Take a step; return its losses, and its operations as a function of the inputs."""
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        logs = {}

        def step(*inputs):
            logs.update(self.step(keras.tree.pack_sequence_as(minibatch, inputs)))
            return list(logs.values())

        # A generator of Keras gets its seed from the GPU at every draw, and the GPU would wait.
        with patch("keras.src.backend.torch.random.torch_seed_generator", lambda seed: None):
            graph = make_fx(step)(*inputs)
        _keep_constants_in_place(graph)
        return logs, torch.compile(graph, dynamic=False) if self.compile else graph


def _cuda_graph(run, inputs):
    """Return `run` as a CUDA graph; or as it is, with a warning, if CUDA refuses."""
    import torch

    places, graph = [values.clone() for values in inputs], torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            outputs = run(*places)
    except RuntimeError as error:
        warnings.warn(f"Training runs without a CUDA graph, and slower: {error}", stacklevel=2)
        return run

    def replay(*inputs):
        for place, values in zip(places, inputs, strict=True):
            place.copy_(values, non_blocking=True)
        graph.replay()
        return outputs

    return replay


def _keep_constants_in_place(graph):
    """Compute once what a recording makes of constants: a CUDA graph cannot copy from the CPU."""
    import torch

    moving = {
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten._to_copy.default,
        torch.ops.aten.detach.default,
    }
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.target in moving else None
        if getattr(source, "op", None) != "get_attr" or isinstance(
            getattr(graph, source.target), torch.nn.Parameter
        ):
            continue
        if any(user.target._schema.is_mutable for user in node.users if callable(user.target)):
            continue  # changed in place, so that every step needs a new one
        name = f"_kept_{node.name}"
        graph.register_buffer(name, node.target(getattr(graph, source.target), **node.kwargs))
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.get_attr(name))
        graph.graph.erase_node(node)
    graph.recompile()


def seed_engine(seed):
    """Seed PyTorch's own generator, from which a `Recording` draws; nothing on TensorFlow."""
    if keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(seed)
