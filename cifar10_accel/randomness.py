"""Counter-based random numbers: every draw is a function of its purpose and place, never of the draws before it.

A draw is the hash of (seed, purpose, counters...). So no state of a generator has to be saved or restored, and the
result does not depend on the number of processes or workers.

The hash is the SplitMix64 finaliser (Steele, Lea, Flood 2014), applied once per counter. It exists twice, for Python
ints and for int64 arrays (NumPy or torch, any device: both wrap around); a test compares the two bit for bit.
"""

from typing import Any

MASK_64 = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
DRAW_BITS = 32


def seed_for(seed: int, purpose: str, *counters: int) -> int:
    """Return the 64-bit key of one purpose at one place of the run, e.g. `seed_for(0, "order", epoch)`."""
    key = _mix(seed & MASK_64)
    for byte in purpose.encode():
        key = _mix(key ^ byte)
    for counter in counters:
        key = _mix(key ^ (counter & MASK_64))
    return key


def draw(key: int, counter: int) -> int:
    """Return draw number `counter` of a 64-bit key: a uniform integer in 0 .. 2**32 - 1."""
    return _mix(key ^ counter) >> (64 - DRAW_BITS)


def keys_for(key: int, indices: Any) -> Any:
    """Return one 64-bit key per index: `seed_for` with one more counter, on a whole array.

    Args:
        key: From `seed_for(...)`.
        indices: (N,) int64, NumPy or torch, any device.

    Returns:
        (N,) int64 with the bits of the unsigned numbers that `seed_for(..., index)` returns.
    """
    return _mix_array(indices ^ _signed(key))


def draws(keys: Any, counter: int) -> Any:
    """Return `draw(key, counter)` for every key of an (N,) int64 array: (N,) int64 in 0 .. 2**32 - 1."""
    return _shift_right(_mix_array(keys ^ _signed(counter)), 64 - DRAW_BITS)


def below(drawn: Any, bound: Any) -> Any:
    """Return uniform integers in 0 .. bound - 1 from 32-bit draws (multiply and shift; exact in int64)."""
    return (drawn * bound) >> DRAW_BITS


def threshold(probability: float) -> int:
    """Return the integer T for which draw < T is the same as draw / 2**32 < probability."""
    return -int(-(probability * (1 << DRAW_BITS)) // 1)


def _mix(value: int) -> int:
    value = (value + GOLDEN_GAMMA) & MASK_64
    value = ((value ^ (value >> 30)) * MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK_64
    return value ^ (value >> 31)


def _mix_array(values: Any) -> Any:
    values = values + _signed(GOLDEN_GAMMA)
    values = (values ^ _shift_right(values, 30)) * _signed(MIX_1)
    values = (values ^ _shift_right(values, 27)) * _signed(MIX_2)
    return values ^ _shift_right(values, 31)


def _shift_right(values: Any, bits: int) -> Any:
    """Return the logical right shift of int64, which has only an arithmetic one."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit number."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value
