"""Checkpoints: a run's state on disk, whole or not there, in one layout whatever its stack and mesh were.

A state is stored as nested dictionaries by the names of its key paths, its stacks joined into their
canonical segments, so that another cut of the layers, another mesh or a tool without this library can
read it. Next to the arrays lies a JSON record: the layout's version, the library's, every leaf's shape and
dtype, a fingerprint, and what the caller adds. Orbax writes into a temporary folder and renames it when it
is whole, so a kill leaves no broken step.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

import jaxgen
from jaxgen.layers.stack import canonical, recut
from jaxgen.training.sharding import path_string

LAYOUT = 1
_STATE, _RECORD = 'state', 'record'
_SHOWN = 5
_LEAST_SLICE = 2**24


class Checkpoints:
    """The checkpoints of one directory, local or gs://. All processes call every method together."""

    def __init__(
        self,
        directory: str | epath.PathLike,
        keep: int = 3,
        keep_period: int | None = None,
        asynchronous: bool = True,
        fingerprints: bool = True,
        read_only: bool = False,
    ):
        """Keeps the last `keep` steps and every multiple of `keep_period`.

        `read_only` is for readers beside a running job: it neither creates the directory nor removes what an
        interrupted save left. `fingerprints` hashes all bytes at every save, in the caller's thread.
        """
        self.directory = epath.Path(directory).expanduser()
        if '://' not in str(directory):
            self.directory = self.directory.absolute()
        if keep < 1:
            raise ValueError(f'keep={keep} checkpoints would delete every save; keep at least 1')
        if read_only and not self.directory.is_dir():
            raise ValueError(f'there is no checkpoint directory {self.directory}; check the path of the run')
        policies = [preservation_policy.LatestN(keep)]
        if keep_period:
            policies.append(preservation_policy.EveryNSteps(keep_period))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            enable_async_checkpointing=asynchronous,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=_handlers())
        self._fingerprints = fingerprints
        self._read_only = read_only

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Stores a tree of arrays under a step; returns once the arrays may be donated."""
        if self._read_only:
            raise ValueError(f'{self.directory} is open for reading only; open it without read_only to save')
        present = self._manager.all_steps()
        if step in present:
            raise ValueError(
                f'{self.directory} already holds step {step}; save under a step after {max(present)}'
            )
        named = _named(canonical(tree))
        record = {
            'layout': LAYOUT,
            'jaxgen': jaxgen.__version__,
            'jax': jax.__version__,
            'fingerprint': _digest(named) if self._fingerprints else None,
            'leaves': {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in named.items()},
            'metadata': dict(metadata or {}),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{_STATE: ocp.args.PyTreeSave(_nest(named)), _RECORD: ocp.args.JsonSave(record)}
            ),
            force=True,
        )

    def latest(self) -> int | None:
        """The last complete step, or None; waits for a save in progress."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """All complete steps, in order; waits for a save in progress."""
        self.wait()
        if self._read_only:
            self._manager.reload()
        return sorted(self._manager.all_steps())

    def record(self, step: int | None = None) -> dict[str, Any]:
        """The whole record of a step: layout, versions, fingerprint, leaves, metadata."""
        step = self._resolve(step)
        if not (self.directory / str(step) / _RECORD).exists():
            raise ValueError(
                f'{self.directory}/{step} was not written by jaxgen: it has no {_RECORD!r} folder'
            )
        record = self._manager.restore(step, args=ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()}))[
            _RECORD
        ]
        if record.get('layout') != LAYOUT:
            raise ValueError(
                f'{self.directory}/{step} has checkpoint layout {record.get("layout")}, jaxgen '
                f'{jaxgen.__version__} reads layout {LAYOUT}; use the version that wrote it: '
                f'{record.get("jaxgen")}'
            )
        return record

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """What the caller gave to `save`."""
        return self.record(step)['metadata']

    def restore(self, step: int | None, abstract_tree: Any, partial: bool = False) -> Any:
        """The tree of a step (None: the last), shaped, typed and placed as `abstract_tree`.

        Leaves carry `shape`, `dtype` and, where they have one, `sharding`; floats may change their precision.
        With `partial` the checkpoint may hold more than is asked for.
        """
        step = self._resolve(step)
        joined = canonical(jax.tree.map(_abstract, abstract_tree))
        wanted = _named(joined)
        self._check(step, wanted, self.record(step)['leaves'], partial)
        arguments = {
            name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype, global_shape=leaf.shape)
            for name, leaf in wanted.items()
        }
        restore = ocp.args.PyTreeRestore(
            item=_nest(wanted), restore_args=_nest(arguments), partial_restore=partial
        )
        stored = _named(self._manager.restore(step, args=ocp.args.Composite(**{_STATE: restore}))[_STATE])
        tree = jax.tree_util.tree_map_with_path(lambda path, _: stored[path_string(path)], joined)
        if jax.tree.structure(joined) == jax.tree.structure(abstract_tree):
            return tree
        # Cutting runs as ordinary slices, whose results need not lie where they were asked for.
        tree = recut(tree, abstract_tree)
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, _sharding(like)), tree, abstract_tree)

    def wait(self) -> None:
        """Returns when the save in progress is complete, or raises what broke it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _resolve(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise ValueError(f'{self.directory} holds no checkpoint; check the path, or train first')
        if step is None:
            return steps[-1]
        if step not in steps:
            raise ValueError(f'{self.directory} holds no step {step}; it has {steps}')
        return step

    def _check(self, step: int, wanted: Mapping, stored: Mapping, partial: bool) -> None:
        missing = [name for name in wanted if name not in stored]
        unexpected = [] if partial else [name for name in stored if name not in wanted]
        misshapen = []
        for name in wanted.keys() & stored.keys():
            dtype, shape = stored[name]
            leaf = wanted[name]
            if tuple(shape) != tuple(leaf.shape) or not _converts(dtype, leaf.dtype):
                misshapen.append(f'{name} (stored {dtype}{shape}, wanted {leaf.dtype}{list(leaf.shape)})')
        problems = {'missing': missing, 'unexpected': unexpected, 'misshapen': misshapen}
        lines = [
            f'{kind} ({len(names)}): '
            + ', '.join(sorted(names)[:_SHOWN])
            + (' ...' if len(names) > _SHOWN else '')
            for kind, names in problems.items()
            if names
        ]
        if lines:
            raise ValueError(
                f'{self.directory}/{step} does not fit this run; '
                + '; '.join(lines)
                + '. Use the config it was '
                'trained with, or another directory'
            )


def _handlers() -> ocp.DefaultCheckpointHandlerRegistry:
    """Orbax's handlers, but small replicated arrays are written by one replica.

    By default each replica writes its slice, and every shape compiles a program that cuts it.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE)
    trees = ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    )
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for arguments in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        handlers.add(_STATE, arguments, trees)
    return handlers


def fingerprint(tree: Any) -> str:
    """SHA-256 over the sorted names, dtypes, shapes and bytes of a tree, in its canonical layout.

    Sharded arrays give the digest of their whole; where processes hold parts, all of them call this together.
    """
    return _digest(_named(canonical(tree)))


def _digest(named: Mapping[str, Any]) -> str:
    total = hashlib.sha256()
    for name in sorted(named):
        leaf = named[name]
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        # A view of the device buffer would keep it from being donated, so only the copy lives on.
        whole = np.array(leaf, copy=True, order='C')
        total.update(f'{name}\0{whole.dtype}\0{whole.shape}\0'.encode())
        total.update(whole.view(np.uint8).data if whole.ndim else whole.tobytes())
    return total.hexdigest()


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {path_string(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError('two leaves of the state have the same path; dictionary keys must differ as strings')
    return named


def _nest(named: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    sharding = getattr(leaf, 'sharding', None)
    if sharding is not None:
        return sharding
    if jax.process_count() > 1:
        raise ValueError(
            'with several processes every leaf to restore needs a sharding; see training.sharding'
        )
    return SingleDeviceSharding(jax.local_devices()[0])


def _converts(stored: str, wanted: Any) -> bool:
    stored = jax.numpy.dtype(stored)
    both_real = jax.numpy.issubdtype(stored, jax.numpy.floating) and jax.numpy.issubdtype(
        wanted, jax.numpy.floating
    )
    return stored == wanted or both_real
