"""The order of whole numbers, against NumPy's own sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nmf_dask.kernels.ordering import stable_order


@given(
    st.sampled_from([np.int32, np.int64]).flatmap(
        lambda dtype: st.sampled_from([1, 2**16 - 1, 2**16, 2**20, np.iinfo(dtype).max]).flatmap(
            lambda most: arrays(
                dtype, st.integers(0, 200), elements=st.integers(0, int(most)), fill=st.nothing()
            )
        )
    )
)
def test_it_is_numpys_stable_order(numbers):
    """Catches a digit that is left out, digits in the wrong order, and equal numbers that change places."""
    assert stable_order(numbers).tolist() == np.argsort(numbers, kind="stable").tolist()


@pytest.mark.parametrize("most", [2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**48])
def test_numbers_at_the_edge_of_a_digit(most):
    numbers = np.array([most, 0, most - 1, most, 1, 0])
    assert stable_order(numbers).tolist() == [1, 5, 4, 2, 0, 3]
