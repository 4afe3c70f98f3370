"""What is cached comes back as it was written, or is made anew."""

import numpy as np
import pytest

from jaxsp.gan.scores import cache

ARRAYS = {
    "kernel": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32),
    "count": np.int32(7),
}


@pytest.fixture
def read(tmp_path):
    """Reads the cache; what is made anew is counted, and is the same."""
    made = []

    def make():
        made.append(True)
        return ARRAYS

    def read():
        made.clear()
        found = cache.cached(tmp_path, "a", make)
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
        return len(made)

    assert (read(), read()) == (1, 0)
    return read


def test_damaged_bytes_are_never_other_arrays(tmp_path, read):
    path, rng = tmp_path / "a.npz", np.random.default_rng(1)
    whole, anew = path.read_bytes(), 0
    for at in rng.choice(len(whole), 60):
        turned = bytes([whole[at] ^ 1 << rng.integers(8)])
        path.write_bytes(whole[:at] + turned + whole[at + 1 :])
        anew += read()
        path.write_bytes(whole[:at])
        assert read() == 1
    assert anew > 20  # the rest is of no consequence, as the time of the archive


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": ARRAYS["kernel"].astype(np.float64)},
        {"kernel": ARRAYS["kernel"].view(np.int32)},
        {"kernel": ARRAYS["kernel"].reshape(3, 4)},
        {"count": np.int64(7)},
        {"more": np.zeros(1)},
    ],
)
def test_a_whole_file_of_other_arrays_is_not_used(tmp_path, read, change):
    content = {**ARRAYS, "sha256": cache.digest(ARRAYS)}
    np.savez(tmp_path / "a.npz", **(content | change))
    assert read() == 1
    assert read() == 0
