"""A public JAX DiT's train step, counted as ours is: python tests/estimate/public.py [PLAN.json]

Kevin Frans' jax-diffusion-transformer as it is written, XL/2 at 256 px, batch 256, data-parallel over eight
v5e chips, its state donated (as it stands it would not fit), where $JAXGEN_KVFRANS is a checkout of it. It is
compared with a file that `--mode=plan --topology=v5e:2x4` has left. Unrolled layers: this takes minutes.
"""

import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen import estimate
from jaxgen.estimate import topology
from jaxgen.uncached import uncached

sys.path.insert(0, os.environ['JAXGEN_KVFRANS'])

from diffusion_transformer import DiT  # noqa: E402
from schedulers import GaussianDiffusion  # noqa: E402

TOPOLOGY, BATCH, STEPS, DECAY = 'v5e:2x4', 256, 500, 0.9999


def main() -> None:
    """Compile, print the estimate, and the ratio of the times where there is a plan."""
    mesh = Mesh(np.array(topology.devices(TOPOLOGY)), ('data',))
    network = DiT(
        patch_size=2,
        hidden_size=1152,
        depth=28,
        num_heads=16,
        mlp_ratio=4,
        class_dropout_prob=0.1,
        num_classes=1000,
    )
    diffusion, optimizer = GaussianDiffusion(STEPS), optax.adam(1e-4, b1=0.9, b2=0.99)

    def step(key, params, moments, average, latents, labels):
        key, label_key, time_key, noise_key = jax.random.split(key, 4)

        def loss(params):
            t = jax.random.randint(time_key, labels.shape, 0, STEPS)
            noise = jax.random.normal(noise_key, latents.shape)
            noisy, drops = diffusion.q_sample(latents, t, noise), {'label_dropout': label_key}
            found = network.apply({'params': params}, noisy, t, labels, train=True, rngs=drops)
            return jnp.mean((found - noise) ** 2)

        error, gradients = jax.value_and_grad(loss)(params)
        error, gradients = jax.lax.pmean((error, gradients), 'data')
        updates, moments = optimizer.update(gradients, moments, params)
        average = jax.tree.map(lambda new, old: (1 - DECAY) * new + DECAY * old, params, average)
        params = optax.apply_updates(params, updates)
        norms = [optax.global_norm(tree) for tree in (gradients, updates, params)]
        return key, params, moments, average, error, norms

    def initial(key):
        keys, latents, labels = {'params': key, 'label_dropout': key}, jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)
        return network.init(keys, latents, labels, labels.astype(jnp.int32))['params']

    def placed(tree, spec):
        where = NamedSharding(mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    params = jax.eval_shape(initial, key)
    state = placed((key, params, jax.eval_shape(optimizer.init, params), params), P())
    shapes = ((BATCH, 32, 32, 4), jnp.float32), ((BATCH,), jnp.int32)
    batch = placed([jax.ShapeDtypeStruct(*shape) for shape in shapes], P('data'))
    specs = (P(),) * 4 + (P('data'),) * 2
    spread = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    start = time.time()
    with uncached():
        compiled = jax.jit(spread, donate_argnums=(0, 1, 2, 3)).lower(*state, *batch).compile()
    found = estimate.estimate(compiled, 'v5e')
    print(found.table())
    print(f'compiled in {time.time() - start:.0f} s, libtpu {topology.version()}')
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as file:
            ours = json.load(file)['phases']['denoise']['estimate']['seconds']
        theirs = found.seconds
        print(f'{1000 * theirs:.1f} ms, ours {1000 * ours:.1f} ms: {theirs / ours:.2f} times as long')


if __name__ == '__main__':
    main()
