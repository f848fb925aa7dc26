"""Checkpoints: a run's state on disk, whole or not there, in one layout whatever its stack and mesh were.

A state is stored as nested dictionaries by the names of its key paths, its stacks joined into their
canonical segments, so that another cut of the layers, another mesh or a tool without this library can
read it. Next to the arrays lies a JSON record: the layout's version, the library's, every leaf's shape, dtype
and digest, and what the caller adds. Orbax writes into a temporary folder and renames it when it is whole, so
a kill leaves no broken step; what breaks later is found by the digests before anything uses it.
"""

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxgen.layers.stack import canonical, recut
from jaxgen.training import record as records
from jaxgen.training.digest import digests, named_leaves
from jaxgen.training.sharding import path_string

Accept = Callable[[Mapping[str, Any]], None]
log = logging.getLogger('jaxgen')

_STATE, _RECORD = 'state', 'record'
_LEAST_SLICE = 2**24
_CHUNK = 2**26  # bytes compressed at a time
_LONG = 160
_OURS = (
    MemoryError,
    PermissionError,
    jax.errors.JaxRuntimeError,
)  # errors of the reader, not of what it reads


class Damaged(ValueError):
    """A checkpoint that is not what was written: the message names it and its first damaged leaf."""


class SaveFailed(OSError):
    """A checkpoint that could not be written; those before it are as they were."""


