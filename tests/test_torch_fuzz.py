"""Random damage to files of `torch.save`: each ends in a clean load or a clean error.

`EQXUNET_FUZZ=20000 pytest tests/test_torch_fuzz.py` runs that many cases of each kind with a new
seed; without it a few hundred run with a fixed one.
"""

import pytest
from fuzzing import damaged, fuzz, outcome
from torch_files import dumps, few_arrays, saved, state_dict, unpickle, zipped

from eqxunet.weights.state_dict import parse

RAWS = {str(key): array.tobytes() for key, array in enumerate(few_arrays().values())}
FILES = {
    "zip": damaged([saved(few_arrays())]),
    # A zip file's sums keep most damage from its pickle, so that is damaged before it is packed.
    "pickle": damaged([dumps(state_dict(few_arrays()))]).map(lambda data: zipped(data, RAWS)),
    "legacy": damaged([saved(few_arrays(), is_legacy=True)]),
}
LAYERS = {
    "zip": ("no whole zip file", "neither a state dict"),
    "pickle": ("truncated", "is not allowed", "memo slot"),
    "legacy": ("truncated", "is not allowed", "numbers in the storage"),
}
b"a".decode("cp437")  # which Python imports for the first name of a member


def check(data: bytes) -> str:
    return outcome(data, parse, unpickle)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_undamaged_files_load(is_legacy):
    data = saved(few_arrays(), is_legacy=is_legacy)
    assert check(data) == "loaded" and len(data) < 5_000


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_load_or_are_refused(kind):
    outcomes = fuzz(FILES[kind], check)
    assert outcomes["loaded"] > 0.01 * sum(outcomes.values())
    for layer in LAYERS[kind]:
        assert any(layer in reason for reason in outcomes), layer
