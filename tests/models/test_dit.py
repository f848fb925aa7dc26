"""DiT against diffusers with the same random weights, against golden arrays, and in its published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import authors, cases
from golden.seeded import disagreements, relative_error, stored

from jaxgen.models import dit
from jaxgen.weights import dit as dit_names
from jaxgen.weights.names import to_published

TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def ours():
    network, table = cases.build('dit', cases.DIT)
    x, condition = cases.image(cases.DIT_GRID), cases.dit_condition()
    params = cases.parameters(network, table, x, condition)
    return network, params, cases.run(network, params, x, condition, cases.cotangent(cases.DIT_GRID))


@pytest.mark.parity
def test_output_and_gradients_equal_diffusers(ours):
    torch = pytest.importorskip('torch')
    diffusers = pytest.importorskip('diffusers')
    _, params, (out, by_x, by_params) = ours
    reference = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,  # the authors' epsilon
    ).eval()
    for module in reference.modules():
        # The authors divide the frequencies' exponent by half the width; diffusers' DiT by one less.
        if hasattr(module, 'downscale_freq_shift'):
            module.downscale_freq_shift = 0
    table = dit_names.diffusers(2)
    weights = {name: torch.from_numpy(array.copy()) for name, array in to_published(table, params).items()}
    left = reference.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= set(table.ignored)

    x = torch.from_numpy(cases.image(cases.DIT_GRID).transpose(0, 3, 1, 2).copy()).requires_grad_()
    theirs = reference(x, torch.from_numpy(cases.TIMES), torch.from_numpy(cases.LABELS)).sample
    weight = torch.from_numpy(cases.cotangent(cases.DIT_GRID).transpose(0, 3, 1, 2).copy())
    (theirs * weight).sum().backward()
    assert relative_error(out, theirs.detach().numpy().transpose(0, 2, 3, 1)) <= TOLERANCE
    assert relative_error(by_x, x.grad.numpy().transpose(0, 2, 3, 1)) <= TOLERANCE

    gradients: dict[str, np.ndarray] = {}
    for name, parameter in reference.named_parameters():
        # The embedders, ours being one, are copied into every block: their gradients add up.
        name = 'transformer_blocks.0' + name[20:] if '.norm1.emb.' in name else name
        grad = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        gradients[name] = gradients.get(name, 0) + grad
    mapped = to_published(table, by_params)
    assert not disagreements(mapped, gradients, TOLERANCE)


def _assert_equals(ours, reference):
    """Ours against the authors' results, as far as those are there."""
    _, _, (out, by_x, by_params) = ours
    ours = to_published(dit_names.authors(2), by_params) | {'out': out, 'by_x': by_x}
    assert len(reference) >= 10 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


def test_golden(ours):
    _assert_equals(ours, dict(stored('dit')))


@pytest.mark.parity
def test_output_and_gradients_equal_authors(ours):
    pytest.importorskip('torch')
    if not authors.checkout('JAXGEN_DIT'):
        pytest.skip("JAXGEN_DIT names no checkout of the authors' code")
    model = authors.dit_model(to_published(dit_names.authors(2), ours[1]), cases.DIT)
    _assert_equals(ours, authors.run_dit(model))


@pytest.mark.parametrize(
    ('size', 'patch', 'count'),
    # The authors' own classes counted in torch, without the fixed position table.
    [
        ('XL', 2, 674_834_720),
        ('XL', 8, 675_664_640),
        ('L', 4, 457_988_224),
        ('B', 2, 130_315_808),
        ('S', 8, 33_142_016),
    ],
)
def test_published_parameter_counts(size, patch, count):
    network = dit.build(size=size, patch=patch)
    x = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    condition = {'label': jax.ShapeDtypeStruct((1,), jnp.int32), 'drop': jax.ShapeDtypeStruct((1,), bool)}
    params = jax.eval_shape(
        network.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32), condition
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
