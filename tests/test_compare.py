"""The comparison with diffusers and torch, in miniature: both sides run, and they compute the same."""

import json

import compare
import numpy as np
import pytest

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def torch():
    pytest.importorskip('diffusers')
    return pytest.importorskip('torch')


def networks(case, folder):
    from jaxgen.weights import published

    network, params = compare.our_network(case, compare.TINY)
    published.save_network(str(folder / 'weights'), network, params)
    return network, params, compare.their_network(case, folder / 'weights', 1)


def test_command_prints_ratios(tmp_path, capfd):
    arguments = ['--cases=sample-dit', '--threads=1', '--rounds=2', '--tiny', '--eager']
    (record,) = compare.main([*arguments, f'--json={tmp_path}/times.json'])
    assert json.loads((tmp_path / 'times.json').read_text()) == [record]
    ours, theirs = record['seconds']['jaxgen'], record['seconds']['torch']
    assert record['ratios'] == [b / a for a, b in zip(ours, theirs)] and len(ours) == 2
    assert record['best'] == 'torch' and record['difference'] < 1e-4
    printed = capfd.readouterr().out
    assert f'ratio {record["ratio"]:.2f}' in printed and 'sample-dit, 1 threads' in printed
    assert all(name in printed for name in ('jaxlib', 'torch', 'diffusers'))


def test_pixart_draws_the_same(tmp_path):
    case = 'sample-pixart'
    network, params, other = networks(case, tmp_path)
    ours = compare.our_sampling(case, compare.TINY, network, params)()
    theirs = compare.their_sampling(case, compare.TINY, other, other)()
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()


def test_both_train(tmp_path, torch):
    network, params, other = networks('train-dit', tmp_path)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    compare.our_training(compare.TINY, network, params)()
    compare.their_training(compare.TINY, other, other)()
    assert not all(map(torch.equal, before, other.parameters()))


def test_other_latents_are_refused(tmp_path):
    for side, value in zip(compare.SIDES, (1.0, 1.1)):
        np.save(tmp_path / f'{side}.npy', np.full(3, value))
    with pytest.raises(ValueError, match='do not compute the same'):
        compare._difference(tmp_path)