class Checkpoints:
    """The checkpoints of one directory, local or gs://. All processes call every method together."""

    def __init__(
        self,
        directory: str | epath.PathLike,
        keep: int = 3,
        keep_period: int | None = None,
        asynchronous: bool = True,
        read_only: bool = False,
        lean: bool = False,
    ):
        """Keeps the last `keep` steps and every multiple of `keep_period`.

        `read_only` is for readers beside a running job: it neither creates the directory nor removes what an
        interrupted save left. `lean` writes files for each array, many more of them, with hardly any memory
        for it.
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
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            enable_async_checkpointing=asynchronous,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._read_only, self._lean = read_only, lean
        self._manager = self._open()
        self._saving: int | None = None

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory, options=self._options, handler_registry=_handlers(self._lean)
        )

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Stores a tree of arrays under a step; returns once the arrays may be donated.

        Waits for the save before, and raises its SaveFailed, if any, instead of beginning this one.
        """
        if self._read_only:
            raise ValueError(f'{self.directory} is open for reading only; open it without read_only to save')
        present = self.steps()
        if step in present:
            raise ValueError(
                f'{self.directory} already holds step {step}; save under a step after {max(present)}'
            )
        named = named_leaves(canonical(tree))
        arguments = {
            _STATE: ocp.args.PyTreeSave(
                _nest(named),
                _nest({name: ocp.SaveArgs(chunk_byte_size=_CHUNK) for name in named}),
            ),
            _RECORD: ocp.args.JsonSave(records.make(named, metadata or {})),
        }
        self._saving = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        except Exception as error:
            self._failed(error)

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
        folder = self.directory / str(step)
        if not (folder / _RECORD).exists():
            raise Damaged(f'{folder} was not written by jaxgen, or is damaged: it has no {_RECORD!r} folder')
        arguments = ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()})
        try:
            record = dict(self._manager.restore(step, args=arguments)[_RECORD])
        except _OURS:
            raise
        except Exception as error:
            raise Damaged(f'{folder} is damaged: its record cannot be read ({_reason(error)})') from error
        if record.get('layout') != records.LAYOUT:
            raise ValueError(f'{folder} {records.other_layout(record)}')
        if not records.is_whole(record):
            raise Damaged(f'{folder} is damaged: its record is not what was written')
        return record

    def last_record(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """A step (None: the last whose record is whole) and its record."""
        steps = [step] if step is not None else self.steps() or [self._resolve(None)]
        for number in steps[:0:-1]:
            with suppress(Damaged):
                return number, self.record(number)
        return steps[0], self.record(steps[0])

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """What the caller gave to `save`."""
        return self.record(step)['metadata']

    def restore(self, step: int | None, abstract_tree: Any, partial: bool = False) -> Any:
        """The tree of a step (None: the last), verified; shaped, typed and placed as `abstract_tree`.

        Leaves carry `shape`, `dtype` and, where they have one, `sharding`; floats may change their precision.
        With `partial` the checkpoint may hold more than is asked for.
        """
        step = self._resolve(step)
        joined = canonical(jax.tree.map(_abstract, abstract_tree))
        wanted, leaves = named_leaves(joined), self.record(step)['leaves']
        self._fits(step, wanted, leaves, partial)
        stored = self._read(step, wanted, leaves)
        tree = jax.tree_util.tree_map_with_path(
            lambda path, like: _as(stored[path_string(path)], like), joined
        )
        if jax.tree.structure(joined) == jax.tree.structure(abstract_tree):
            return tree
        # Cutting runs as ordinary slices, whose results need not lie where they were asked for.
        tree = recut(tree, abstract_tree)
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, _sharding(like)), tree, abstract_tree)

    def restore_last(
        self,
        abstract_tree: Any,
        partial: bool = False,
        accept: Accept = lambda metadata: None,
    ) -> tuple[int, Any]:
        """The last step that is not damaged, and its tree as `restore` gives it.

        `accept` may refuse a step's metadata by a ValueError. Damaged steps are named in a warning, and
        their folders renamed, so that the steps can be saved again; a reader leaves them.
        """
        damaged: dict[int, Damaged] = {}
        for step in self.steps()[::-1] or [self._resolve(None)]:
            try:
                accept(self.metadata(step))
                tree = self.restore(step, abstract_tree, partial)
            except Damaged as error:
                damaged[step] = error
                continue
            for other, error in damaged.items():
                moved = '' if self._read_only else f' It is now {self.set_aside(other, "damaged")}.'
                log.warning('%s. Step %d is used instead.%s', error, step, moved)
            return step, tree
        raise Damaged(
            f'no checkpoint can be used: {"; ".join(map(str, damaged.values()))}. Put back a good copy of '
            'one, or use another workdir to train anew'
        )

    def check(self, step: int | None, abstract_tree: Any, partial: bool = False) -> None:
        """Refuses, by its record alone, a step that `restore` (None: `restore_last`) would refuse."""
        wanted = named_leaves(canonical(jax.tree.map(_abstract, abstract_tree)))
        number, record = self.last_record(step)
        self._fits(number, wanted, record['leaves'], partial)

    def set_aside(self, step: int, why: str) -> epath.Path:
        """Renames a step's folder to one that is no step, as '12.damaged'."""
        self._resolve(step)
        names = [f'{step}.{why}', *(f'{step}.{why}.{again}' for again in range(2, 1000))]
        aside = next(path for path in map(self.directory.joinpath, names) if not path.exists())
        multihost_utils.sync_global_devices(f'jaxgen/aside/{step}')
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(aside)
        multihost_utils.sync_global_devices(f'jaxgen/moved/{step}')
        self._manager.reload()
        return aside

    def wait(self) -> None:
        """Returns when the save in progress is complete, or raises SaveFailed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(error)

    def close(self) -> None:
        """Waits and lets go of the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _failed(self, error: Exception) -> NoReturn:
        """Forgets the broken save; opening anew removes what it left, which a full disk needs."""
        with suppress(Exception):
            self._manager.close()
        self._manager = self._open()
        raise SaveFailed(
            f'step {self._saving} could not be saved in {self.directory} ({_reason(error)})'
        ) from error

    def _fits(self, step: int, wanted: Mapping[str, Any], leaves: Mapping[str, Any], partial: bool) -> None:
        if misfits := records.misfits(wanted, leaves, partial):
            raise ValueError(
                f'{self.directory}/{step} does not fit this run; {misfits}. Use the config it was trained '
                'with, or another directory'
            )

    def _read(self, step: int, wanted: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves as they are stored, placed where they are wanted, each verified by its digest."""
        try:
            stored = self._arrays(step, wanted, leaves)
        except _OURS:
            raise
        except Exception:
            self._raise_first(step, wanted, leaves)
            raise
        found = digests(stored)
        wrong = [name for name in sorted(wanted) if found[name] != leaves[name][2]]
        if wrong:
            more = f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''
            raise Damaged(
                f'{self.directory}/{step} is damaged: {wrong[0]}{more} is not what was written, by its digest'
            )
        return stored

    def _arrays(self, step: int, wanted: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
        arguments = {
            name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaves[name][0], global_shape=leaf.shape)
            for name, leaf in wanted.items()
        }
        restore = ocp.args.PyTreeRestore(
            item=_nest(wanted), restore_args=_nest(arguments), partial_restore=True
        )
        return named_leaves(self._manager.restore(step, args=ocp.args.Composite(**{_STATE: restore}))[_STATE])

    def _raise_first(self, step: int, wanted: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
        """Raises Damaged with the first leaf that cannot be read alone."""
        for name in sorted(wanted):
            try:
                self._arrays(step, {name: wanted[name]}, leaves)
            except Exception as error:
                raise Damaged(
                    f'{self.directory}/{step} is damaged: {name} cannot be read ({_reason(error)})'
                ) from error

    def _resolve(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise ValueError(f'{self.directory} holds no checkpoint; check the path, or train first')
        if step is None:
            return steps[-1]
        if step not in steps:
            raise ValueError(f'{self.directory} holds no step {step}; it has {steps}')
        return step


def _handlers(lean: bool) -> ocp.DefaultCheckpointHandlerRegistry:
    """Orbax's handlers, but small replicated arrays are written by one replica.

    By default each replica writes its slice, and every shape compiles a program that cuts it.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    trees = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_ocdbt=not lean)
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for arguments in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        handlers.add(_STATE, arguments, trees)
    return handlers


def _reason(error: BaseException) -> str:
    """The root of an error in a few words: tensorstore tells the whole way there, and where in its source."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.split(r' \[\w+(?:\[\d+\])?=', str(error))[0].partition('\n')[0]
    if len(text) > _LONG:
        text = f'{text.partition(": ")[0]} ... {text.rpartition(": ")[2][-_LONG:]}'
    return f'{type(error).__name__}: {text}'


def _nest(named: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _as(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    return leaf if leaf.dtype == like.dtype else jax.device_put(leaf.astype(like.dtype), like.sharding)


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
